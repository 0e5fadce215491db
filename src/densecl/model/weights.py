"""The files of backbones: written, read, and taken as a start."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import safetensors
import safetensors.torch
import timm
import torch
from torch import Tensor, nn

from densecl.errors import UserError, nearest
from densecl.files import replacing
from densecl.model.backbone import Backbone, create_backbone, create_model, one_line, unwrapped
from densecl.model.fitting import Fit, adapted_to_channels, best_fit
from densecl.model.pickles import Stored
from densecl.model.tensor_files import TensorFile, is_counter, read_tensors
from densecl.normalization import Normalization

#: Below this share of matched tensors, starting weights are taken for those of another model.
LEAST_MATCHED = 0.5

#: From this share of tensors left over in the same parts of the network on, a file is taken for a larger one's.
MUCH_LEFT_OVER = 0.05

#: Channels of an image that a file of weights may ask for.
MOST_CHANNELS = 4096

#: The files that are looked for in a folder: of a run of ours, then of others.
IN_A_FOLDER = ("backbone.safetensors", "checkpoints/last.ckpt", "model.safetensors", "pytorch_model.bin")


class Metadata(NamedTuple):
    """What a ``backbone.safetensors`` says of itself."""

    architecture: str
    in_channels: int
    output_stride: int | None
    normalization: Normalization


class Start(NamedTuple):
    """How existing weights were taken for a start.

    Attributes:
        report: how many tensors matched, and what the file was taken for.
        warnings: what the user should look at.
        normalization: the one that the weights were trained with, where their configuration says it and the
            images have as many channels.
        whose: in words, whose it is.
    """

    report: str
    warnings: tuple[str, ...]
    normalization: Normalization | None
    whose: str


def save_backbone(backbone: Backbone, path: Path | str, normalization: Normalization) -> None:
    """Writes the weights under their library's own names, with what is needed to use them in the metadata.

    The same weights give the same bytes. The file is written beside its place and moved into it.
    """
    path = Path(path)
    metadata = {
        "format": "pt",
        "architecture": backbone.name,
        "in_channels": json.dumps(backbone.in_channels),
        "output_stride": json.dumps(backbone.output_stride),
        "mean": json.dumps(list(normalization.mean)),
        "std": json.dumps(list(normalization.std)),
    }
    # Clones, because safetensors refuses tensors that share their memory, as tied weights do.
    tensors = {
        name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
        for name, tensor in unwrapped(backbone.model).state_dict().items()
    }
    header, values = _safetensors(tensors, metadata)
    with replacing(path) as file:
        file.write(header)
        file.write(values)


def _safetensors(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> tuple[bytes, memoryview]:
    """Header and values of a safetensors file, the metadata in order: the library writes them in a random one."""
    content = memoryview(safetensors.torch.save(dict(tensors), dict(metadata)))
    size = int.from_bytes(content[:8], "little")
    header = json.loads(bytes(content[8 : 8 + size]))
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    assert len(text) <= size, "the library writes JSON without spaces too"
    return bytes(content[:8]) + text.ljust(size), content[8 + size :]


def read_metadata(path: Path | str) -> Metadata | None:
    """What a file says of itself, checked; None if it is not of densecl.

    Raises:
        UserError: it says something that cannot be.
    """
    path = Path(path)
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            said = file.metadata() or {}
    except safetensors.SafetensorError as error:
        raise UserError(f"{path} cannot be read as weights: {one_line(error)}.") from error
    except OSError as error:  # safetensors says of a file without permission that it is not there
        raise UserError(f"{path} cannot be opened. Are you allowed to read it?") from error
    if "architecture" not in said:
        return None

    def value(name: str, right: str, fulfilled: Any) -> Any:
        try:
            found = json.loads(said[name])
            if fulfilled(found):
                return found
        except (KeyError, ValueError, TypeError, OverflowError, RecursionError):
            pass
        shown = repr(said[name][:40]) if name in said else "missing"
        raise UserError(f"{path}: its metadata is damaged: {name} is {shown}, but must be {right}.")

    channels = value("in_channels", f"a whole number from 1 to {MOST_CHANNELS}", _is_count)
    stride = value("output_stride", "8, 16, 32 or null", lambda one: one is None or one in (8, 16, 32))
    numbers = f"{channels} finite number{'' if channels == 1 else 's'}"
    mean = value("mean", numbers, lambda values: _are_numbers(values, channels))
    std = value("std", f"{numbers} above 0", lambda values: _are_numbers(values, channels) and min(values) > 0)
    return Metadata(said["architecture"], channels, stride, Normalization(tuple(mean), tuple(std)))


def _is_count(value: Any) -> bool:
    return type(value) is int and 1 <= value <= MOST_CHANNELS


def _are_numbers(values: Any, count: int) -> bool:
    return (
        isinstance(values, list)
        and len(values) == count
        and all(type(value) in (int, float) and math.isfinite(value) for value in values)
    )


def load_backbone(path: Path | str, module: nn.Module | None = None) -> tuple[Backbone, Normalization]:
    """The backbone of a run folder or of a ``backbone.safetensors``, and the normalization it was trained with.

    Args:
        path: the folder or the file.
        module: for weights of a module that timm does not know, an instance of it.

    Raises:
        UserError: if there is no such file, it was not written by densecl, or it does not fit the model.
    """
    path = Path(path)
    if path.is_dir():
        if not (path / "backbone.safetensors").exists() and (path / "checkpoints" / "last.ckpt").is_file():
            raise UserError(
                f"{path} is a run that has no backbone.safetensors yet. End it with --resume, or start another from its"
                f" checkpoint with --init {path}."
            )
        path = path / "backbone.safetensors"
    stored = read_tensors(path).tensors
    metadata = read_metadata(path) if _is_safetensors(path) else None
    if metadata is None:
        raise UserError(f"{path} does not say what it holds; a backbone.safetensors of a densecl run does.")
    name = metadata.architecture
    if module is None and not _known_to_timm(name):
        shown = _shown(name) or "nameless model"
        raise UserError(
            f"{path} holds the weights of a {shown}, which timm does not know. Give an instance as module=."
        )
    shapes = {"channels": metadata.in_channels, "output_stride": metadata.output_stride}
    if module is None:
        with torch.random.fork_rng(devices=[]):  # what is drawn is overwritten
            outline = _outline(name, **shapes)
            if outline is not None:
                _check_fits(stored, outline, path, name)
            try:
                backbone = create_backbone(name, **shapes)
            except UserError as error:
                raise UserError(f"{path}: its metadata does not fit together: {error.args[0]}") from error
    else:
        backbone = Backbone(module, name=name, in_channels=metadata.in_channels, output_stride=metadata.output_stride)
    model = unwrapped(backbone.model)
    _check_fits(stored, model, path, name)
    model.load_state_dict({name: one.read() for name, one in stored.items()})
    _check_finite(model.state_dict(), path)
    return backbone, metadata.normalization


def _outline(name: str, *, channels: int, output_stride: int | None) -> nn.Module | None:
    """A model without memory for its weights, because a small file may name one of many gigabytes.

    None for one that cannot be made so, which none of timm's 98 families was.
    """
    try:
        with torch.device("meta"):
            return create_model(name, channels=channels, output_stride=output_stride)
    except (NotImplementedError, RuntimeError):
        return None


def _check_fits(stored: Mapping[str, Stored], model: nn.Module, path: Path, name: str) -> None:
    """Raises UserError unless the tensors of a file are those of a model, name by name."""
    own = {key: tuple(tensor.shape) for key, tensor in model.state_dict().items()}
    problems = (
        *(f"it lacks {key}" for key in own.keys() - stored.keys()),
        *(f"{_shown(key)} is not of that model" for key in stored.keys() - own.keys()),
        *(
            f"{key} has the shape {_size(stored[key].shape)} instead of {_size(own[key])}"
            for key in own.keys() & stored.keys()
            if own[key] != stored[key].shape
        ),
    )
    if problems:
        raise UserError(f"{path} does not fit {name}: {min(problems)} ({len(problems)} such differences).")


def _is_safetensors(path: Path) -> bool:
    """By its first bytes, which in no other file of weights say this."""
    with path.open("rb") as file:
        return file.read(9)[8:] == b"{"


def _known_to_timm(name: str) -> bool:
    """Whether a name is that of a model in timm, with or without a tag; never one of a hub or a folder."""
    if not re.fullmatch(r"\w+(\.\w+)?", name, re.ASCII) or not timm.is_model(name.split(".")[0]):
        return False
    try:
        return "." not in name or timm.get_pretrained_cfg(name) is not None
    except RuntimeError:  # it has no such tag
        return False


def _check_finite(tensors: Mapping[str, Tensor], source: Path | str) -> None:
    """Raises UserError for weights that hold NaN or infinities, or do so once they are made float32."""
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not torch.isfinite(tensor.float()).all():
            raise UserError(f"{source}: its tensor {name} holds NaN or infinities. The training that made it failed.")


def initialize_from(backbone: Backbone, source: Path | str) -> Start:
    """Loads existing weights into a backbone.

    Args:
        backbone: changed in place.
        source: "imagenet" for timm's own pretrained weights, a run folder, or a file, see `read_tensors`, of timm,
            torchvision, densecl or any training: the weights are found wherever they stand in it, see `best_fit`.
            Those for another image size, patch size or number of channels are adapted as timm does it.

    Raises:
        UserError: if the file cannot be read, few tensors match by name and shape, some have a shape that cannot be
            adapted, or hold NaN.
    """
    path = None if source == "imagenet" else weights_file(Path(source))
    if path is not None and not Path(source).exists():
        raise UserError(f"{source}: no such run or file of weights.{nearest(Path(source).name, ('imagenet',))}")
    if path is None:
        pretrained = _download(backbone)
        file = TensorFile({name: Stored.of(one) for name, one in pretrained.state_dict().items()}, ordered=True)
    else:
        file = read_tensors(path)
    fit = best_fit(file, backbone)
    own = backbone.model.state_dict()
    idle = {name for name, parameter in backbone.model.named_parameters() if not parameter.requires_grad}
    total = [name for name in own if name in fit.tensors or not (name in idle or is_counter(name))]
    tensors = _adapted(fit, backbone)
    wrong = [name for name in tensors if tensors[name].shape != own[name].shape]
    matched = {name: tensor for name, tensor in tensors.items() if name not in wrong}
    if len(matched) < LEAST_MATCHED * len(total):
        example = next(iter(file.tensors), "nothing")
        raise UserError(
            f"{source}: only {len(matched)} of {len(own)} tensors of {backbone.name} matched by name and shape"
            f" (the file has {len(file.tensors)}, such as '{_shown(example)}'). Is it another architecture?"
        )
    if wrong:
        first = wrong[0]
        raise UserError(
            f"{source}: {len(wrong)} of {len(total)} tensors of {backbone.name} have another shape, such as {first}:"
            f" {_size(tensors[first].shape)} in the file, {_size(own[first].shape)} in {backbone.name}."
            " Is it another architecture?"
        )
    _check_finite(matched, source)
    backbone.model.load_state_dict(matched, strict=False)
    report = f"{len(matched)} of {len(total)} tensors of {backbone.name} matched in {source}"
    if path is not None:
        adapted = [name for name, tensor in tensors.items() if tensor.shape != fit.tensors[name].shape]
        report += f", taken for: {_described(fit, adapted, backbone)}"
    return Start(report, tuple(_warnings(fit, matched, total, backbone.name)), *_normalization_of(backbone, path, fit))


def weights_file(path: Path) -> Path:
    """The file of weights in a folder, ours first; the path itself if it is no folder."""
    if not path.is_dir():
        return path
    return next((path / name for name in IN_A_FOLDER if (path / name).is_file()), path / IN_A_FOLDER[0])


def _adapted(fit: Fit, backbone: Backbone) -> dict[str, Tensor]:
    """The tensors, a first convolution for other channels among them made to fit."""
    own = backbone.model.state_dict()
    first = getattr(backbone.model, "pretrained_cfg", {}).get("first_conv") or ()
    stems = {f"{name}.weight" for name in ((first,) if isinstance(first, str) else first)} or {next(iter(own))}
    tensors = {}
    for name, stored in fit.tensors.items():
        tensor, shape = stored.read(), own[name].shape
        if name in stems and len(shape) == tensor.ndim == 4 and shape[1] == backbone.in_channels != tensor.shape[1]:
            tensor = adapted_to_channels(tensor.float(), backbone.in_channels)
        tensors[name] = tensor
    return tensors


def _described(fit: Fit, adapted: Sequence[str], backbone: Backbone) -> str:
    """What a file was taken for, in words."""
    what = f"the weights under '{_shown(fit.place.removesuffix('.'))}'" if fit.place else "a plain state dict"
    details = [fit.how] if fit.how else []
    details += [f"{name} adapted to images of {backbone.in_channels} channel(s)" for name in adapted]
    if fit.rivals:
        details.append(f"'{_shown(fit.rivals[0].removesuffix('.'))}' would fit as well")
    return what + (f" ({'; '.join(details)})" if details else "")


def _warnings(fit: Fit, matched: Mapping[str, Tensor], total: Sequence[str], architecture: str) -> Iterator[str]:
    missing = [name for name in total if name not in matched]
    if missing:
        more = ", ..." if len(missing) > 3 else ""
        names = ", ".join(missing[:3]) + more
        yield f"warning: not in the file, and so untrained: {names} ({len(missing)} of {len(total)} tensors)"
    parts = {name.split(".")[0] for name in total}
    unused = [name for name in fit.unused if name.split(".")[0] in parts and not is_counter(name)]
    if len(unused) > MUCH_LEFT_OVER * len(total):
        yield (
            f"warning: {len(unused)} more tensors stand in the same parts of the file's network, such as"
            f" {_shown(unused[0])}, and were left out. Is it a larger model than {architecture}?"
        )


def _size(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape)) or "a single number"


def _shown(name: str, limit: int = 80) -> str:
    """A name from a file, fit for the terminal."""
    name = "".join(letter if letter.isprintable() else "?" for letter in name)
    return name if len(name) <= limit else name[: limit - 3] + "..."


def _normalization_of(backbone: Backbone, path: Path | None, fit: Fit) -> tuple[Normalization | None, str]:
    """The normalization that starting weights were trained with, as far as something says it, and what says it."""
    if path is None:
        found, whose = _of_configuration(getattr(backbone.model, "pretrained_cfg", {})), f"timm's for {backbone.name}"
    elif (found := _of_file(path)) is not None:
        whose = "those of the starting weights"
    else:
        # A plain state dict may well be one of timm's own, which say nothing of it themselves.
        found = _of_architecture(backbone.name) if "." in backbone.name or not fit.place else None
        whose = f"timm's for {backbone.name}, as the starting weights do not say theirs"
    return (found, whose) if found is not None and len(found.mean) == backbone.in_channels else (None, "")


def _of_file(path: Path) -> Normalization | None:
    """As the file itself says it, that of the same run, or the ``config.json`` of timm beside it."""
    result = path.parent.parent / "backbone.safetensors" if path.name == "last.ckpt" else path
    if result.is_file() and _is_safetensors(result) and (metadata := read_metadata(result)) is not None:
        return metadata.normalization
    beside = path.with_name("config.json")
    try:
        if beside.stat().st_size > 1_000_000:  # one has 1 kB
            return None
        said = json.loads(beside.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):  # there is none
        return None
    return _of_configuration(said.get("pretrained_cfg")) if isinstance(said, dict) else None


def _of_architecture(name: str) -> Normalization | None:
    """That of the tag in a timm name; without one, that of all tags of the architecture if they agree."""
    if not _known_to_timm(name):
        return None
    tagged = [name] if "." in name else timm.list_pretrained(f"{name}.*")
    found = {_of_configuration(said.to_dict()) for said in map(timm.get_pretrained_cfg, tagged) if said is not None}
    return found.pop() if len(found) == 1 else None


def _of_configuration(said: Any) -> Normalization | None:
    """That of a configuration of timm's."""
    mean, std = (said.get(name) if isinstance(said, dict) else None for name in ("mean", "std"))
    mean, std = (list(one) if isinstance(one, (list, tuple)) else [] for one in (mean, std))
    if not mean or not _are_numbers(mean, len(mean)) or not _are_numbers(std, len(mean)) or min(std) <= 0:
        return None
    return Normalization(tuple(mean), tuple(std))


def _download(backbone: Backbone) -> nn.Module:
    try:
        return create_model(
            backbone.name, channels=backbone.in_channels, output_stride=backbone.output_stride, pretrained=True
        )
    except Exception as error:  # the hub's client raises many kinds, none of them its own base class
        raise UserError(
            f"imagenet: timm could not get pretrained weights for {backbone.name}: {one_line(error)}"
            " Offline? Then download them elsewhere and give the file."
        ) from error
