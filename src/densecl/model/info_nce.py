"""InfoNCE, the objective of contrastive learning: pick the positive out of the negatives [van den Oord et al. 2018].

The negatives enter only by the log-sum-exp of their logits, s- = log sum_j exp(q.k_j / t). With s+ = q.k+ / t

    loss = -log( exp(s+) / (exp(s+) + exp(s-)) ) = -log sigmoid(s+ - s-)

`log_sum_exp` computes s- without keeping the logits. The precision is that of the query, also under autocast; only
the products with negatives may be quicker (`precision.products_in`). Losses are in float32 at least.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from densecl.model.log_sum_exp import log_sum_exp, log_sum_exp_of_other_images, log_sum_exp_of_own_image
from densecl.model.weighted_negatives import weighted_log_sum_exp


def info_nce(
    query: Float[Tensor, "*queries dim"],
    positive: Float[Tensor, "*queries dim"],
    negatives: Float[Tensor, "queue dim"],
    temperature: float,
) -> Float[Tensor, "*queries"]:
    """The loss of each query against one positive of its own and negatives that all queries share.

        -log( exp(q.k+ / t) / (exp(q.k+ / t) + sum_j exp(q.k_j / t)) )

    Args:
        query: L2-normalized.
        positive: L2-normalized, one for each query.
        negatives: L2-normalized. If they need no gradient, they may change before the backward pass.
        temperature: above 0.
    """
    with torch.autocast(query.device.type, enabled=False):
        return _loss(query, positive, log_sum_exp(query, negatives, temperature), temperature)


def info_nce_over_cells(
    query: Float[Tensor, "batch cells dim"],
    key: Float[Tensor, "all_images key_cells dim"],
    positive: Int[Tensor, "batch cells"],
    not_negative: Bool[Tensor, "batch cells key_cells"],
    temperature: float,
    first_image: int = 0,
) -> Float[Tensor, "batch cells"]:
    """The loss of each query cell against every key cell of the batch, also those of its own image.

    Args:
        query: L2-normalized vectors of the cells of one view.
        key: the same of the other view, for all images of all devices. That view may have more or
            fewer cells than the query view.
        positive: for each query cell its positive, a cell of the same image.
        not_negative: key cells of the same image that are no negatives, because they show nearly the same place. The
            positive itself always counts.
        temperature: above 0.
        first_image: where in `key` the image of the first query stands.
    """
    with torch.autocast(query.device.type, enabled=False):
        own = key[first_image : first_image + len(query)]
        negative_logit = torch.logaddexp(
            log_sum_exp_of_other_images(query, key, temperature, first_image),
            log_sum_exp_of_own_image(query, own, not_negative.scatter(2, positive[:, :, None], True), temperature),
        )
        matched = own.gather(1, positive[:, :, None].expand_as(query))
        return _loss(query, matched, negative_logit, temperature)


def info_nce_over_weighted_cells(
    query: Float[Tensor, "batch cells dim"],
    key: Float[Tensor, "all_images key_cells dim"],
    positive: Int[Tensor, "batch cells"],
    not_negative: Bool[Tensor, "batch cells key_cells"],
    query_looks: Float[Tensor, "batch cells channels"],
    key_looks: Float[Tensor, "all_images key_cells channels"],
    temperature: float,
    first_image: int = 0,
) -> Float[Tensor, "batch cells"]:
    """The same, with a weight for each negative, which is less the more it looks like the query.

    Args:
        query: these and the others as in `info_nce_over_cells`.
        query_looks: how the query cells look, see `weighted_negatives`.
        key_looks: how the key cells look.
    """
    with torch.autocast(query.device.type, enabled=False):
        own = key[first_image : first_image + len(query)]
        excluded = not_negative.scatter(2, positive[:, :, None], True)
        negative_logit = weighted_log_sum_exp(query, key, excluded, query_looks, key_looks, temperature, first_image)
        matched = own.gather(1, positive[:, :, None].expand_as(query))
        return _loss(query, matched, negative_logit, temperature)


def _loss(query: Tensor, positive: Tensor, negative_logit: Tensor, temperature: float) -> Tensor:
    positive_logit = (query.to(negative_logit.dtype) * positive).sum(dim=-1) / temperature
    return -F.logsigmoid(positive_logit - negative_logit)
