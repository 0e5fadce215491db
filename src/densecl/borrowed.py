"""What is borrowed from the caller and given back as it was: the modes of a module, torch's random numbers."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator, Mapping
from typing import TypeVar

import torch
from torch import nn

Module = TypeVar("Module", bound=nn.Module)


@contextlib.contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Evaluation mode and no gradient; afterwards the module and every part of it are in the mode they were in."""
    modes = {part: part.training for part in module.modules()}
    module.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        set_modes(modes)


def set_modes(modes: Mapping[nn.Module, bool]) -> None:
    """Puts each part of a module, which stands before its own parts, into training mode or into evaluation mode.

    By its own `train`, which may have more to do: some of timm's models keep what they computed in evaluation mode
    until it is called.
    """
    for part, training in modes.items():
        if part.training != training:
            part.train(training)


def copy_to_train(module: Module) -> Module:
    """A copy in training mode.

    Parts in evaluation mode of a module that is in training mode, such as frozen batch norm, were put there by the
    owner and stay so. A module that is in evaluation mode altogether was used before; its copy trains altogether.
    """
    copied = copy.deepcopy(module)
    return copied if copied.training else copied.train()


@contextlib.contextmanager
def seeded(seed: int, device: torch.device | None = None) -> Iterator[None]:
    """Chance that follows from a seed, on the CPU and on the device in use; afterwards it is the caller's again.

    Other GPUs are left alone (`torch.manual_seed` would seed them all), and without one CUDA is not even started.
    """
    gpus = [device] if device is not None and device.type == "cuda" else []
    with torch.random.fork_rng(devices=gpus):
        torch.default_generator.manual_seed(seed)
        for gpu in gpus:
            with torch.cuda.device(gpu):
                torch.cuda.manual_seed(seed)
        yield
