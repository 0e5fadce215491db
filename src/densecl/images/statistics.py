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


def measure_offset(source: ImageSource, images: int = 8) -> tuple[float, bool]:
    """How far from 0 the values of an image lie, in their own standard deviations, and whether they have sixteen bits.

    The median over some images between the first and the last, those left out that cannot be read or are of a single
    color. Ordinary photographs have about 2. Sixteen bits: most of the images have.
    """
    offsets, deep = [], 0
    for index in np.linspace(0, len(source) - 1, min(images, len(source)), dtype=int).tolist():
        try:
            pixels = source.read(index)
        except BadImage:  # left to the run, which counts them
            continue
        step = max(1, math.isqrt(pixels[0].numel() // PIXELS))
        values = pixels[:, ::step, ::step].to(torch.float64)
        spread = values.std(dim=(1, 2), correction=0).mean()
        if spread > 0:
            offsets.append(float(values.mean() / spread))
            deep += pixels.dtype == torch.uint16
    return (float(np.median(offsets)), 2 * deep > len(offsets)) if offsets else (0.0, False)
