"""The checkpoint of a run: everything needed to go on, and nothing that has to be unpickled.

It holds no random state: a sample's randomness follows from (seed, epoch, index), a step's from (seed, step). So the
step alone is the position in the data.
"""

from __future__ import annotations

import contextlib
import math
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypedDict

import safetensors
import torch

from densecl.errors import UserError
from densecl.files import free_bytes, replacing

#: Changes with the names in a checkpoint; `_UPGRADES` makes this one of older ones.
FORMAT = "densecl checkpoint 2"

#: A former format, the one after it, and the tensors of `DenseCL` that got new names in between.
_UPGRADES = {
    "densecl checkpoint 1": (
        "densecl checkpoint 2",
        {
            "global_objective.centre": "global_objective.center",
            "dense_objective.centre": "dense_objective.center",
        },
    ),
}


class _Checkpoint(TypedDict):
    """What every ``last.ckpt`` holds."""

    format: str
    step: int  # steps done
    seconds: float  # spent training, for --time-limit
    images: int  # in the data, which must not change
    fingerprint: str  # of the data, from `ImageSource`
    model: dict[str, Any]  # state dict of `DenseCL`: both encoders, both queues with their positions
    optimizer: dict[str, Any]


class Checkpoint(_Checkpoint, total=False):
    """What ``last.ckpt`` holds."""

    loss_scale: dict[str, Any]  # how much the loss is scaled, with --precision fp16
    start_cells: torch.Tensor  # of the fixed pairs as the run began, in float16: see `watching`


def save_checkpoint(checkpoint: Checkpoint, path: Path) -> None:
    """Writes a checkpoint beside its place and moves it there.

    Raises:
        UserError: if it cannot be written; the old one is then still whole.
    """
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as file:
            torch.save(dict(checkpoint), file)


def try_saving(path: Path) -> None:
    """Tries to write a file where the checkpoint will be, to replace it, and to remove it.

    Raises:
        UserError: if that fails. Better now than after an hour of training.
    """
    trial = path.with_name(f"{path.name}.trial")
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        for _ in range(2):
            with replacing(trial) as file:
                file.write(b"The checkpoints of the run can be written here.")
    with contextlib.suppress(OSError):  # some file systems keep what they have
        trial.unlink()


def load_checkpoint(path: Path) -> Checkpoint:
    """Reads a checkpoint onto the CPU: tensors and plain values only. One of a former format is brought to this one.

    Raises:
        UserError: if the file is damaged or is no checkpoint of densecl.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, pickle.UnpicklingError, EOFError, ValueError, KeyError) as error:
        raise UserError(f"{path} is damaged and cannot be resumed: {type(error).__name__}.") from error
    content = _upgraded(content)
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise UserError(f"{path} is no checkpoint of this version of densecl (it lacks the format '{FORMAT}').")
    missing = Checkpoint.__required_keys__ - content.keys()
    if missing:
        raise UserError(f"{path} is no whole checkpoint: it lacks {', '.join(sorted(missing))}.")
    wrong = [name for name, right in _RIGHT.items() if name in content and not right(content[name])]
    if wrong:
        raise UserError(f"{path} is damaged and cannot be resumed: its {wrong[0]} is {str(content[wrong[0]])[:40]!r}.")
    return Checkpoint(**content)


def _upgraded(content: Any) -> Any:
    """A checkpoint of a former format in the present one. Anything else is returned as it is."""
    while isinstance(content, dict) and isinstance(content.get("model"), dict) and content.get("format") in _UPGRADES:
        following, new_names = _UPGRADES[content["format"]]
        model = {new_names.get(name, name): value for name, value in content["model"].items()}
        content = {**content, "format": following, "model": model}
    return content


#: What each field of a checkpoint must be. A bool is no number here.
_RIGHT: dict[str, Callable[[Any], bool]] = {
    "step": lambda value: type(value) is int and value >= 0,
    "seconds": lambda value: type(value) in (int, float) and 0 <= value < math.inf,
    "images": lambda value: type(value) is int and value >= 1,
    "fingerprint": lambda value: isinstance(value, str),
    "model": lambda value: isinstance(value, dict),
    "optimizer": lambda value: isinstance(value, dict),
    "loss_scale": lambda value: isinstance(value, dict),
    "start_cells": lambda value: isinstance(value, torch.Tensor) and value.dtype == torch.float16 and value.ndim == 2,
}


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turns the many ways in which writing `path` can fail into one clear line.

    Raises:
        UserError: for a full disk, a missing permission and the like.
    """
    try:
        yield
    except (OSError, safetensors.SafetensorError, RuntimeError) as error:
        # torch wraps what a file raises; safetensors keeps only its words.
        cause = error if isinstance(error, OSError) else error.__context__
        if not isinstance(cause, OSError) and not isinstance(error, safetensors.SafetensorError):
            raise
        reason = (cause.strerror if isinstance(cause, OSError) else None) or str(error)
        free = free_bytes(path.parent) if "No space" in reason and path.parent.is_dir() else None
        if free is not None:
            reason += f" ({free / 2**20:.0f} MiB are free, too few)"
        folders = (path, *path.parents[:2])
        if any((folder / "checkpoints" / "last.ckpt").is_file() for folder in folders):
            then = "go on with --resume; the last checkpoint is whole"
        elif any((folder / name).is_file() for folder in folders for name in ("recipe.yaml", "finetune.json")):
            then = "begin again with --resume; there is no checkpoint yet"
        else:
            then = "begin again"
        raise UserError(f"Cannot write {path}: {reason}. Put that right and {then}.") from error
