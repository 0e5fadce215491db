"""Feature maps as pictures: colors by principal components, and how similar all cells are to one of them."""

from __future__ import annotations

import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from torch.nn import functional

#: The fraction of values at either end of a color that is drawn at full strength. So single cells do not decide how
#: bright all others are.
CLIPPED = 0.02


def principal_colors(
    features: Float[Tensor, "images channels rows cols"],
) -> UInt8[Tensor, "images 3 rows cols"]:
    """Red, green and blue of every cell: the first three principal components of all cells of all images together.

    Cells are L2-normalized first, because matches and losses look at directions alone. Cells of the same color have
    similar features, in whichever image they are. Colors of two networks cannot be compared. A component's sign is
    chosen so that its largest weight is positive: without that, the same features could have other colors on another
    machine. Features that are all the same are gray.
    """
    images, channels, rows, cols = features.shape
    cells = functional.normalize(features.detach().double().movedim(1, -1).reshape(-1, channels), dim=1)
    centered = cells - cells.mean(dim=0)
    _, _, directions = torch.linalg.svd(centered, full_matrices=False)
    directions = directions[:3]
    largest = directions.gather(1, directions.abs().argmax(dim=1, keepdim=True))
    values = centered @ (directions * largest.sign()).T
    values = functional.pad(values, (0, 3 - values.shape[1]))  # fewer than three channels or cells
    low, high = (values.quantile(end, dim=0) for end in (CLIPPED, 1 - CLIPPED))
    spread = high - low
    scaled = torch.where(spread > 1e-9, (values - low) / spread.clamp(min=1e-9), 0.5).clamp(0, 1)
    return (255 * scaled).round().to(torch.uint8).reshape(images, rows, cols, 3).movedim(-1, 1)


def similarity_to(
    features: Float[Tensor, "channels rows cols"], cell: Float[Tensor, " channels"]
) -> Float[Tensor, "rows cols"]:
    """Cosine similarity of every cell of a map to one cell, -1 to 1."""
    return functional.cosine_similarity(features.float(), cell.float()[:, None, None], dim=0)
