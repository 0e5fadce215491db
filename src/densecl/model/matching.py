"""Which cell of the key view shows the same thing as a cell of the query view."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor


class Match(NamedTuple):
    """For each query cell its key cell, and whether the pair counts."""

    index: Int[Tensor, "batch cells"]
    valid: Bool[Tensor, "batch cells"]


def feature_similarity(
    query: Float[Tensor, "batch channels rows cols"], key: Float[Tensor, "batch channels key_rows key_cols"]
) -> Float[Tensor, "batch cells key_cells"]:
    """Cosine between the features of every query cell and every key cell of the same image."""
    query = F.normalize(query.flatten(2), dim=1)
    key = F.normalize(key.flatten(2), dim=1)
    return query.transpose(1, 2) @ key


def match_by_features(similarity: Float[Tensor, "batch cells key_cells"]) -> Match:
    """The most similar key cell, j*(i) = argmax_j cos(query_i, key_j). Many to one, all count [DenseCL, eq. 4]."""
    index = similarity.argmax(dim=2)
    return Match(index, torch.ones_like(index, dtype=torch.bool))


def match_mutually(similarity: Float[Tensor, "batch cells key_cells"]) -> Match:
    """The most similar key cell; the pair counts if the query cell is also the most similar to that key cell."""
    index = similarity.argmax(dim=2)
    back = similarity.argmax(dim=1).gather(1, index)  # batch cells
    return Match(index, back == torch.arange(index.shape[1], device=index.device))


def match_by_geometry(distances: Float[Tensor, "batch cells key_cells"], radius: float) -> Match:
    """The nearest key cell in the source image; the pair counts if it lies within `radius`.

    `distances` and `radius` are in diagonals of the larger cell (`views.cell_distances`); PixPro's radius is 0.7.
    """
    distance, index = distances.min(dim=2)
    return Match(index, distance <= radius)


def keep_best(match: Match, likeness: Float[Tensor, "batch cells key_cells"], share: float) -> Match:
    """Of each image only the pairs that are most alike, at most this share (0-1) of its query cells, rounded up.

    A pair that did not count does not count now either. VICRegL keeps 20 of 49 pairs.
    """
    cells = match.index.shape[1]
    kept = math.ceil(share * cells - 1e-9)
    if kept >= cells:
        return match
    scores = likeness.gather(2, match.index[:, :, None]).squeeze(2)
    best = scores.masked_fill(~match.valid, -torch.inf).topk(kept, dim=1).indices
    return Match(match.index, match.valid & torch.zeros_like(match.valid).scatter(1, best, True))
