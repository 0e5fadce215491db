"""What is measured on the images before a run: their channels' mean and standard deviation, their offset and size."""

from __future__ import annotations

import contextlib
import math

import numpy as np
import torch
from jaxtyping import Float64, Shaped
from torch import Tensor

from densecl.errors import UserError
from densecl.images.decode import BadImage
from densecl.images.sources import ImageSource
from densecl.names import shown
from densecl.normalization import Normalization

#: About this many pixels of an image are measured, evenly spread. More would change the result very little.
PIXELS = 65_536


def measure_mean_std(source: ImageSource, seed: int, images: int = 512) -> Normalization:
    """Mean and standard deviation of each channel, on the 0-1 scale of the images' type.

    Measured on `images` images drawn by `seed` (or all, if there are fewer), all with the same weight. A channel that
    never changes gets a standard deviation of 1, so that dividing by it is safe.

    Raises:
        UserError: none of the images can be read.
    """
    order = np.random.default_rng(seed).permutation(len(source))[:images]
    means, squares, reason = [], [], ""
    for index in order.tolist():
        try:
            pixels = source.read(index)
        except BadImage as error:
            reason = reason or f"{shown(source.name(index))}: {error}"
            continue
        values = _thinned(pixels).flatten(1) / torch.iinfo(pixels.dtype).max
        means.append(values.mean(dim=1))
        squares.append(values.square().mean(dim=1))
    if not means:
        raise UserError(f"none of {len(order)} images can be used.\nThe first is {reason}")
    mean = torch.stack(means).mean(dim=0)
    variance = torch.stack(squares).mean(dim=0) - mean.square()
    std = torch.where(variance > 1e-12, variance.clamp(min=0).sqrt(), 1.0)
    return Normalization(tuple(mean.tolist()), tuple(std.tolist()))


def measure_offset(source: ImageSource, images: int = 8) -> tuple[float, bool]:
    """How far the values of an image lie from 0, in their own standard deviations; and whether they have sixteen bits.

    The distance is the median over a few images, spread evenly over the source. Images that cannot be read or have a
    single color are skipped. Ordinary photographs have about 2. "Sixteen bits" means that most of the images have.

    The images are not those of `measure_mean_std`: that one draws hundreds, and only where nobody knows the mean.
    """
    offsets, deep = [], 0
    for index in np.linspace(0, len(source) - 1, min(images, len(source)), dtype=int).tolist():
        try:
            pixels = source.read(index)
        except BadImage:  # the run will count them
            continue
        values = _thinned(pixels)
        spread = values.std(dim=(1, 2), correction=0).mean()
        if spread > 0:
            offsets.append(float(values.mean() / spread))
            deep += pixels.dtype == torch.uint16
    return (float(np.median(offsets)), 2 * deep > len(offsets)) if offsets else (0.0, False)


def measure_sides(source: ImageSource, images: int = 8) -> list[tuple[int, int]]:
    """Height and width of a few images, spread evenly over the source. Those that cannot be read are skipped."""
    sides = []
    for index in np.linspace(0, len(source) - 1, min(images, len(source)), dtype=int).tolist():
        with contextlib.suppress(BadImage):  # the run will count them
            sides.append(source.sides(index))
    return sides


def _thinned(pixels: Shaped[Tensor, "channels _ _"]) -> Float64[Tensor, "channels _ _"]:
    """Every nth pixel of every nth row, about `PIXELS` in all."""
    step = max(1, math.isqrt(pixels[0].numel() // PIXELS))
    return pixels[:, ::step, ::step].to(torch.float64)
