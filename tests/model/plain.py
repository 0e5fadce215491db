"""InfoNCE as one would write it down, logits and all: in float64, what the package's form is measured by."""

from __future__ import annotations

import torch
from torch import Tensor


def info_nce(query: Tensor, positive: Tensor, negatives: Tensor, temperature: float) -> Tensor:
    positive_logit = (query * positive).sum(dim=-1, keepdim=True) / temperature
    logits = torch.cat([positive_logit, query @ negatives.T / temperature], dim=-1)
    return -logits.log_softmax(dim=-1)[..., 0]


def info_nce_over_cells(
    query: Tensor, key: Tensor, positive: Tensor, excluded: Tensor, temperature: float, first_image: int = 0
) -> Tensor:
    """Every key cell of every image is a column; those that do not count are minus infinity."""
    (batch, cells, _), images = query.shape, len(key)
    logits = torch.einsum("bqd, ikd -> bqik", query, key) / temperature
    left_out = torch.zeros(batch, cells, images, cells, dtype=torch.bool)
    for image in range(batch):
        left_out[image, :, first_image + image] = excluded[image].scatter(1, positive[image][:, None], False)
    logits = logits.masked_fill(left_out, -torch.inf).flatten(2)
    column = (first_image + torch.arange(batch))[:, None] * cells + positive
    return -logits.log_softmax(dim=2).gather(2, column[:, :, None]).squeeze(2)
