"""In which precision and memory format a machine trains a network fastest, found by trying."""

from __future__ import annotations

import copy
import time
from collections.abc import Sequence
from typing import NamedTuple

import torch

from densecl.model import Backbone

#: How many times faster than the first candidate another must be to be taken: a choice by chance would make two runs
#: differ that should not, and below this the difference is soon lost among other costs.
CLEARLY = 1.4

#: Pixels that a step of the trial works on. With fewer, the cost of casting weights would count for too much.
PIXELS = {"cpu": 2**17, "cuda": 2**23}

#: Rounds, of which the first only warms up. Of each candidate the fastest counts.
ROUNDS = 4


class Arithmetic(NamedTuple):
    """How a network is computed."""

    bf16: bool
    channels_last: bool

    @property
    def memory_format(self) -> torch.memory_format:
        return torch.channels_last if self.channels_last else torch.contiguous_format

    def __str__(self) -> str:
        return f"{'bf16' if self.bf16 else '32'}{', channels last' if self.channels_last else ''}"


def fastest(
    backbone: Backbone, image_size: int, batch_size: int, candidates: Sequence[Arithmetic]
) -> tuple[Arithmetic, dict[Arithmetic, float]]:
    """The first candidate, unless another is clearly faster; and the milliseconds an image of each.

    Args:
        backbone: a copy of it is tried, forward and backward, where the training will run.
        image_size: side of the images in pixels.
        batch_size: images of a step of the training; fewer are tried if they are many pixels.
        candidates: at least one, the usual one first.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    tried = copy.deepcopy(backbone).to(device).train()
    images = min(batch_size, max(2, PIXELS[device] // image_size**2))
    pixels = torch.zeros(images, backbone.in_channels, image_size, image_size, device=device)
    taken: dict[Arithmetic, list[float]] = {candidate: [] for candidate in candidates}
    for _ in range(ROUNDS):  # in turn, so that what else the machine does slows all of them alike
        for candidate in candidates:
            tried.to(memory_format=candidate.memory_format)  # pyright: ignore[reportCallIssue]
            laid_out = pixels.contiguous(memory_format=candidate.memory_format)
            start = _now()
            with torch.autocast(device, torch.bfloat16, enabled=candidate.bf16):
                features = tried(laid_out)
            features.float().mean().backward()
            taken[candidate].append(_now() - start)
            tried.zero_grad()
    times = {candidate: 1000 * min(rounds[1:]) / images for candidate, rounds in taken.items()}
    best = min(candidates, key=times.__getitem__)
    usual = candidates[0]
    return (best if times[best] * CLEARLY < times[usual] else usual), times


def _now() -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()
