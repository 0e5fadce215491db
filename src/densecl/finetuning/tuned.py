"""The result of fine-tuning, ``best.safetensors`` and ``last.safetensors``: written and read."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import safetensors
import torch
from torch import nn

from densecl.choices import Architecture
from densecl.errors import UserError
from densecl.evaluation.detector import build_detector
from densecl.evaluation.learn_pixels import Segmenter
from densecl.evaluation.settings import LONGEST_SIDE
from densecl.evaluation.weights import Weights
from densecl.finetuning.settings import ARCHITECTURES
from densecl.model.backbone import Backbone, create_backbone
from densecl.model.timm_models import known_to_timm
from densecl.model.weights import (
    check_finite,
    check_fits,
    is_safetensors,
    outline,
    read_tensors,
    write_tensors,
)
from densecl.names import shown
from densecl.normalization import Normalization
from densecl.version import __version__
from densecl.weights_file import weights_file

#: Changes with the names of tensors and of the metadata.
FORMAT = "densecl fine-tuned 1"

#: Where the backbone's tensors stand in a fine-tuned network.
PREFIX = {"detection": "backbone.backbone.model.", "segmentation": "backbone.model."}

#: Bytes of the metadata of the starting weights that are handed on.
MOST_METADATA = 64 * 1024

#: What a file may ask for.
MOST_CLASSES = 10_000
MOST_CHANNELS = 4096


@dataclass(frozen=True, kw_only=True)
class Tuned:
    """What a fine-tuned network is, and how it is used.

    Attributes:
        task: "detection" or "segmentation".
        network: one of `ARCHITECTURES`.
        classes: their names. A detector's label 1 is the first, a segmenter's label 0.
        backbone: timm's name.
        in_channels: channels of the images.
        output_stride: that was asked of the backbone.
        mean: of each channel, on the 0-1 scale; subtracted from the pixels.
        std: by which they are divided then.
        image_size: (width, height) that images are resized to. For detection both are the longer side.
        threshold: the least score of a detection, of the best F1 in validation; None for segmentation.
        step: training steps.
        scores: in validation, in percent.
        source: the weights that training started from: what was given, its hash, and what it said of itself.
        version: of densecl.
    """

    task: str
    network: str
    classes: tuple[str, ...]
    backbone: str
    in_channels: int
    output_stride: int | None
    mean: tuple[float, ...]
    std: tuple[float, ...]
    image_size: tuple[int, int]
    threshold: float | None = None
    step: int = 0
    scores: Mapping[str, float] = field(default_factory=dict)
    source: Mapping[str, Any] = field(default_factory=dict)
    version: str = __version__

    @property
    def normalization(self) -> Normalization:
        return Normalization(self.mean, self.std)

    def network_on(self, backbone: Backbone) -> nn.Module:
        """The network, with new layers of random weights on the backbone."""
        if self.task == "segmentation":
            return Segmenter(backbone, len(self.classes))
        side, network = max(self.image_size), cast(Architecture, self.network)
        return build_detector(backbone, len(self.classes), self.normalization, side, True, network)


def save_tuned(model: nn.Module, tuned: Tuned, path: Path) -> None:
    """Writes a network and what it is. The same network gives the same bytes.

    Raises:
        OSError: it cannot be written.
    """
    metadata = {name: json.dumps(value) for name, value in dataclasses.asdict(tuned).items()}
    write_tensors(model.state_dict(), path, {"format": FORMAT, **metadata})


def load_tuned(path: Path) -> tuple[nn.Module, Tuned]:
    """A fine-tuned network in evaluation mode, on the GPU if there is one.

    Args:
        path: a file, or the folder of a run: then its best weights.

    Raises:
        UserError: it is not there, is damaged, was not written by `finetune`, or does not fit together.
    """
    path = path.expanduser()
    if path.is_dir():
        path = _in_folder(path)
    stored = read_tensors(path).tensors
    tuned = _read_metadata(path)
    name = f"a {tuned.network} on {shown(tuned.backbone)}"
    if not known_to_timm(tuned.backbone):
        raise UserError(f"{path} is of a backbone that timm does not know: {shown(tuned.backbone)}.")
    shapes = {"channels": tuned.in_channels, "output_stride": tuned.output_stride}
    prefix = PREFIX[tuned.task]
    with torch.random.fork_rng(devices=[]):  # what is drawn is overwritten
        # First without memory for the weights, because a small file may name a network of many gigabytes.
        drawing = outline(tuned.backbone, **shapes)
        if drawing is not None:
            own = {key.removeprefix(prefix): one for key, one in stored.items() if key.startswith(prefix)}
            check_fits(own, drawing, path, name)
        try:
            model = tuned.network_on(create_backbone(tuned.backbone, **shapes))
        except UserError as error:
            raise UserError(f"{path}: its metadata does not fit together: {error.args[0]}") from error
    check_fits(stored, model, path, name)
    model.load_state_dict({key: one.read() for key, one in stored.items()})
    check_finite(model.state_dict(), path)
    model.eval().requires_grad_(False)
    model = model.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    return model.to("cuda" if torch.cuda.is_available() else "cpu"), tuned


def _in_folder(folder: Path) -> Path:
    found = next(
        (folder / name for name in ("best.safetensors", "last.safetensors") if (folder / name).is_file()), None
    )
    if found is not None:
        return found
    if (folder / "backbone.safetensors").is_file():
        raise UserError(
            f"{folder} is a run of pretrain. It finds no objects before it is fine-tuned: densecl finetune."
        )
    if (folder / "finetune.json").is_file():
        raise UserError(f"{folder} is a run that has no weights yet. Go on with finetune --resume.")
    raise UserError(f"{folder} is no run of finetune: it holds no best.safetensors.")


def source_of(weights: Weights) -> dict[str, Any]:
    """Where weights come from: what the user gave, and of a file its hash and what it says of itself."""
    found: dict[str, Any] = {"given": weights.name, "architecture": weights.architecture}
    path = weights_file(Path(weights.name).expanduser())
    if weights.random or not path.is_file():
        return found
    with path.open("rb") as file:
        found["sha256"] = hashlib.file_digest(file, "sha256").hexdigest()
    if is_safetensors(path):
        with safetensors.safe_open(path, framework="pt") as file:
            said = file.metadata() or {}
        if sum(map(len, (*said, *said.values()))) <= MOST_METADATA:
            found["metadata"] = dict(sorted(said.items()))  # the library gives them in random order
    return found


# --- what a file says of itself --------------------------------------------------------------------------------------


def _read_metadata(path: Path) -> Tuned:
    """
    Raises:
        UserError: there is none, or it cannot be right.
    """
    said: Mapping[str, str] = {}
    if is_safetensors(path):
        with safetensors.safe_open(path, framework="pt") as file:
            said = file.metadata() or {}
    if said.get("format") != FORMAT:
        what = "It holds a backbone alone: fine-tune it first." if "architecture" in said else ""
        raise UserError(f"{path} was not written by densecl finetune (it lacks the format '{FORMAT}'). {what}".rstrip())
    values: dict[str, Any] = {}
    for each in dataclasses.fields(Tuned):
        try:
            values[each.name] = json.loads(said[each.name])
            right = _RIGHT[each.name](values[each.name])
        except (KeyError, ValueError, TypeError, OverflowError, RecursionError):
            right = False
        if not right:
            raise _damaged(path, each.name, said)
    for name in ("classes", "mean", "std", "image_size"):
        values[name] = tuple(values[name])
    tuned = Tuned(**values)
    if tuned.network not in ARCHITECTURES[tuned.task]:
        raise _damaged(path, "network", said)
    for name in ("mean", "std"):
        if len(getattr(tuned, name)) != tuned.in_channels:
            raise _damaged(path, name, said)
    return tuned


def _damaged(path: Path, name: str, said: Mapping[str, str]) -> UserError:
    value = shown(said[name], 60) if name in said else "missing"
    return UserError(f"{path}: its metadata is damaged: {name} is {value}.")


def _whole(value: Any, least: int, most: int) -> bool:
    return type(value) is int and least <= value <= most


def _numbers(value: Any, above: float) -> bool:
    return isinstance(value, list) and all(type(one) in (int, float) and above < one < math.inf for one in value)


def _texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(one, str) for one in value) and len(set(value)) == len(value)


#: What each value must be.
_RIGHT: dict[str, Callable[[Any], bool]] = {
    "task": lambda value: value in ARCHITECTURES,
    "network": lambda value: isinstance(value, str),
    "classes": lambda value: _texts(value) and 1 <= len(value) <= MOST_CLASSES,
    "backbone": lambda value: isinstance(value, str),
    "in_channels": lambda value: _whole(value, 1, MOST_CHANNELS),
    "output_stride": lambda value: value is None or value in (8, 16, 32),
    "mean": lambda value: _numbers(value, -math.inf),
    "std": lambda value: _numbers(value, 0.0),
    "image_size": lambda value: (
        isinstance(value, list) and len(value) == 2 and all(_whole(one, 1, LONGEST_SIDE) for one in value)
    ),
    "threshold": lambda value: value is None or (type(value) in (int, float) and 0 <= value <= 1),
    "step": lambda value: _whole(value, 0, 2**63),
    "scores": lambda value: isinstance(value, dict) and all(type(one) in (int, float) for one in value.values()),
    "source": lambda value: isinstance(value, dict),
    "version": lambda value: isinstance(value, str),
}
