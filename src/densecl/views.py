"""The plain types that travel from the images to the loss, and the geometry of a view.

Axis names in every signature: ``batch``, ``channels``, ``height width`` (pixels), ``rows cols`` (cells of a feature
map), ``cells`` (= rows x cols, row by row; ``key_cells`` if the key view has another number), ``dim`` (embedding),
``queue`` (stored keys).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor


class Photometrics(NamedTuple):
    """What happens to the colors of one view. Drawn with its crop, applied later on the device.

    Each field is a scalar for one view and gets a leading ``batch`` axis when views are collated. Neutral values
    (factor 1, hue 0, sigma 0, grayscale False) leave the image as it is.
    """

    brightness: Float[Tensor, "*batch"]  # factor, 1 = unchanged
    contrast: Float[Tensor, "*batch"]  # factor, 1 = unchanged
    saturation: Float[Tensor, "*batch"]  # factor, 1 = unchanged
    hue: Float[Tensor, "*batch"]  # turn of the color circle in [-0.5, 0.5], 0 = unchanged
    order: Int[Tensor, "*batch 4"]  # the order in which those four are applied, a permutation of 0..3
    grayscale: Bool[Tensor, "*batch"]
    blur_sigma: Float[Tensor, "*batch"]  # standard deviation in pixels of the view, 0 = no blur


class Crop(NamedTuple):
    """One view of one image (or of a batch of them), as a data-loading worker makes it."""

    pixels: Shaped[Tensor, "*batch channels height width"]  # uint8 or uint16, already flipped
    box: Float[Tensor, "*batch 4"]  # x0 y0 x1 y1 in pixels of the source image as it was decoded
    flipped: Bool[Tensor, "*batch"]  # mirrored left to right after the crop
    photometrics: Photometrics


class CropPair(NamedTuple):
    """Two views of the same image, or of each image of a batch; with multi-crop also local crops."""

    first: Crop
    second: Crop
    index: Int[Tensor, "*batch"]  # of the image that was used, in its source
    local: Sequence[Crop] = ()
    taught: Sequence[Float[Tensor, "*batch dim rows cols"]] = ()  # the first view's cells of a teacher's kept map


class Views(NamedTuple):
    """One augmented view of each image of a batch, ready for an encoder."""

    pixels: Float[Tensor, "batch channels height width"]  # normalized
    box: Float[Tensor, "batch 4"]  # x0 y0 x1 y1 in pixels of the source image
    flipped: Bool[Tensor, "batch"]


def cell_centers(
    box: Float[Tensor, "batch 4"], flipped: Bool[Tensor, "batch"], rows: int, cols: int
) -> Float[Tensor, "batch cells 2"]:
    """The center (x, y) of every cell of a view's feature map, in pixels of the source image.

    Cells are counted row by row as the network sees them. So in a flipped view the first cell of a row lies at the
    right edge of the crop.
    """
    x0, y0, x1, y1 = box.unbind(dim=1)
    across = (torch.arange(cols, device=box.device, dtype=box.dtype) + 0.5) / cols
    down = (torch.arange(rows, device=box.device, dtype=box.dtype) + 0.5) / rows
    across = torch.where(flipped[:, None], 1 - across, across)  # batch cols
    x = x0[:, None] + across * (x1 - x0)[:, None]
    y = y0[:, None] + down * (y1 - y0)[:, None]
    x, y = torch.broadcast_tensors(x[:, None, :], y[:, :, None])  # batch rows cols
    return torch.stack([x, y], dim=-1).flatten(1, 2)


def cell_diagonals(box: Float[Tensor, "batch 4"], rows: int, cols: int) -> Float[Tensor, "batch"]:
    """The length of the diagonal of one cell of each view, in pixels of the source image."""
    x0, y0, x1, y1 = box.unbind(dim=1)
    return torch.hypot((x1 - x0) / cols, (y1 - y0) / rows)


def cell_distances(
    query: Views, key: Views, rows: int, cols: int, key_grid: tuple[int, int] | None = None
) -> Float[Tensor, "batch cells key_cells"]:
    """Distance from every query cell to every key cell of the same image, in diagonals of the larger cell.

    In this unit one radius (0.7 in PixPro) fits crops of every size. `key_grid` is the key view's rows and columns, if
    they differ from the query's.
    """
    key_rows, key_cols = key_grid or (rows, cols)
    query_centers = cell_centers(query.box, query.flipped, rows, cols)
    key_centers = cell_centers(key.box, key.flipped, key_rows, key_cols)
    unit = torch.maximum(cell_diagonals(query.box, rows, cols), cell_diagonals(key.box, key_rows, key_cols))
    x, y = (query_centers[:, :, None] - key_centers[:, None]).unbind(dim=-1)
    return torch.hypot(x, y) / unit[:, None, None]  # torch.cdist in two dimensions takes 8 % of a step on a GPU
