"""How well features find what two views have in common, measured against where the views really lie.

Needs no labels: the boxes and flips of two crops of one image say which cells show the same place.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from densecl.model.matching import feature_similarity, match_by_features, match_mutually
from densecl.views import Views, cell_distances


class MatchAccuracy(NamedTuple):
    """How often a query cell's most similar key cell is a right one, and how often a guess would be."""

    accuracy: Float[Tensor, ""]
    chance: Float[Tensor, ""]


class Correspondence(NamedTuple):
    """Match accuracy with what tells whether it is to be believed."""

    accuracy: Float[Tensor, ""]  # share of the counted query cells whose match is right
    chance: Float[Tensor, ""]  # what a uniformly random key cell would score
    mutual_rate: Float[Tensor, ""]  # share of all query cells that are their match's match
    entropy: Float[Tensor, ""]  # of an image's matches over its key cells: 1 = evenly used, 0 = all on one (collapse)
    counted: Int[Tensor, ""]  # query cells that have a right key cell


def match_accuracy(
    query_features: Float[Tensor, "batch channels rows cols"],
    key_features: Float[Tensor, "batch channels rows cols"],
    query: Views,
    key: Views,
    radius: float = 0.7,
) -> MatchAccuracy:
    """Share of matches by features (cosine, argmax) that are right; nan when the views share nothing.

    A key cell is right when its centre lies within `radius` of the query cell's, in the source image
    and in diagonals of the larger cell [PixPro's 0.7]. Query cells without a right key cell do not count.
    """
    rows, cols = query_features.shape[2:]
    right = cell_distances(query, key, rows, cols) <= radius  # batch cells cells
    match = match_by_features(feature_similarity(query_features, key_features)).index
    counted = right.any(dim=2).sum()
    hits = right.gather(2, match[:, :, None]).sum()  # a query cell without a right key cell cannot hit
    return MatchAccuracy(hits / counted, right.float().mean(dim=2).sum() / counted)


def correspondence(
    query_features: Float[Tensor, "batch channels rows cols"],
    key_features: Float[Tensor, "batch channels rows cols"],
    query: Views,
    key: Views,
    radius: float = 0.7,
) -> Correspondence:
    """`match_accuracy`, the share of mutual matches, and how evenly the matches use the key cells."""
    accuracy, chance = match_accuracy(query_features, key_features, query, key, radius)
    rows, cols = query_features.shape[2:]
    match, mutual = match_mutually(feature_similarity(query_features, key_features))
    used = torch.zeros_like(match, dtype=query_features.dtype).scatter_add_(
        1, match, torch.ones_like(match, dtype=query_features.dtype)
    )
    entropy = torch.special.entr(used / (rows * cols)).sum(dim=1).mean() / math.log(rows * cols)
    counted = (cell_distances(query, key, rows, cols) <= radius).any(dim=2).sum()
    return Correspondence(accuracy, chance, mutual.float().mean(), entropy, counted)
