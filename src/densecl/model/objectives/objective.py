"""What every objective gets and returns: query vectors with their positives go in, a loss comes out.

Global learning has one vector per image, dense learning one per cell. An objective need not know which: an image vector
is treated as the only cell of its image. So each method is written once.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from densecl.choices import DenseStatistics
from densecl.model.distributed import mean_over_processes, world_size
from densecl.model.weighted_negatives import Looks


class Pairs(NamedTuple):
    """The query vectors of one view, the key vectors of another, and how they belong together."""

    query: Float[Tensor, "batch cells dim"]
    key: Float[Tensor, "batch key_cells dim"]
    match: Int[Tensor, "batch cells"]  # for each query vector its positive, a key vector of the same image
    valid: Bool[Tensor, "batch cells"] | None  # pairs that count in the loss; None: all
    not_negative: Bool[Tensor, "batch cells key_cells"]  # key vectors of the image that are not negatives
    not_negative_query: Bool[Tensor, "batch cells cells"]  # the same for the query vectors; each is one of its own
    negatives: Float[Tensor, "queue dim"] | None = None  # a queue of other images' vectors; None: those of the batch
    looks: Looks | None = None  # weighs negatives of the batch by how much they look like the query; None: all the same
    pooled: Float[Tensor, "batch views dim"] | None = None  # a vector per view: negatives instead of the batch's cells

    @property
    def positive(self) -> Float[Tensor, "batch cells dim"]:
        """For each query vector its positive."""
        return self.key.gather(1, self.match[:, :, None].expand_as(self.query))


class Temperature(NamedTuple):
    """What similarities are divided by. A method uses one, both or none of them, see `methods.METHODS`."""

    query: float
    key: float = 1.0  # of DINO's teacher


class Objective(nn.Module):
    """Pulls query vectors towards their positives. A subclass has state only if its method has.

    Args:
        dim: length of the vectors.
        statistics: for losses of statistics, over which vectors they are taken: all matched "cells" of the batch, or
            those of each "position" in the query's map.

    Attributes:
        exchangeable: whether the loss stays the same if queries and positives change places.
    """

    exchangeable = False

    def __init__(self, dim: int, statistics: DenseStatistics = "cells") -> None:
        super().__init__()
        self.dim = dim
        self.statistics = statistics

    def forward(self, pairs: Pairs, temperature: Temperature) -> Float[Tensor, ""]:
        """The mean loss over the valid pairs. It carries the gradient.

        With several processes, the average of what they return must be the loss of the joined batch. DDP averages the
        gradients in the same way.
        """
        raise NotImplementedError

    def observe(self, keys: Float[Tensor, "vectors dim"], micro_batches: int = 1) -> None:
        """Sees all key vectors of a micro-batch after its losses, to update what a method keeps.

        With gradient accumulation a step has several micro-batches. A moving average must then move as far in all of
        them together as in one.
        """


def mean_over_valid(
    losses: Float[Tensor, "batch cells"], valid: Bool[Tensor, "batch cells"] | None
) -> Float[Tensor, ""]:
    """The mean loss of the valid pairs; 0 without any."""
    if valid is None:
        return losses.mean()
    # The divisor counts over all processes, whose gradients are then averaged.
    counted = mean_over_processes(valid.sum().to(losses.dtype)).clamp(min=1 / world_size())
    return (losses * valid).sum() / counted


def image_pairs(
    query: Float[Tensor, "batch dim"],
    key: Float[Tensor, "batch dim"],
    negatives: Float[Tensor, "queue dim"] | None = None,
) -> Pairs:
    """Image vectors as pairs: the positive of each is the vector of its other view."""
    same = torch.ones(len(query), 1, 1, dtype=torch.bool, device=query.device)
    return Pairs(
        query=query[:, None],
        key=key[:, None],
        match=torch.zeros(len(query), 1, dtype=torch.long, device=query.device),
        valid=None,
        not_negative=same,
        not_negative_query=same,
        negatives=negatives,
    )
