"""Things of the caller that are given back as they were: modes and buffers of modules, torch's random numbers."""

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
    """Evaluation mode without gradients. Afterwards every part of the module is in the mode it was in."""
    modes = {part: part.training for part in module.modules()}
    module.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        set_modes(modes)


def set_modes(modes: Mapping[nn.Module, bool]) -> None:
    """Puts each part of a module into training or evaluation mode. A module must come before its own parts.

    Calls `train` of each part instead of setting the flag, because a model may do more there: some of timm's models
    drop what they cached in evaluation mode.
    """
    for part, training in modes.items():
        if part.training != training:
            part.train(training)


@contextlib.contextmanager
def frozen(module: nn.Module) -> Iterator[None]:
    """Calls within leave no gradient in the module's parameters, and keep nothing for one."""
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    for parameter in trained:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in trained:
            parameter.requires_grad_(True)


@contextlib.contextmanager
def buffers_kept(*modules: nn.Module) -> Iterator[None]:
    """Gives the buffers back as they were, such as the statistics that batch norm collects in training mode."""
    buffers = [buffer for module in modules for buffer in module.buffers()]
    before = [buffer.clone() for buffer in buffers]
    try:
        yield
    finally:
        for buffer, value in zip(buffers, before, strict=True):
            buffer.copy_(value)


def copy_to_train(module: Module) -> Module:
    """A copy in training mode.

    If the module itself is in training mode, its parts stay as they are: the owner may have frozen batch norm by
    putting it into evaluation mode. If the module is in evaluation mode, the whole copy is put into training mode.
    """
    copied = copy.deepcopy(module)
    return copied if copied.training else copied.train()


@contextlib.contextmanager
def seeded(seed: int, device: torch.device | None = None) -> Iterator[None]:
    """Seeds torch on the CPU and on the given device. Afterwards the caller's random numbers go on as before.

    Other GPUs are left alone, which `torch.manual_seed` would seed, too. Without a GPU, CUDA is not even started.
    """
    gpus = [device] if device is not None and device.type == "cuda" else []
    with torch.random.fork_rng(devices=gpus):
        torch.default_generator.manual_seed(seed)
        for gpu in gpus:
            with torch.cuda.device(gpu):
                torch.cuda.manual_seed(seed)
        yield
