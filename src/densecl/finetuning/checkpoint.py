"""The checkpoint of a fine-tuning: everything needed to go on to the same end, and nothing to unpickle."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypedDict

import torch
from torch import Tensor

from densecl.errors import UserError
from densecl.files import replacing
from densecl.training.checkpoints import writing

#: Changes with the names in a checkpoint.
FORMAT = "densecl fine-tuning checkpoint 1"


class Checkpoint(TypedDict):
    """What ``checkpoints/last.ckpt`` holds."""

    format: str
    step: int  # steps done
    seconds: float  # spent on them
    fingerprint: str  # of the data, which must not change
    model: dict[str, Any]
    optimizer: dict[str, Any]
    losses: list[float]  # since the last row of metrics.csv
    best: dict[str, Any] | None  # the best validation so far: its step, its first score, and all scores
    generator: Tensor  # state of what draws crops and flips
    random: Tensor  # state of torch's random numbers on the CPU, which sample proposals
    random_gpu: Tensor | None  # and on the GPU


def save_checkpoint(checkpoint: Checkpoint, path: Path) -> None:
    """Writes a checkpoint beside its place and moves it there.

    Raises:
        UserError: it cannot be written; the old one is then still whole.
    """
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as file:
            torch.save(dict(checkpoint), file)


def load_checkpoint(path: Path) -> Checkpoint:
    """Reads a checkpoint onto the CPU: tensors and plain values only.

    Raises:
        UserError: it is damaged, or is no checkpoint of a fine-tuning.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # each kind of damage has its own
        raise UserError(f"{path} is damaged and cannot be resumed: {type(error).__name__}.") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise UserError(f"{path} is no checkpoint of this version of finetune (it lacks the format '{FORMAT}').")
    wrong = [name for name, right in _RIGHT.items() if name not in content or not right(content[name])]
    if wrong:
        raise UserError(f"{path} is damaged and cannot be resumed: its {wrong[0]} is missing or wrong.")
    return Checkpoint(**content)


def _is_state(value: Any) -> bool:
    return isinstance(value, Tensor) and value.dtype == torch.uint8 and value.ndim == 1


#: What each field must be. A bool is no number here.
_RIGHT: dict[str, Callable[[Any], bool]] = {
    "step": lambda value: type(value) is int and value >= 0,
    "seconds": lambda value: type(value) in (int, float) and 0 <= value < math.inf,
    "fingerprint": lambda value: isinstance(value, str),
    "model": lambda value: isinstance(value, dict),
    "optimizer": lambda value: isinstance(value, dict),
    "losses": lambda value: isinstance(value, list) and all(type(one) is float for one in value),
    "best": lambda value: value is None or isinstance(value, dict),
    "generator": _is_state,
    "random": _is_state,
    "random_gpu": lambda value: value is None or _is_state(value),
}
