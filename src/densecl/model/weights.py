"""The files of backbones: written, read, and taken as a start."""

from __future__ import annotations

import json
import os
import pickle
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import safetensors
import safetensors.torch
import timm
import torch
from torch import Tensor, nn

from densecl.errors import UserError
from densecl.model.backbone import Backbone, create_backbone, create_model, one_line

#: Below this share of matched tensors, starting weights are taken for those of another model.
LEAST_MATCHED = 0.5


class Normalisation(NamedTuple):
    """Mean and standard deviation of each channel that a backbone was trained with, on the 0-1 scale."""

    mean: tuple[float, ...]
    std: tuple[float, ...]


def save_backbone(backbone: Backbone, path: Path | str, normalisation: Normalisation) -> None:
    """Writes the weights under their library's own names, with what is needed to use them in the metadata.

    The file is written beside its place and moved into it.
    """
    path = Path(path)
    metadata = {
        "format": "pt",
        "architecture": backbone.name,
        "in_channels": json.dumps(backbone.in_channels),
        "output_stride": json.dumps(backbone.output_stride),
        "mean": json.dumps(list(normalisation.mean)),
        "std": json.dumps(list(normalisation.std)),
    }
    # Clones, because safetensors refuses tensors that share their memory, as tied weights do.
    tensors = {
        name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
        for name, tensor in backbone.model.state_dict().items()
    }
    handle, beside = tempfile.mkstemp(dir=path.parent, prefix=path.name, suffix=".part")
    os.close(handle)
    try:
        safetensors.torch.save_file(tensors, beside, metadata)
        with open(beside, "rb") as written:
            os.fsync(written.fileno())
        os.chmod(beside, 0o644)  # mkstemp's files are private
        os.replace(beside, path)
    finally:
        Path(beside).unlink(missing_ok=True)


def load_backbone(path: Path | str, module: nn.Module | None = None) -> tuple[Backbone, Normalisation]:
    """The backbone of a run folder or of a ``backbone.safetensors``, and the normalisation it was trained with.

    Args:
        path: the folder or the file.
        module: for weights of a module that timm does not know, an instance of it.

    Raises:
        UserError: if there is no such file, it was not written by densecl, or it does not fit the model.
    """
    path = Path(path)
    if path.is_dir():
        path = path / "backbone.safetensors"
    state = _read_weights(path)
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
        name = metadata["architecture"]
        normalisation = Normalisation(tuple(json.loads(metadata["mean"])), tuple(json.loads(metadata["std"])))
        in_channels, output_stride = json.loads(metadata["in_channels"]), json.loads(metadata["output_stride"])
    except (KeyError, ValueError, TypeError, safetensors.SafetensorError) as error:
        raise UserError(f"{path} does not say what it holds; a backbone.safetensors of a densecl run does.") from error
    if module is None and not timm.is_model(name.split(".")[0]):
        raise UserError(f"{path} holds the weights of a {name}, which timm does not know. Give an instance as module=.")
    if module is None:
        backbone = create_backbone(name, channels=in_channels, output_stride=output_stride)
    else:
        backbone = Backbone(module, name=name, in_channels=in_channels, output_stride=output_stride)
    try:
        backbone.model.load_state_dict(state)
    except RuntimeError as error:
        raise UserError(f"{path} does not fit {name}: {one_line(error)}") from error
    return backbone, normalisation


def initialise_from(backbone: Backbone, source: Path | str) -> str:
    """Loads existing weights into a backbone and says in one line how many tensors matched.

    Args:
        backbone: changed in place.
        source: "imagenet" for timm's own pretrained weights, a run folder, or a file (.safetensors or
            .pth/.pt/.ckpt, never unpickling objects) of timm, torchvision, densecl or anything that
            keeps the same tensors under a prefix, such as ``module.encoder_q.``.

    Raises:
        UserError: if the file cannot be read, or few tensors match by name and shape.
    """
    own = backbone.model.state_dict()
    if source == "imagenet":
        found = _download(backbone).state_dict()
    else:
        path = Path(source)
        found = _read_weights(path / "backbone.safetensors" if path.is_dir() else path)
    prefix = _best_prefix(found, own)
    matched = {
        name: found[prefix + name]
        for name in own
        if prefix + name in found and found[prefix + name].shape == own[name].shape
    }
    if len(matched) < LEAST_MATCHED * len(own):
        example = next(iter(found), "nothing")
        raise UserError(
            f"{source}: only {len(matched)} of {len(own)} tensors of {backbone.name} matched by name and shape"
            f" (the file has {len(found)}, such as '{example[:80]}'). Is it another architecture?"
        )
    backbone.model.load_state_dict(matched, strict=False)
    message = f"{len(matched)} of {len(own)} tensors of {backbone.name} matched in {source}"
    missing = [name for name in own if name not in matched]
    return f"{message}; not: {', '.join(missing[:3])}{', ...' if len(missing) > 3 else ''}" if missing else message


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


def _is_pickled(path: Path) -> bool:
    """Whether a file begins as a pickle does, or as the archive in which torch keeps one."""
    with path.open("rb") as file:
        return file.read(2).startswith((b"\x80", b"PK"))


def _read_weights(path: Path) -> dict[str, Tensor]:
    """The tensors of a file by name, from wherever in it they stand."""
    if not path.is_file():
        raise UserError(f"{path}: no such file of weights.")
    try:
        if path.suffix == ".safetensors":
            return safetensors.torch.load_file(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (
        Exception
    ) as error:  # torch raises RuntimeError, UnpicklingError, EOFError, KeyError, ... by the kind of damage
        if isinstance(error, pickle.UnpicklingError) and "Unsupported" in str(error) and _is_pickled(path):
            raise UserError(
                f"{path} holds pickled objects, which could run any code and are never read. Save its state dict alone:"
                " torch.save(model.state_dict(), FILE)."
            ) from error
        if isinstance(error, PermissionError):
            raise
        raise UserError(
            f"{path} cannot be read as weights: it is damaged, or a file of another kind"
            f" ({type(error).__name__}: {one_line(error)})."
        ) from error
    while isinstance(content, Mapping) and not any(isinstance(value, Tensor) for value in content.values()):
        inner = [value for key, value in content.items() if key in ("state_dict", "model", "model_state", "teacher")]
        if not inner:
            break
        content = inner[0]
    if not isinstance(content, Mapping):
        raise UserError(f"{path} holds no weights by name but a {type(content).__name__}.")
    return {str(key): value for key, value in content.items() if isinstance(value, Tensor)}


def _best_prefix(found: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> str:
    """The prefix under which most of our tensors stand in a file; of equals the first, so query before key."""
    anchor = next(iter(own))
    prefixes = [key.removesuffix(anchor) for key in found if key.endswith(anchor)] or [""]
    return max(prefixes, key=lambda prefix: sum(prefix + name in found for name in own))
