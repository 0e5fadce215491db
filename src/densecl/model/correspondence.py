"""How well features find what two views have in common, measured against where the views really lie.

Needs no labels: the boxes and flips of two crops of one image say which cells show the same place.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from densecl.model.matching import feature_similarity, match_mutually
from densecl.views import Views, cell_distances


class Correspondence(NamedTuple):
    """The matches of two views, and which of them are right."""

    match: Int[Tensor, "batch cells"]  # for each query cell the most similar key cell
    mutual: Bool[Tensor, "batch cells"]  # whether the query cell is also the most similar to that key cell
    right: Bool[Tensor, "batch cells cells"]  # key cells that show the same place as a query cell

    @property
    def judged(self) -> Bool[Tensor, "batch cells"]:
        """Query cells that have a right key cell. The others cannot be judged."""
        return self.right.any(dim=2)

    @property
    def hits(self) -> Bool[Tensor, "batch cells"]:
        """Query cells whose match is right."""
        return self.right.gather(2, self.match[:, :, None])[:, :, 0]

    @property
    def accuracy(self) -> Float[Tensor, ""]:
        """Share of the judged cells whose match is right; nan when the views share nothing."""
        return self.hits.sum() / self.judged.sum()

    @property
    def chance(self) -> Float[Tensor, ""]:
        """The accuracy of a uniformly random match."""
        return self.right.float().mean(dim=2).sum() / self.judged.sum()

    @property
    def mutual_rate(self) -> Float[Tensor, ""]:
        """Share of all query cells that are their match's match."""
        return self.mutual.float().mean()

    @property
    def distinct(self) -> Float[Tensor, ""]:
        """Share of the key cells that are some query cell's match; near 0: all cells match the same one."""
        chosen = torch.zeros_like(self.match).scatter_(1, self.match, 1)
        return chosen.float().mean()

    @property
    def entropy(self) -> Float[Tensor, ""]:
        """Of an image's matches over its key cells: 1 = evenly used, 0 = all on one, a sign of collapse."""
        cells = self.match.shape[1]
        used = torch.zeros(self.match.shape, device=self.match.device)
        used.scatter_add_(1, self.match, torch.ones_like(used))
        return torch.special.entr(used / cells).sum(dim=1).mean() / math.log(cells)


def correspondence(
    query_features: Float[Tensor, "batch channels rows cols"],
    key_features: Float[Tensor, "batch channels rows cols"],
    query: Views,
    key: Views,
    radius: float = 0.7,
) -> Correspondence:
    """Matches cells by their features (cosine, argmax) and judges them by where the views really lie.

    A key cell is right when its center lies within `radius` of the query cell's, in the source image
    and in diagonals of the larger cell [PixPro's 0.7].
    """
    rows, cols = query_features.shape[2:]
    right = cell_distances(query, key, rows, cols) <= radius
    return Correspondence(*match_mutually(feature_similarity(query_features, key_features)), right)
