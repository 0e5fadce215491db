"""Random resized crops with known boxes, and how large they show things."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Shaped
from torch import Tensor
from torch.nn import functional

#: Smallest and largest ratio of a crop's width to its height [Szegedy et al. 2015].
RATIO = (3 / 4, 4 / 3)


class Scales(NamedTuple):
    """Pixels of a view per pixel of the image: how large things are seen."""

    smallest: float
    mean: float  # geometric
    largest: float


def least_side(size: int, scale: tuple[float, float], use_size: int | None = None) -> int:
    """How long an image's shorter side must be, so that even its smallest crop need not be enlarged to `size`.

    The smallest crop has at least scale[0] x side^2 pixels, and its shorter side is the square root of 3/4 of that.
    With `use_size` it has at least (size x side / use_size)^2 / `_spread` pixels.
    """
    if use_size is None:
        return math.ceil(size / math.sqrt(scale[0] * RATIO[0]))
    return math.ceil(use_size * math.sqrt(_spread(scale) / RATIO[0]))


def _spread(scale: tuple[float, float]) -> float:
    """The factor between the largest and the smallest scale of crops that cover such fractions of an image."""
    return math.sqrt(scale[1] / scale[0])


def draw_crop(
    rng: np.random.Generator,
    height: int,
    width: int,
    scale: tuple[float, float],
    ratio: tuple[float, float] = RATIO,
) -> Float[Tensor, "4"]:
    """A box x0 y0 x1 y1, in whole pixels, drawn as torchvision's RandomResizedCrop draws it [Szegedy et al. 2015].

    The fraction of the image's area is uniform in `scale`, the ratio of width to height log-uniform in `ratio`, the
    place uniform. After ten boxes that do not fit, it is the largest central box with an allowed ratio.
    """
    for _ in range(10):
        area = height * width * rng.uniform(*scale)
        aspect = math.exp(rng.uniform(math.log(ratio[0]), math.log(ratio[1])))
        across, down = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < across <= width and 0 < down <= height:
            x0 = int(rng.integers(width - across + 1))
            y0 = int(rng.integers(height - down + 1))
            break
    else:
        across = min(width, max(1, round(height * ratio[1])))
        down = min(height, max(1, round(width / ratio[0])))
        x0, y0 = (width - across) // 2, (height - down) // 2
    return torch.tensor([x0, y0, x0 + across, y0 + down], dtype=torch.float32)


def areas_of_use(height: int, width: int, size: int, scale: tuple[float, float], use_size: int) -> tuple[float, float]:
    """The smallest and largest area of a crop, in pixels, if a view shall show things as large as they are in use.

    In use the image's longer side has `use_size` pixels. A crop with (size x longer side / use_size)^2 pixels becomes a
    view of exactly that scale. The areas spread around it as far as `scale` does, but no crop is larger than the image.
    All is relative to the image, so an image that was decoded at half its size has the same crops.
    """
    exact = (size * max(height, width) / use_size) ** 2
    most = _largest_area(height, width)
    return min(exact / _spread(scale), most), min(exact * _spread(scale), most)


def _largest_area(height: int, width: int) -> float:
    """The area of the largest box with an allowed ratio."""
    return float(min(width, height * RATIO[1]) * min(height, width / RATIO[0]))


def draw_crop_of_use(
    rng: np.random.Generator, height: int, width: int, areas: tuple[float, float]
) -> Float[Tensor, "4"]:
    """A box x0 y0 x1 y1, in whole pixels, with an area between these two (`areas_of_use`).

    Area and ratio are log-uniform, the place is uniform. So the scale is log-uniform, too: a view shows things as often
    smaller as larger than they are in use, by the same factors. Uniform areas would favor small things.
    """
    area = math.exp(rng.uniform(math.log(areas[0]), math.log(areas[1])))
    narrowest, widest = _ratios_that_fit(area, height, width)
    aspect = math.exp(rng.uniform(math.log(narrowest), math.log(widest)))
    across = min(width, max(1, round(math.sqrt(area * aspect))))
    down = min(height, max(1, round(math.sqrt(area / aspect))))
    x0, y0 = int(rng.integers(width - across + 1)), int(rng.integers(height - down + 1))
    return torch.tensor([x0, y0, x0 + across, y0 + down], dtype=torch.float32)


def _ratios_that_fit(area: float, height: int, width: int) -> tuple[float, float]:
    """The smallest and largest allowed ratio of a crop with this area; the same twice if none fits."""
    narrowest = max(RATIO[0], area / height**2)
    return narrowest, max(narrowest, min(RATIO[1], width**2 / area))


def scales_of_crops(
    height: int, width: int, size: int, scale: tuple[float, float], use_size: int | None = None
) -> Scales:
    """How large the crops of an image show things."""
    if use_size is None:
        low, high = (min(fraction * height * width, _largest_area(height, width)) for fraction in scale)
        areas = np.linspace(low, high, 100)
        # `draw_crop` draws again where area and ratio do not fit, which is more often so for a large area.
        fitting = [math.log(widest / narrow) for narrow, widest in (_ratios_that_fit(a, height, width) for a in areas)]
        log_mean = float(np.average(np.log(areas), weights=fitting)) if any(fitting) else math.log(high)
    else:
        low, high = areas_of_use(height, width, size, scale, use_size)
        log_mean = math.log(low * high) / 2
    return Scales(size / math.sqrt(high), size / math.exp(log_mean / 2), size / math.sqrt(low))


def take_crop(
    image: Shaped[Tensor, "channels height width"], box: Float[Tensor, "4"], flipped: bool, size: int
) -> Shaped[Tensor, "channels size size"]:
    """The box of a uint8 or uint16 image, resized (bilinear, antialiased) to size x size, mirrored if `flipped`."""
    x0, y0, x1, y1 = (int(edge) for edge in box)
    crop = resize(image[:, y0:y1, x0:x1], size, size)
    return flip(crop, 2) if flipped else crop.contiguous()


def flip(pixels: Shaped[Tensor, "channels height width"], *axes: int) -> Shaped[Tensor, "channels height width"]:
    """A copy of a uint8 or uint16 image, reversed along some axes."""
    if pixels.dtype == torch.uint16:  # torch 2.11 cannot flip uint16
        return pixels.view(torch.int16).flip(axes).view(torch.uint16)
    return pixels.flip(axes)


def resize(
    pixels: Shaped[Tensor, "channels _ _"], height: int, width: int
) -> Shaped[Tensor, "channels {height} {width}"]:
    """A uint8 or uint16 image at another size (bilinear, antialiased)."""
    if pixels.dtype == torch.uint8:
        return _interpolate(pixels, height, width)
    # torch interpolates only eight-bit integers and floats. One channel at a time, because floats take much memory.
    limit = torch.iinfo(pixels.dtype).max
    channels = (_interpolate(channel.to(torch.float32)[None], height, width) for channel in pixels)
    return torch.cat([channel.round().clamp(0, limit).to(pixels.dtype) for channel in channels])


def _interpolate(pixels: Tensor, height: int, width: int) -> Tensor:
    return functional.interpolate(pixels[None], size=(height, width), mode="bilinear", antialias=True)[0]
