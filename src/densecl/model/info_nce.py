"""InfoNCE, the objective of contrastive learning: pick the positive out of the negatives [van den Oord et al. 2018]."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


def info_nce(
    query: Float[Tensor, "*queries dim"],
    positive: Float[Tensor, "*queries dim"],
    negatives: Float[Tensor, "queue dim"],
    temperature: float,
) -> Float[Tensor, "*queries"]:
    """The loss of each query against one positive of its own and negatives that all queries share.

        -log( exp(q.k+ / t) / (exp(q.k+ / t) + sum_j exp(q.k_j / t)) )

    Args:
        query: unit vectors.
        positive: unit vectors, one for each query.
        negatives: unit vectors.
        temperature: above 0.
    """
    positive_logit = (query * positive).sum(dim=-1) / temperature
    negative_logits = query @ negatives.T / temperature
    return torch.logaddexp(negative_logits.logsumexp(dim=-1), positive_logit) - positive_logit


def info_nce_over_cells(
    query: Float[Tensor, "batch cells dim"],
    key: Float[Tensor, "all_images key_cells dim"],
    positive: Int[Tensor, "batch cells"],
    excluded: Bool[Tensor, "batch cells key_cells"],
    temperature: float,
    first_image: int = 0,
) -> Float[Tensor, "batch cells"]:
    """The loss of each query cell against every key cell of the batch, those of its own image included.

    Args:
        query: unit vectors of the cells of one view.
        key: unit vectors of the cells of the other view, of all images (of all devices). There may be more or fewer
            to an image than in the query view.
        positive: for each query cell its positive, a cell of the same image.
        excluded: key cells of the same image that are neither positive nor negative, because they
            show nearly the same place. The positive itself always counts.
        temperature: above 0.
        first_image: where in `key` the image of the first query stands.
    """
    batch, cells, dim = query.shape
    key_cells = key.shape[1]
    images = torch.arange(batch, device=query.device)
    logits = (query.reshape(-1, dim) @ key.reshape(-1, dim).T / temperature).unflatten(0, (batch, cells))
    own = torch.arange(key_cells, device=query.device) + (first_image + images[:, None]) * key_cells
    own = own[:, None, :].expand(-1, cells, -1)  # batch cells key_cells: the columns of a query cell's own image

    # Leaving the positive among the candidates keeps the softmax finite when all others are excluded.
    excluded = excluded.scatter(2, positive[:, :, None], False)
    own_logits = logits.gather(2, own)
    positive_logit = own_logits.gather(2, positive[:, :, None]).squeeze(2)
    candidates = logits.scatter(2, own, own_logits.masked_fill(excluded, -torch.inf))
    return candidates.logsumexp(dim=2) - positive_logit
