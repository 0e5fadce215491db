"""How long a step takes on this machine, and how much memory: measured on a few images, and scaled to the batch."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from lightning.fabric.utilities import move_data_to_device
from torch import Tensor

from densecl.augment import augment
from densecl.config.recipe import Resolved
from densecl.images.batch import collate
from densecl.model import METHODS, DenseCL
from densecl.training.build import Parts
from densecl.training.fit import view_pairs
from densecl.training.optimizer import make_optimizer
from densecl.views import Views

#: Images of a trial step, where the method allows so few.
IMAGES = 4

#: A first step that takes longer is not repeated.
SLOW_SECONDS = 15.0


class Cost(NamedTuple):
    """What a run costs."""

    step_seconds: float
    memory: float  # bytes of weights, gradients, optimizer and activations, on one device
    free: float  # bytes there, infinite if it is not known


def measure(parts: Parts) -> Cost:
    """Take a step on a few images, and scale it. Larger batches are a little faster, so it takes that time at most.

    Memory is what a step holds at once: the state, gradients, moments, and what the backward pass needs. The model of
    `parts` is trained with a rate of 0 meanwhile, but its queues and statistics change: use it for nothing else.

    Raises:
        UserError: out of memory already with a few images.
    """
    recipe = parts.recipe
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    layout = torch.channels_last if recipe.channels_last else torch.contiguous_format
    model = parts.model.train().to(device).to(memory_format=layout)  # pyright: ignore[reportCallIssue]
    optimizer = make_optimizer(
        model, recipe.optimizer, momentum=recipe.momentum, weight_decay=recipe.weight_decay, fused=False
    )
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    views = _views(parts, _images(recipe), device)
    views = [view._replace(pixels=view.pixels.contiguous(memory_format=layout)) for view in views]
    images = len(views[0].pixels)

    def step() -> tuple[float, int]:
        """Its seconds, and the bytes that the backward pass needed."""
        started = time.perf_counter()
        with (
            _Saved([*model.parameters(), *model.buffers()]) as saved,
            torch.autocast(device.type, torch.bfloat16, enabled=recipe.precision == "bf16"),
        ):
            output = model(views[0], views[1], views[2:]) if isinstance(model, DenseCL) else model(views[0].pixels)
        output.loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - started, saved.bytes

    seconds, saved = step()
    if seconds < SLOW_SECONDS:  # the first also starts things up
        seconds, saved = step()
    state = sum(tensor.nbytes for tensor in model.state_dict().values() if isinstance(tensor, Tensor))
    trained = sum(parameter.nbytes for parameter in model.parameters() if parameter.requires_grad)
    moments = 2 if recipe.optimizer == "adamw" else 1
    memory = state + (1 + moments) * trained + saved / images * recipe.images_at_once
    return Cost(seconds / images * recipe.batch_size / recipe.processes, memory, _free(device))


def _images(recipe: Resolved) -> int:
    """How many images the trial step has: few, but as many as the method and its batch norm need."""
    least = recipe.key_split + 1 if recipe.key_norm == "split" else 0
    return min(recipe.images_at_once, max(IMAGES, METHODS[recipe.method].least_batch, least))


def _views(parts: Parts, images: int, device: torch.device) -> list[Views]:
    """Views of images from all over the source, as a run would draw them. Bad images are replaced, as there."""
    pairs = view_pairs(parts)
    chosen = [(0, number * len(pairs) // images) for number in range(images)]
    found = collate([pairs[place] for place in chosen]).pairs
    shift = parts.recipe.brightness == "shift"
    crops = [move_data_to_device(crop, device) for crop in (found.first, found.second, *found.local)]
    return [augment(crop, parts.normalization, shift_brightness=shift) for crop in crops]


class _Saved(torch.autograd.graph.saved_tensors_hooks):
    """Counts the bytes that are kept for the backward pass, each memory once, without the weights."""

    def __init__(self, weights: Sequence[Tensor]) -> None:
        self.bytes = 0
        self._seen = {tensor.untyped_storage().data_ptr() for tensor in weights}
        self._alive: list[Tensor] = []  # or another tensor could get the same memory
        super().__init__(self._count, lambda tensor: tensor)

    def __enter__(self) -> Any:
        super().__enter__()
        return self

    def _count(self, tensor: Tensor) -> Tensor:
        memory = tensor.untyped_storage()
        if memory.data_ptr() not in self._seen:
            self._seen.add(memory.data_ptr())
            self._alive.append(tensor.detach())
            self.bytes += memory.nbytes()
        return tensor


def _free(device: torch.device) -> float:
    """Bytes of memory that a run could take."""
    if device.type == "cuda":
        return float(torch.cuda.mem_get_info(device)[0])
    free = [math.inf]
    try:
        text = Path("/proc/meminfo").read_text()
        free += [float(found[1]) * 1024 for found in re.finditer(r"^MemAvailable:\s*(\d+) kB", text, re.MULTILINE)]
        group = Path("/sys/fs/cgroup")
        limit = (group / "memory.max").read_text().strip()
        if limit.isdecimal():
            free.append(float(limit) - float((group / "memory.current").read_text()))
    except (OSError, ValueError):  # not Linux, or no limit
        pass
    return min(free)
