"""What colors tell a network about the images that it will be trained on."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torchvision.transforms.v2.functional import center_crop, rgb_to_grayscale

from densecl.borrowed import evaluating
from densecl.images.crops import resize
from densecl.images.decode import BadImage
from densecl.images.sources import ImageSource
from densecl.normalization import Normalization

#: Images that are looked at. With 20 to 32 the numbers of four data sets moved by up to 0.09, of a mixed one by 0.2.
IMAGES = 48

#: About how many pixels an image has on a side. The number depends on it: at 224 it is a quarter smaller.
SIDE = 128

#: Images that go through the network at a time.
AT_ONCE = 8


def reliance_on_color(
    backbone: nn.Module, source: ImageSource, normalization: Normalization, side: int = SIDE
) -> float | None:
    """How much of what tells an image's cells apart is lost when the image turns gray: 0 is nothing, 1 is everything.

    It is the cosine distance from a cell to the same cell of the gray image, over its mean distance to all cells of
    that image.

    Args:
        backbone: any module that returns a feature map "batch channels rows cols"; left as it was.
        source: RGB images. A few are looked at, spread evenly. Those that cannot be read are skipped.
        normalization: that of the backbone's weights.
        side: the central square of an image is resized to so many pixels.

    Returns:
        None if no image can be read, or its cells are all the same.
    """
    mean, std = (torch.tensor(values)[:, None, None] for values in normalization)
    distance = apart = 0.0
    squares = _squares(source, side)
    with evaluating(backbone):
        for some in (squares[start : start + AT_ONCE] for start in range(0, len(squares), AT_ONCE)):
            colored = torch.stack(some)
            gray = rgb_to_grayscale(colored, num_output_channels=3)
            cells, gray_cells = (_cells(backbone((pixels - mean) / std)) for pixels in (colored, gray))
            similarity = torch.einsum("bqc,bkc->bqk", gray_cells, cells)
            distance += (1 - similarity.diagonal(dim1=1, dim2=2)).sum().item()
            apart += (1 - similarity.mean(dim=2)).sum().item()
    return distance / apart if apart > 0 else None


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
