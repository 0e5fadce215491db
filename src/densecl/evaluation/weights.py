"""The weights that are compared: of runs, of files, of timm by name, random ones, or ImageNet's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import timm
import torch
from torch import Tensor

from densecl.borrowed import seeded
from densecl.errors import UserError, nearest
from densecl.model.backbone import Backbone, create_backbone
from densecl.model.timm_models import known_to_timm
from densecl.model.weights import initialize_from, load_backbone, read_metadata
from densecl.names import shown
from densecl.normalization import IMAGENET as IMAGENET_NORMALIZATION
from densecl.normalization import Normalization
from densecl.weights_file import weights_file

RANDOM, IMAGENET = "random", "imagenet"

#: Feature maps are judged at this stride unless another is asked for. It is finer than most networks' own.
USUAL_STRIDE = 16


@dataclass(frozen=True)
class Weights:
    """Weights in memory, from which backbones are made.

    Attributes:
        name: as the user gave it.
        architecture: timm's name of the network.
        in_channels: channels of the images.
        normalization: what the pixels are normalized by.
        state: the state dict of the timm model. None: random weights.
        warnings: what the user should know of a file of others, such as tensors that it lacks.
        report: what a file of others was taken for, and how many tensors matched. Empty for other weights.
        output_stride: that the network was trained at, if it was asked for.
        provenance: where the weights come from (`model.weights.result.PROVENANCE`), as far as the file says it.
    """

    name: str
    architecture: str
    in_channels: int
    normalization: Normalization
    state: Mapping[str, Tensor] | None
    warnings: tuple[str, ...] = ()
    report: str = ""
    output_stride: int | None = None
    provenance: Mapping[str, str] = field(default_factory=dict)

    @property
    def random(self) -> bool:
        return self.state is None

    def backbone(self, output_stride: int | None, seed: int = 0, usual: int | None = USUAL_STRIDE) -> Backbone:
        """A backbone with these weights, on the GPU if there is one.

        Args:
            output_stride: stride of the feature map. None: `usual` if the architecture has it, else its own.
            seed: draws the weights, if they are random.
            usual: None: the architecture's own stride.

        Raises:
            UserError: the architecture cannot have the stride.
        """
        try:
            backbone = self._drawn(output_stride or usual, seed)
        except UserError:
            if output_stride is not None:
                raise
            backbone = self._drawn(None, seed)
        if self.state is not None:
            backbone.model.load_state_dict(self.state)
        # Convolutions are faster in this layout, on a CPU, too.
        backbone = backbone.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        return backbone.to("cuda" if torch.cuda.is_available() else "cpu")

    def _drawn(self, output_stride: int | None, seed: int) -> Backbone:
        with seeded(seed):
            return create_backbone(self.architecture, channels=self.in_channels, output_stride=output_stride)


@torch.random.fork_rng(devices=[])  # networks are drawn here; the caller's random numbers must not change by that
def open_weights(names: Sequence[str | Path], architecture: str | None = None) -> list[Weights]:
    """The weights of these names. All are checked before any work is done.

    Args:
        names: run folders, files, "random", "imagenet", or timm's names such as "resnet50.a1_in1k", also written with a
            colon. A backbone.safetensors of ours says what it is. Other files (safetensors, .pth, .pt, .ckpt of timm,
            torchvision or any self-supervised code) need `architecture`.
        architecture: timm's name of the network, for files that do not say it. Not given: that of the first weights
            that do. Theirs is that of "random" and "imagenet", too; only if none say it, it is `architecture`.

    Raises:
        UserError: a file that is not there, does not fit, or does not say what it is; a name given twice; no weights
            need `architecture`, and some say another network.
    """
    names = [str(name) for name in names]
    if not names:
        raise UserError("Give weights: run folders, backbone.safetensors files, 'random'.")
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise UserError(f"The weights '{twice}' are given twice.")
    of_timm = {name: model for name in names if (model := _timm_name(name)) is not None}
    for name in names:
        if name not in (RANDOM, IMAGENET, *of_timm) and not Path(name).expanduser().exists():
            hint = nearest(name, (RANDOM, IMAGENET)) or _nearest_tag(name)
            raise UserError(f"{name}: no such run folder or file of weights.{hint}")

    ours = {name: _load(name) for name in names if _is_ours(name)}
    known = next(iter(ours.values()), None)
    # timm's tag says whose weights, and is left out: "imagenet" means those that timm prefers.
    said = {name: model.split(".")[0] for name, model in of_timm.items()}
    said |= {name: weights.architecture for name, weights in ours.items()}
    others = _of_others(names, said, architecture)
    first = next((said[name] for name in names if name in said), architecture)
    channels = known.in_channels if known else 3
    found = []
    for name in names:
        if name in ours:
            found.append(ours[name])
            continue
        if name in of_timm:
            found.append(_initialized(name, of_timm[name], IMAGENET, known))
            continue
        network = first if name in (RANDOM, IMAGENET) else architecture or first
        if network is None:
            raise UserError(f"{name} does not say which backbone it is for. Give --backbone, such as resnet50.")
        if name == RANDOM:
            create_backbone(network)  # raises for an unknown name
            normalization = known.normalization if known else IMAGENET_NORMALIZATION
            found.append(Weights(name, network, channels, normalization, None, provenance={"init": "random weights"}))
        elif name == IMAGENET:
            found.append(_initialized(name, network, IMAGENET, known))
        else:
            found.append(_initialized(name, network, Path(name).expanduser(), known))
    ignored = f"--backbone {shown(architecture or '')} is only for weights that do not say theirs"
    return [
        replace(one, warnings=(*one.warnings, f"it says that it is a {shown(one.architecture)}; {ignored}"))
        if one.name in others
        else one
        for one in found
    ]


def _of_others(names: Sequence[str], said: Mapping[str, str], architecture: str | None) -> list[str]:
    """The weights that say another network than the one that was given for those that do not say it.

    Raises:
        UserError: there are such, and none that need to be told, so `architecture` would be ignored.
    """
    if architecture is None:
        return []
    others = [name for name in names if name in said and said[name].split(".")[0] != architecture.split(".")[0]]
    if others and all(name in (RANDOM, IMAGENET, *said) for name in names):
        name = others[0]
        raise UserError(
            f"--backbone {shown(architecture)}: {shown(name)} says that it is a {shown(said[name])}. Leave it out."
        )
    return others


def _timm_name(name: str) -> str | None:
    """timm's name of a model, which may be given with a colon before the tag; None if it is none, or is a file."""
    model = name.replace(":", ".", 1)
    if name in (RANDOM, IMAGENET) or Path(name).expanduser().exists() or not known_to_timm(model):
        return None
    return model


def _nearest_tag(name: str) -> str:
    """A hint for a model of timm with a wrong tag."""
    model, between, tag = name.partition(":" if ":" in name else ".")
    if not tag or "." in model or not known_to_timm(model):
        return ""
    tags = [one.partition(".")[2] for one in timm.list_pretrained(f"{model}.*")]
    if nearest(tag, tags):  # whole names are alike by the model alone
        return nearest(name, [f"{model}{between}{one}" for one in tags])
    return f" timm has these of {model}: {', '.join(tags[:5])}." if tags else ""


def _is_ours(name: str) -> bool:
    """Whether it is a file of ours, which says what it is, or a folder with one."""
    if name in (RANDOM, IMAGENET) or _timm_name(name) is not None:
        return False
    path = Path(name).expanduser()
    if path.is_dir():
        return weights_file(path).name == "backbone.safetensors"
    return path.suffix == ".safetensors" and read_metadata(path) is not None


def _load(name: str) -> Weights:
    path = Path(name).expanduser()
    backbone, normalization = load_backbone(path)
    metadata = read_metadata(weights_file(path))
    return Weights(
        name,
        backbone.name,
        backbone.in_channels,
        normalization,
        backbone.model.state_dict(),
        output_stride=backbone.output_stride,
        provenance={} if metadata is None else metadata.provenance,
    )


def _initialized(name: str, architecture: str, source: Path | str, known: Weights | None) -> Weights:
    """Existing weights, adapted to images of as many channels as `known` takes: weights of ours beside them."""
    channels = known.in_channels if known else 3
    backbone = create_backbone(architecture, channels=channels)
    start = initialize_from(backbone, source)
    usual = known.normalization if known and channels != len(IMAGENET_NORMALIZATION.mean) else IMAGENET_NORMALIZATION
    normalization = start.normalization or usual
    provenance = {}
    if source == IMAGENET:
        said = getattr(backbone.model, "pretrained_cfg", {})
        tag = said.get("tag")
        provenance["init"] = f"timm's {architecture.split('.')[0]}{f'.{tag}' if tag else ''}"
    if start.license.name is not None:
        provenance["license"] = start.license.name
    return Weights(
        name,
        architecture,
        backbone.in_channels,
        normalization,
        backbone.model.state_dict(),
        start.warnings,
        report="" if source == IMAGENET else start.report,
        provenance=provenance,
    )
