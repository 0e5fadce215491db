"""Barlow Twins and VICReg: no negatives. Statistics of the dimensions over many vectors keep the vectors apart.

Each statistic is taken over a group of vectors. In global learning the batch is one group. In dense learning all
matched cells of the batch are one group, or the cells at each position of the query's map are one [VICRegL, Bardes et
al. 2022].
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from densecl.model.distributed import gather, gather_with_gradient
from densecl.model.objectives.objective import Objective, Pairs, Temperature

#: VICReg's threshold of a dimension's standard deviation, and what keeps the root's gradient finite [paper].
DEVIATION, VARIANCE_EPSILON = 1.0, 1e-4

#: Of the batch norm with which the authors of Barlow Twins normalize dimensions.
NORM_EPSILON = 1e-5


class _Redundancy(Objective):
    exchangeable = True  # only transposes the correlation

    def extra_repr(self) -> str:
        return f"statistics={self.statistics}"

    def forward(self, pairs: Pairs, temperature: Temperature) -> Float[Tensor, ""]:
        query, positive = gather_with_gradient(pairs.query), gather_with_gradient(pairs.positive)
        valid = torch.ones_like(query[:, :, 0]) if pairs.valid is None else gather(pairs.valid).to(query.dtype)
        if self.statistics == "position":
            query, positive, valid = (values.transpose(0, 1) for values in (query, positive, valid))
        else:
            query, positive, valid = (values.flatten(0, 1)[None] for values in (query, positive, valid))
        counted = (valid.sum(dim=1) >= 2).to(query.dtype)  # a single vector has no statistics
        losses = self.of_groups(query, positive, valid)
        return (losses * counted).sum() / counted.sum().clamp(min=1)

    def of_groups(
        self,
        query: Float[Tensor, "groups vectors dim"],
        positive: Float[Tensor, "groups vectors dim"],
        valid: Float[Tensor, "groups vectors"],
    ) -> Float[Tensor, "groups"]:
        """The loss of each group. A group of fewer than two valid vectors may have any finite loss."""
        raise NotImplementedError


class BarlowTwins(_Redundancy):
    """The correlation between the two views' dimensions should be 1 on the diagonal and 0 elsewhere.

    This is `barlow_twins` divided by the number of dimensions. So both levels have the same weight, whatever their
    widths.
    """

    def of_groups(
        self,
        query: Float[Tensor, "groups vectors dim"],
        positive: Float[Tensor, "groups vectors dim"],
        valid: Float[Tensor, "groups vectors"],
    ) -> Float[Tensor, "groups"]:
        return barlow_twins(query, positive, valid) / query.shape[2]


class VICReg(_Redundancy):
    """`vicreg`."""

    def of_groups(
        self,
        query: Float[Tensor, "groups vectors dim"],
        positive: Float[Tensor, "groups vectors dim"],
        valid: Float[Tensor, "groups vectors"],
    ) -> Float[Tensor, "groups"]:
        return vicreg(query, positive, valid)


def barlow_twins(
    query: Float[Tensor, "groups vectors dim"],
    positive: Float[Tensor, "groups vectors dim"],
    valid: Float[Tensor, "groups vectors"],
    off_diagonal: float = 5e-3,
) -> Float[Tensor, "groups"]:
    """sum_i (1 - C_ii)^2 + off_diagonal * sum_{i != j} C_ij^2 [Zbontar et al. 2021, eq. 1 and 2].

    C is the correlation between dimension i of the query vectors and dimension j of their positives.

    Args:
        query: not normalized.
        positive: one for each query vector.
        valid: 1 for vectors of valid pairs, 0 for others.
        off_diagonal: weight of the second term [paper: 0.005].
    """
    count = valid.sum(dim=1).clamp(min=1)[:, None, None]
    query, positive = (_standardized(vectors, valid, count) for vectors in (query, positive))
    correlation = query.transpose(1, 2) @ positive / count  # groups dim dim
    diagonal = correlation.diagonal(dim1=1, dim2=2)
    squares = correlation.square().sum(dim=(1, 2)) - diagonal.square().sum(dim=1)
    return (1 - diagonal).square().sum(dim=1) + off_diagonal * squares


def vicreg(
    query: Float[Tensor, "groups vectors dim"],
    positive: Float[Tensor, "groups vectors dim"],
    valid: Float[Tensor, "groups vectors"],
    invariance: float = 25.0,
    variance: float = 25.0,
    covariance: float = 1.0,
) -> Float[Tensor, "groups"]:
    """invariance * s(Z, Z') + variance * mean of v(Z), v(Z') + covariance * (c(Z) + c(Z')) [Bardes et al. 2022, eq. 6].

    s is the mean squared difference. v is the mean over dimensions of max(0, 1 - standard deviation). c is the sum of
    the squared covariances between dimensions, divided by the number of dimensions. The divisors are those of the
    authors' code, for which the weights were chosen. In the paper, s adds up the dimensions and v both views.

    Args:
        query: not normalized.
        positive: one for each query vector.
        valid: 1 for vectors of valid pairs, 0 for others.
        invariance: its weight [paper: 25].
        variance: its weight [paper: 25].
        covariance: its weight [paper: 1].
    """
    dim = query.shape[2]
    count = valid.sum(dim=1).clamp(min=2)[:, None, None]
    difference = ((query - positive).square().sum(dim=2) * valid).sum(dim=1) / (count[:, 0, 0] * dim)
    spread, shared = torch.zeros_like(difference), torch.zeros_like(difference)
    for vectors in (query, positive):
        centered = _centered(vectors, valid, count)
        covariances = centered.transpose(1, 2) @ centered / (count - 1)  # groups dim dim
        variances = covariances.diagonal(dim1=1, dim2=2)
        spread = spread + (DEVIATION - (variances + VARIANCE_EPSILON).sqrt()).relu().mean(dim=1) / 2
        shared = shared + (covariances.square().sum(dim=(1, 2)) - variances.square().sum(dim=1)) / dim
    return invariance * difference + variance * spread + covariance * shared


def _centered(
    vectors: Float[Tensor, "groups vectors dim"],
    valid: Float[Tensor, "groups vectors"],
    count: Float[Tensor, "groups 1 1"],
) -> Float[Tensor, "groups vectors dim"]:
    """Without the mean of those that count; 0 where they do not."""
    weight = valid[:, :, None]
    return (vectors - (vectors * weight).sum(dim=1, keepdim=True) / count) * weight


def _standardized(
    vectors: Float[Tensor, "groups vectors dim"],
    valid: Float[Tensor, "groups vectors"],
    count: Float[Tensor, "groups 1 1"],
) -> Float[Tensor, "groups vectors dim"]:
    centered = _centered(vectors, valid, count)
    return centered / (centered.square().sum(dim=1, keepdim=True) / count + NORM_EPSILON).sqrt()
