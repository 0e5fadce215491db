"""The result of a run, ``backbone.safetensors``: written and read."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from densecl.errors import UserError, one_line
from densecl.files import replacing
from densecl.model.backbone import Backbone, create_backbone, unwrapped
from densecl.model.timm_models import create_model, known_to_timm
from densecl.model.weights.pickles import Stored
from densecl.model.weights.tensor_files import check_finite, is_safetensors, read_tensors, shown, size
from densecl.normalization import Normalization

#: Channels of an image that a file of weights may ask for.
MOST_CHANNELS = 4096

#: What the metadata may say of where the weights come from; all of it text. Files of older versions have less.
PROVENANCE = (
    "method",
    "dense_weight",
    "image_size",  # side of a view in pixels
    "steps",
    "images",  # how many
    "data_fingerprint",  # of their names
    "init",  # what the run started from
    "teacher",
    "teacher_license",
    "license",
    "densecl_version",
    "best_by",  # of a run's best weights: the number by which they are
    "best",  # ... and what it was
)


class Metadata(NamedTuple):
    """What a ``backbone.safetensors`` says of itself."""

    architecture: str
    in_channels: int
    output_stride: int | None
    normalization: Normalization
    provenance: Mapping[str, str] = MappingProxyType({})  # what it has of `PROVENANCE`


def save_backbone(
    backbone: Backbone,
    path: Path | str,
    normalization: Normalization,
    origin: Mapping[str, str] = MappingProxyType({}),
) -> None:
    """Writes the weights under their library's own names. The metadata says what is needed to use them.

    `origin` says where the weights come from, and is added to the metadata. Its names are those of `PROVENANCE`.

    The same weights give the same bytes. The file is written beside its place and moved into it.
    """
    metadata = {"format": "pt", **described(backbone, normalization, origin)}
    write_tensors(unwrapped(backbone.model).state_dict(), Path(path), metadata)


def write_tensors(state: Mapping[str, Tensor], path: Path, metadata: Mapping[str, str]) -> None:
    """Writes a safetensors file beside its place and moves it there. The same content gives the same bytes.

    Raises:
        OSError: it cannot be written.
    """
    # Clones, because safetensors refuses tensors that share memory, and tied weights do.
    tensors = {
        name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format) for name, tensor in state.items()
    }
    header, values = _safetensors(tensors, metadata)
    with replacing(path) as file:
        file.write(header)
        file.write(values)


def described(
    backbone: Backbone, normalization: Normalization, origin: Mapping[str, str] = MappingProxyType({})
) -> dict[str, str]:
    """What is needed to use a backbone, and where it comes from, as metadata."""
    return {
        "architecture": backbone.name,
        "in_channels": json.dumps(backbone.in_channels),
        "output_stride": json.dumps(backbone.output_stride),
        "mean": json.dumps(list(normalization.mean)),
        "std": json.dumps(list(normalization.std)),
        **origin,
    }


def _safetensors(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> tuple[bytes, memoryview]:
    """Header and values of a safetensors file, with sorted metadata. The library writes them in random order."""
    content = memoryview(safetensors.torch.save(dict(tensors), dict(metadata)))
    size = int.from_bytes(content[:8], "little")
    header = json.loads(bytes(content[8 : 8 + size]))
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    assert len(text) <= size, "the library writes JSON without spaces too"
    return bytes(content[:8]) + text.ljust(size), content[8 + size :]


def read_metadata(path: Path | str) -> Metadata | None:
    """The metadata of a file, checked; None if the file is not of densecl.

    Raises:
        UserError: if the metadata cannot be right.
    """
    path = Path(path)
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            said = file.metadata() or {}
    except safetensors.SafetensorError as error:
        raise UserError(f"{path} cannot be read as weights: it is damaged or cut off ({one_line(error)}).") from error
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
    mean = value("mean", numbers, lambda values: are_numbers(values, channels))
    std = value("std", f"{numbers} above 0", lambda values: are_numbers(values, channels) and min(values) > 0)
    provenance = {name: said[name] for name in PROVENANCE if name in said}
    return Metadata(said["architecture"], channels, stride, Normalization(tuple(mean), tuple(std)), provenance)


def _is_count(value: Any) -> bool:
    return type(value) is int and 1 <= value <= MOST_CHANNELS


def are_numbers(values: Any, count: int) -> bool:
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
    metadata = read_metadata(path) if is_safetensors(path) else None
    if metadata is None:
        raise UserError(f"{path} does not say what it holds; a backbone.safetensors of a densecl run does.")
    name = metadata.architecture
    if module is None and not known_to_timm(name):
        raise UserError(
            f"{path} holds the weights of a {shown(name) or 'nameless model'}, which timm does not know."
            " Give an instance as module=."
        )
    shapes = {"channels": metadata.in_channels, "output_stride": metadata.output_stride}
    if module is None:
        with torch.random.fork_rng(devices=[]):  # what is drawn is overwritten
            drawing = outline(name, **shapes)
            if drawing is not None:
                check_fits(stored, drawing, path, name)
            try:
                backbone = create_backbone(name, **shapes)
            except UserError as error:
                raise UserError(f"{path}: its metadata does not fit together: {error.args[0]}") from error
    else:
        backbone = Backbone(module, name=name, in_channels=metadata.in_channels, output_stride=metadata.output_stride)
    model = unwrapped(backbone.model)
    check_fits(stored, model, path, name)
    model.load_state_dict({name: one.read() for name, one in stored.items()})
    check_finite(model.state_dict(), path)
    return backbone, metadata.normalization


def outline(name: str, *, channels: int, output_stride: int | None) -> nn.Module | None:
    """The model without memory for its weights, because a small file may name a model of many gigabytes.

    None if it cannot be made so. All of timm's 98 families can.
    """
    try:
        with torch.device("meta"):
            return create_model(name, channels=channels, output_stride=output_stride)
    except (NotImplementedError, RuntimeError):
        return None


def check_fits(stored: Mapping[str, Stored], model: nn.Module, path: Path, name: str) -> None:
    """Raises UserError unless the tensors of a file are those of a model, name by name."""
    own = {key: tuple(tensor.shape) for key, tensor in model.state_dict().items()}
    problems = (
        *(f"it lacks {key}" for key in own.keys() - stored.keys()),
        *(f"{shown(key)} is not of that model" for key in stored.keys() - own.keys()),
        *(
            f"{key} has the shape {size(stored[key].shape)} instead of {size(own[key])}"
            for key in own.keys() & stored.keys()
            if own[key] != stored[key].shape
        ),
    )
    if problems:
        raise UserError(f"{path} does not fit {name}: {min(problems)} ({len(problems)} such differences).")
