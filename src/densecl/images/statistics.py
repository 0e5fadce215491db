"""The mean and the standard deviation of each channel, for images that ImageNet's do not fit."""

from __future__ import annotations

import math

import numpy as np
import torch

from densecl.errors import UserError
from densecl.images.decode import BadImage
from densecl.images.sources import ImageSource
from densecl.names import shown

#: Pixels of one image that are looked at: enough for its share of the mean.
PIXELS = 65_536


def measure_mean_std(source: ImageSource, seed: int, images: int = 512) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel, on the scale where the type's range is 0 to 1.

    Measured over `images` images drawn by `seed` (all of a smaller source), each weighing the same.
    A channel that never changes gets 1 as its deviation, so that dividing by it is safe.

    Raises:
        UserError: none of them can be read.
    """
    order = np.random.default_rng(seed).permutation(len(source))[:images]
    means, squares, reason = [], [], ""
    for index in order.tolist():
        try:
            pixels = source.read(index)
        except BadImage as error:
            reason = reason or f"{shown(source.name(index))}: {error}"
            continue
        step = max(1, math.isqrt(pixels[0].numel() // PIXELS))
        values = pixels[:, ::step, ::step].to(torch.float64).flatten(1) / torch.iinfo(pixels.dtype).max
        means.append(values.mean(dim=1))
        squares.append(values.square().mean(dim=1))
    if not means:
        raise UserError(f"none of {len(order)} images can be used.\nThe first is {reason}")
    mean = torch.stack(means).mean(dim=0)
    variance = torch.stack(squares).mean(dim=0) - mean.square()
    std = torch.where(variance > 1e-12, variance.clamp(min=0).sqrt(), 1.0)
    return tuple(mean.tolist()), tuple(std.tolist())
