"""Random resized crops with known boxes."""

from __future__ import annotations

import math

import numpy as np
import torch
from jaxtyping import Float, Shaped
from torch import Tensor
from torch.nn import functional

#: Smallest and largest ratio of a crop's width to its height [Szegedy et al. 2015].
RATIO = (3 / 4, 4 / 3)


def least_side(size: int, scale: tuple[float, float]) -> int:
    """How long an image's shorter side must be, so that even its smallest crop need not be enlarged to `size`.

    The smallest crop has at least scale[0] x side^2 pixels, and its shorter side is the square root of 3/4 of that.
    """
    return math.ceil(size / math.sqrt(scale[0] * RATIO[0]))


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
