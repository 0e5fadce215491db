"""Existing weights as a start: found in a file of any kind, and adapted to the backbone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor, nn

from densecl.errors import UserError, nearest, one_line
from densecl.model.backbone import Backbone
from densecl.model.timm_models import create_model
from densecl.model.weights import hub
from densecl.model.weights.fitting import Fit, adapted_to_channels, best_fit, why_not
from densecl.model.weights.layouts import Layout, layout_of
from densecl.model.weights.licenses import License, of_file, of_timm
from densecl.model.weights.normalization import normalization_of
from densecl.model.weights.pickles import Stored
from densecl.model.weights.tensor_files import TensorFile, check_finite, is_counter, read_tensors, shown, size
from densecl.names import counted
from densecl.normalization import Normalization
from densecl.weights_file import stated_architecture, weights_file

#: If a smaller fraction of the tensors matches, the weights must be those of another model.
LEAST_MATCHED = 0.5

#: If a larger fraction of tensors is left over in the same parts of the network, the file may be of a larger model.
MUCH_LEFT_OVER = 0.05


class Start(NamedTuple):
    """What came of a start from existing weights.

    Attributes:
        report: how many tensors matched, and what the file was taken for.
        warnings: what the user should look at.
        normalization: the one that the weights were trained with, if their configuration says it and the images have as
            many channels.
        whose: in words, where the normalization comes from.
        missing: tensors of the backbone that are not in the file.
        channels: of the images that the file's network takes, if they are others than the backbone's.
        license: of the weights.
    """

    report: str
    warnings: tuple[str, ...]
    normalization: Normalization | None
    whose: str
    missing: tuple[str, ...] = ()
    channels: int | None = None
    license: License = License()


def initialize_from(backbone: Backbone, source: Path | str) -> Start:
    """Loads existing weights into a backbone.

    Args:
        backbone: changed in place.
        source: "imagenet" for timm's pretrained weights, a run folder, or a file of any training (`read_tensors`). The
            weights are found wherever they stand in it (`best_fit`). Weights for another image size, patch size or
            number of channels are adapted as timm does it.

    Raises:
        UserError: if the file cannot be read, if few tensors match by name and shape, or if some hold NaN or cannot be
            adapted.
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
            f" (the file has {len(file.tensors)}, such as '{shown(example)}'). {_which(path, backbone.name)}"
        )
    if wrong:
        first = wrong[0]
        raise UserError(
            f"{source}: {len(wrong)} of {len(total)} tensors of {backbone.name} have another shape, such as {first}:"
            f" {size(tensors[first].shape)} in the file, {size(own[first].shape)} in {backbone.name}."
            f" {_which(path, backbone.name)}"
        )
    check_finite(matched, source)
    backbone.model.load_state_dict(matched, strict=False)
    adapted = [name for name, tensor in tensors.items() if tensor.shape != fit.tensors[name].shape]
    report = f"{len(matched)} of {len(total)} tensors of {backbone.name} matched in {source}"
    layout = None
    if path is not None:
        layout = layout_of(fit.place, fit.naming, file.tensors, file.top)
        report += f", taken for: {_described(fit, layout, adapted, backbone)}"
    missing = tuple(name for name in total if name not in matched)
    channels = fit.tensors[adapted[0]].shape[1] if adapted else None
    warnings = tuple(_warnings(fit, layout, missing, total, backbone.name))
    license = of_timm(backbone.model) if path is None else of_file(path)
    return Start(report, warnings, *normalization_of(backbone, path, fit), missing, channels, license)


def _which(path: Path | None, asked: str) -> str:
    """What to do about weights that are not of the network that was asked for, as far as they say of which they are."""
    said = None if path is None else stated_architecture(path)
    if said is None or said.split(".")[0] == asked.split(".")[0]:
        return "Is it another architecture?"
    return f"It says that it is a {shown(said)}: --backbone {shown(said)}."


def _adapted(fit: Fit, backbone: Backbone) -> dict[str, Tensor]:
    """The tensors. A first convolution for another number of channels is adapted."""
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


def _described(fit: Fit, layout: Layout | None, adapted: Sequence[str], backbone: Backbone) -> str:
    """What a file was taken for, in words."""
    where = f"the weights under '{shown(fit.place.removesuffix('.'))}'" if fit.place else ""
    what = ", ".join(part for part in (layout.name if layout is not None else "", where) if part)
    details = [fit.how] if fit.how else []
    details += [f"{name} adapted to images of {counted(backbone.in_channels, 'channel')}" for name in adapted]
    details += [why_not(fit.place, rival) for rival in fit.rivals[:1]]
    return what + (f" ({'; '.join(details)})" if details else "")


def _warnings(
    fit: Fit, layout: Layout | None, missing: Sequence[str], total: Sequence[str], architecture: str
) -> Iterator[str]:
    if layout is not None and layout.warning:
        yield f"warning: {layout.warning}"
    if missing:
        more = ", ..." if len(missing) > 3 else ""
        names = ", ".join(missing[:3]) + more
        yield f"warning: not in the file, and so untrained: {names} ({len(missing)} of {len(total)} tensors)"
    parts = {name.split(".")[0] for name in total}
    unused = [name for name in fit.unused if name.split(".")[0] in parts and not is_counter(name)]
    if len(unused) > MUCH_LEFT_OVER * len(total):
        yield (
            f"warning: {len(unused)} more tensors stand in the same parts of the file's network, such as"
            f" {shown(unused[0])}, and were left out. Is it a larger model than {architecture}?"
        )


class NotDownloaded(UserError):
    """timm's weights could not be had.

    Attributes:
        why: a sentence.
    """

    def __init__(self, why: str, said: dict[str, Any]) -> None:
        self.why = why
        where = hub.what_to_bring(said)
        bring = f"Bring {where} from a machine with a network, and give it" if where else "Give a file of weights"
        how = "--init FILE with pretrain, the file with other commands"
        super().__init__(f"{why} {bring} in place of 'imagenet': {how}.")


def _download(backbone: Backbone) -> nn.Module:
    said: dict[str, Any] = getattr(backbone.model, "pretrained_cfg", {})
    if not hub.can_be_had(said):
        raise NotDownloaded(f"timm's weights of {backbone.name} cannot be downloaded here.", said)
    try:
        return create_model(
            backbone.name, channels=backbone.in_channels, output_stride=backbone.output_stride, pretrained=True
        )
    except Exception as error:  # the hub's client raises many kinds without a common base class
        why = f"timm could not get pretrained weights for {backbone.name}: {one_line(error)}"
        raise NotDownloaded(why, said) from error
