"""Which cells of two views belong together: the positives, the valid pairs, and the cells that are not negatives."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from densecl.choices import Matching
from densecl.views import Views, cell_distances


class Match(NamedTuple):
    """For each query cell its positive, a key cell of the same image, and whether the pair is valid."""

    index: Int[Tensor, "batch cells"]
    valid: Bool[Tensor, "batch cells"]


class Matched(NamedTuple):
    """All that is decided about the cells of two views."""

    matches: tuple[Match, ...]  # "both" has two, whose losses are averaged
    not_negative: Bool[Tensor, "batch cells key_cells"]  # key cells of the image that are not negatives of a query cell
    not_negative_query: Bool[Tensor, "batch cells cells"]  # the same for its query cells; each cell is one of its own


@dataclass(frozen=True, kw_only=True)
class Matcher:
    """Matches the cells of two views.

    Args:
        matching: "features", "mutual", "geometry", or "both" features and geometry.
        radius: two cells closer than this show the same place; in diagonals of the larger cell.
        top_k: fraction (0-1) of an image's query cells to keep, those with the best matches.
        own_image: whether cells of the same image may be negatives.
    """

    matching: Matching = "features"
    radius: float = 0.7
    top_k: float = 1.0
    own_image: bool = True

    @torch.no_grad()
    def __call__(
        self,
        query: Float[Tensor, "batch channels rows cols"],
        key: Float[Tensor, "batch channels key_rows key_cols"],
        query_views: Views,
        key_views: Views,
    ) -> Matched:
        """Decides from the backbone's features and from where the views lie in their images."""
        rows, cols = query.shape[2:]
        key_rows, key_cols = key.shape[2:]
        distances = cell_distances(query_views, key_views, rows, cols, (key_rows, key_cols))
        matches = []
        if self.matching != "geometry":
            similarity = feature_similarity(query, key)
            match = match_mutually(similarity) if self.matching == "mutual" else match_by_features(similarity)
            matches.append(keep_best(match, similarity, self.top_k))
        if self.matching in ("geometry", "both"):
            matches.append(keep_best(match_by_geometry(distances, self.radius), -distances, self.top_k))
        own_distances = cell_distances(query_views, query_views, rows, cols)
        return Matched(tuple(matches), self.not_negative(distances), self.not_negative(own_distances))

    def not_negative(self, distances: Float[Tensor, "batch cells key_cells"]) -> Bool[Tensor, "batch cells key_cells"]:
        """Cells that show nearly the same place. To push them away would undo what the positive does."""
        return (distances <= self.radius) | (not self.own_image)


def feature_similarity(
    query: Float[Tensor, "batch channels rows cols"], key: Float[Tensor, "batch channels key_rows key_cols"]
) -> Float[Tensor, "batch cells key_cells"]:
    """Cosine between the features of every query cell and every key cell of the same image."""
    query = F.normalize(query.flatten(2), dim=1)
    key = F.normalize(key.flatten(2), dim=1)
    return query.transpose(1, 2) @ key


def match_by_features(similarity: Float[Tensor, "batch cells key_cells"]) -> Match:
    """The most similar key cell, j*(i) = argmax_j cos(query_i, key_j) [DenseCL, eq. 4].

    All pairs are valid, and several query cells may share a key cell.
    """
    index = similarity.argmax(dim=2)
    return Match(index, torch.ones_like(index, dtype=torch.bool))


def match_mutually(similarity: Float[Tensor, "batch cells key_cells"]) -> Match:
    """The most similar key cell. The pair is valid if the query cell is also the most similar to that key cell."""
    index = similarity.argmax(dim=2)
    back = similarity.argmax(dim=1).gather(1, index)  # batch cells
    return Match(index, back == torch.arange(index.shape[1], device=index.device))


def match_by_geometry(distances: Float[Tensor, "batch cells key_cells"], radius: float) -> Match:
    """The nearest key cell in the source image. The pair is valid if it lies within `radius`.

    `distances` and `radius` are in diagonals of the larger cell (`views.cell_distances`); PixPro's radius is 0.7.
    """
    distance, index = distances.min(dim=2)
    return Match(index, distance <= radius)


def keep_best(match: Match, similarity: Float[Tensor, "batch cells key_cells"], fraction: float) -> Match:
    """Keeps the most similar pairs of each image: at most this fraction (0-1) of its query cells, rounded up.

    An invalid pair stays invalid. VICRegL keeps 20 of 49 pairs.
    """
    cells = match.index.shape[1]
    kept = math.ceil(fraction * cells - 1e-9)
    if kept >= cells:
        return match
    scores = similarity.gather(2, match.index[:, :, None]).squeeze(2)
    best = scores.masked_fill(~match.valid, -torch.inf).topk(kept, dim=1).indices
    return Match(match.index, match.valid & torch.zeros_like(match.valid).scatter(1, best, True))
