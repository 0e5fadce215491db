"""MoCo and SimCLR: pick the positive out of the negatives (InfoNCE). They differ in what the negatives are."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from densecl.model.distributed import gather, gather_with_gradient, rank
from densecl.model.info_nce import info_nce, info_nce_over_cells, info_nce_over_weighted_cells
from densecl.model.objectives.objective import Objective, Pairs, Temperature, mean_over_valid


class MoCo(Objective):
    """Negatives are a queue of keys [He et al. 2020], or the batch's other key cells. Keys have no gradient."""

    def forward(self, pairs: Pairs, temperature: Temperature) -> Float[Tensor, ""]:
        if pairs.negatives is not None:
            losses = info_nce(pairs.query, pairs.positive, pairs.negatives, temperature.query)
        else:
            looks = None if pairs.looks is None else gather(pairs.looks.key)
            losses = _among_cells(pairs, gather(pairs.key), pairs.not_negative, looks, temperature.query)
        return mean_over_valid(losses, pairs.valid)


class SimCLR(Objective):
    """NT-Xent [Chen et al. 2020, eq. 1]: negatives are the batch's other vectors of both views, with gradient.

    N images give each query vector 2N - 1 candidates. The average over both directions is the paper's mean over 2N. In
    dense learning the vectors are cells, or the pooled vectors of the other images.
    """

    def forward(self, pairs: Pairs, temperature: Temperature) -> Float[Tensor, ""]:
        if pairs.pooled is not None:
            losses = _against_other_images(pairs, gather_with_gradient(pairs.pooled), temperature.query)
        else:
            candidates = gather_with_gradient(torch.cat([pairs.key, pairs.query], dim=1))
            not_negative = torch.cat([pairs.not_negative, pairs.not_negative_query], dim=2)
            looks = None if pairs.looks is None else gather(torch.cat([pairs.looks.key, pairs.looks.query], dim=1))
            losses = _among_cells(pairs, candidates, not_negative, looks, temperature.query)
        return mean_over_valid(losses, pairs.valid)


def _among_cells(
    pairs: Pairs,
    candidates: Float[Tensor, "all_images candidates dim"],
    not_negative: Bool[Tensor, "batch cells candidates"],
    looks: Float[Tensor, "all_images candidates channels"] | None,
    temperature: float,
) -> Float[Tensor, "batch cells"]:
    """InfoNCE among cells of the batch; with looks of the candidates, each negative with its weight."""
    first_image = rank() * len(pairs.query)
    if looks is None or pairs.looks is None:
        return info_nce_over_cells(pairs.query, candidates, pairs.match, not_negative, temperature, first_image)
    return info_nce_over_weighted_cells(
        pairs.query, candidates, pairs.match, not_negative, pairs.looks.query, looks, temperature, first_image
    )


def _against_other_images(
    pairs: Pairs, pooled: Float[Tensor, "all_images views dim"], temperature: float
) -> Float[Tensor, "batch cells"]:
    """InfoNCE whose negatives are the pooled vectors of all other images."""
    batch, cells, dim = pairs.query.shape
    own = torch.arange(len(pooled), device=pooled.device) == rank() * batch + torch.arange(
        batch, device=pooled.device
    ).unsqueeze(1)  # batch all_images
    logits = pairs.query @ pooled.reshape(-1, dim).T / temperature
    own = own.repeat_interleave(pooled.shape[1], dim=1)[:, None].expand(-1, cells, -1)
    positive_logit = (pairs.query * pairs.positive).sum(dim=2) / temperature
    negatives = logits.masked_fill(own, -torch.inf).logsumexp(dim=2)
    return torch.logaddexp(negatives, positive_logit) - positive_logit
