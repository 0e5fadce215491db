"""How well features find the same place in two views.

Needs no labels: the boxes and flips of two crops of an image say which cells show the same place.
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
        """Query cells for which there is a right key cell. The others cannot be judged."""
        return self.right.any(dim=2)

    @property
    def hits(self) -> Bool[Tensor, "batch cells"]:
        """Query cells whose match is right."""
        return self.right.gather(2, self.match[:, :, None])[:, :, 0]

    @property
    def accuracy(self) -> Float[Tensor, ""]:
        """Fraction of the judged cells whose match is right; nan if the views share nothing."""
        return self.hits.sum() / self.judged.sum()

    @property
    def chance(self) -> Float[Tensor, ""]:
        """The chance level: the accuracy of random matches."""
        return self.right.float().mean(dim=2).sum() / self.judged.sum()

    @property
    def mutual_rate(self) -> Float[Tensor, ""]:
        """Fraction of all query cells that are the best match of their own match."""
        return self.mutual.float().mean()

    @property
    def distinct(self) -> Float[Tensor, ""]:
        """Fraction of the key cells that any query cell matches. Near 0, all cells match the same one."""
        chosen = torch.zeros_like(self.match).scatter_(1, self.match, 1)
        return chosen.float().mean()

    @property
    def entropy(self) -> Float[Tensor, ""]:
        """How evenly the matches use the key cells: 1 = evenly, 0 = all match the same one, a sign of collapse."""
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
    """Matches cells by their features (cosine, argmax) and judges the matches by where the views lie.

    A key cell is right if its center is within `radius` of the query cell's center in the source image. The unit is the
    diagonal of the larger cell, as in PixPro, whose radius is 0.7.
    """
    rows, cols = query_features.shape[2:]
    right = cell_distances(query, key, rows, cols) <= radius
    return Correspondence(*match_mutually(feature_similarity(query_features, key_features)), right)
