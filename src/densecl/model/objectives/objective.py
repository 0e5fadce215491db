"""What every objective is given and what it gives: from query vectors and their positives to a loss.

At the global level there is one vector an image; at the dense level one a cell. To an objective both are
the same thing, an image vector being the only cell of its image, so a method is written once.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from densecl.choices import DenseStatistics
from densecl.model.distributed import mean_over_processes, world_size


class Pairs(NamedTuple):
    """The query vectors of one view, the key vectors of another, and which key is which query's positive."""

    query: Float[Tensor, "batch cells dim"]
    key: Float[Tensor, "batch key_cells dim"]
    match: Int[Tensor, "batch cells"]  # for each query vector its positive, a key vector of the same image
    valid: Bool[Tensor, "batch cells"] | None  # whether the pair counts; None: all do
    near: Bool[Tensor, "batch cells key_cells"]  # key vectors of the same image that are no negatives
    near_query: Bool[Tensor, "batch cells cells"]  # the same among the query vectors, each near itself
    negatives: Float[Tensor, "queue dim"] | None = None  # a queue of other images' vectors, instead of the batch's
    pooled: Float[Tensor, "batch views dim"] | None = None  # one vector for the image of each view, instead of cells
    products: torch.dtype | None = None  # the dtype to multiply with a queue or the batch's cells in; None: their own

    @property
    def positive(self) -> Float[Tensor, "batch cells dim"]:
        """For each query vector its positive."""
        return self.key.gather(1, self.match[:, :, None].expand_as(self.query))


class Temperature(NamedTuple):
    """What similarities are divided by; which of the two a method knows, `methods.METHODS` says."""

    query: float
    key: float = 1.0  # of DINO's teacher


class Objective(nn.Module):
    """Pulls query vectors towards their positives. A subclass has state only if its method has.

    Args:
        dim: length of the vectors.
        statistics: where a loss is one of statistics, the vectors that they are taken over: all matched "cells" of
            the batch, or those of each "position" in the query's map.

    Attributes:
        exchangeable: whether the loss is the same with queries and positives exchanged, if each is the other's.
        parts: in how many parts a step is computed, set by whoever accumulates gradients. What a method keeps as a
            moving average moves with each of them, together as far as in a step of one part.
    """

    exchangeable = False

    def __init__(self, dim: int, statistics: DenseStatistics = "cells") -> None:
        super().__init__()
        self.dim = dim
        self.statistics = statistics
        self.parts = 1

    def forward(self, pairs: Pairs, temperature: Temperature) -> Float[Tensor, ""]:
        """The mean loss over the pairs that count, which carries the gradient.

        With several processes each returns its share: the average over processes is the loss of the joined batch,
        and so is the average of the gradients, which is what DDP takes.
        """
        raise NotImplementedError

    def observe(self, keys: Float[Tensor, "vectors dim"]) -> None:
        """Sees all key vectors of a step, after its losses."""


def mean_over_valid(
    losses: Float[Tensor, "batch cells"], valid: Bool[Tensor, "batch cells"] | None
) -> Float[Tensor, ""]:
    """The mean loss of the pairs that count, 0 if none does."""
    if valid is None:
        return losses.mean()
    # The divisor counts over all processes, whose gradients are then averaged.
    counted = mean_over_processes(valid.sum().to(losses.dtype)).clamp(min=1 / world_size())
    return (losses * valid).sum() / counted


def image_pairs(query: Float[Tensor, "batch dim"], key: Float[Tensor, "batch dim"]) -> Pairs:
    """Image vectors as pairs: each image has one, whose positive is the one of its other view."""
    one = torch.zeros(len(query), 1, dtype=torch.long, device=query.device)
    same = torch.ones(len(query), 1, 1, dtype=torch.bool, device=query.device)
    return Pairs(query[:, None], key[:, None], one, None, near=same, near_query=same)
