"""What the colors and the light of the images tell a network that will be trained on them."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torchvision.transforms.v2.functional import adjust_brightness, adjust_contrast, center_crop, rgb_to_grayscale

from densecl.borrowed import evaluating
from densecl.config.facts import Reliance
from densecl.images.crops import resize
from densecl.images.decode import BadImage
from densecl.images.sources import ImageSource
from densecl.normalization import Normalization

#: Images that are looked at. With 20 to 32 the numbers of four data sets moved by up to 0.09, of a mixed one by 0.2.
IMAGES = 48

#: About how many pixels an image has on a side. The numbers depend on it: at 224 they are a quarter smaller.
SIDE = 128

#: Images that go through the network at a time.
AT_ONCE = 8

#: Factors of brightness and contrast: the ends of the paper's jitter.
DARKER, BRIGHTER = 0.6, 1.4

Images = Float[Tensor, "batch 3 height width"]


def measure_reliance(
    backbone: nn.Module, source: ImageSource, normalization: Normalization, side: int = SIDE
) -> Reliance | None:
    """How much of what tells an image's cells apart is lost in gray, and in another light.

    It is the cosine distance from a cell to the same cell of the changed image, over its mean distance to all cells of
    that image: 0 is nothing, 1 is everything.

    Args:
        backbone: any module that returns a feature map "batch channels rows cols"; left as it was.
        source: RGB images. A few are looked at, spread evenly. Those that cannot be read are skipped.
        normalization: that of the backbone's weights.
        side: the central square of an image is resized to so many pixels.

    Returns:
        None if no image can be read, or its cells are all the same.
    """
    squares = _squares(source, side)
    with evaluating(backbone):
        color, light = (_lost(backbone, squares, normalization, change) for change in (_in_gray, _in_another_light))
    return None if color is None or light is None else Reliance(color=color, light=light)


def _lost(
    backbone: nn.Module,
    squares: list[Float[Tensor, "3 height width"]],
    normalization: Normalization,
    change: Callable[[Images], Images],
) -> float | None:
    mean, std = (torch.tensor(values)[:, None, None] for values in normalization)
    distance = apart = 0.0
    for some in (squares[start : start + AT_ONCE] for start in range(0, len(squares), AT_ONCE)):
        pixels = torch.stack(some)
        cells, changed = (_cells(backbone((some - mean) / std)) for some in (pixels, change(pixels)))
        similarity = torch.einsum("bqc,bkc->bqk", changed, cells)
        distance += (1 - similarity.diagonal(dim1=1, dim2=2)).sum().item()
        apart += (1 - similarity.mean(dim=2)).sum().item()
    return distance / apart if apart > 0 else None


def _in_gray(pixels: Images) -> Images:
    return rgb_to_grayscale(pixels, num_output_channels=3)


def _in_another_light(pixels: Images) -> Images:
    """Every other image is darker and flatter, the rest are brighter and harder."""
    factors = (DARKER if index % 2 == 0 else BRIGHTER for index in range(len(pixels)))
    lit = (adjust_contrast(adjust_brightness(one, factor), factor) for one, factor in zip(pixels, factors, strict=True))
    return torch.stack(list(lit))


def _squares(source: ImageSource, side: int) -> list[Float[Tensor, "3 {side} {side}"]]:
    squares = []
    for index in np.linspace(0, len(source) - 1, min(IMAGES, len(source)), dtype=int).tolist():
        try:
            pixels = source.read(index)
        except BadImage:  # the run will count them
            continue
        square = center_crop(pixels, [min(pixels.shape[1:])])
        squares.append(resize(square, side, side).float() / torch.iinfo(pixels.dtype).max)
    return squares


def _cells(features: Float[Tensor, "batch channels rows cols"]) -> Float[Tensor, "batch cells channels"]:
    return F.normalize(features.float().flatten(2).transpose(1, 2), dim=2)
