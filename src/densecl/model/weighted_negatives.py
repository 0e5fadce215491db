"""A softer form of the dense loss: a negative that looks like the query counts less.

Two cells of a wall are negatives of each other, though nothing tells them apart. The backbone's features say how alike
two cells look: with c_ij, the cosine between those of query cell i and key cell j, the negatives' log-sum-exp becomes

    log sum_j w_ij exp(q_i.k_j / t)    with    w_ij = 1 - max(c_ij, 0)^2

The form of the weight is our own. It is 1 for whatever does not resemble the query, and 0 for what looks the same.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from densecl.model.attention_kernels import accumulator
from densecl.model.distributed import mean_over_processes

#: Bytes of similarities that are worked on at a time.
PART_BYTES = 2**25


class Looks(NamedTuple):
    """How the cells of two views look: of each its backbone features, without their mean, then L2-normalized."""

    query: Float[Tensor, "batch cells channels"]
    key: Float[Tensor, "batch key_cells channels"]


@torch.no_grad()
def looks(
    query: Float[Tensor, "batch channels rows cols"], key: Float[Tensor, "batch channels key_rows key_cols"]
) -> Looks:
    """From the backbone's maps of two views.

    Features that come out of a ReLU all point into the same corner, so that any two cells would look alike. So the mean
    over the cells of both views, of the whole batch, is taken off first.
    """
    sides = [accumulator(side).flatten(2).transpose(1, 2) for side in (query, key)]
    mean = mean_over_processes(torch.stack([side.mean(dim=(0, 1)) for side in sides]).mean(dim=0))
    return Looks(*(F.normalize(side - mean, dim=2) for side in sides))


def weighted_log_sum_exp(
    query: Float[Tensor, "batch cells dim"],
    key: Float[Tensor, "all_images key_cells dim"],
    not_negative: Bool[Tensor, "batch cells key_cells"],
    query_looks: Float[Tensor, "batch cells channels"],
    key_looks: Float[Tensor, "all_images key_cells channels"],
    temperature: float,
    first_image: int = 0,
) -> Float[Tensor, "batch cells"]:
    """log sum_j w_ij exp(q_i.k_j / temperature) over the key cells of all images.

    The weights have no gradient. The similarities do not fit into one fused call, because each has a weight of its own.
    So they are computed plainly, some images at a time, and again in the backward pass.

    Args:
        query: L2-normalized cells.
        key: the same, of all devices.
        not_negative: key cells of the own image that do not count.
        query_looks: from `looks`.
        key_looks: the same, of all devices.
        temperature: above 0.
        first_image: where in `key` the image of the first query stands.
    """
    keys, looks_of_keys = key.flatten(0, 1), key_looks.flatten(0, 1)

    def of_some(query: Tensor, keys: Tensor, query_looks: Tensor, not_negative: Tensor, own: Tensor) -> Tensor:
        with torch.no_grad():
            alike = (query_looks @ looks_of_keys.T).clamp(min=0)
            log_weight = (1 - alike.square()).clamp(min=torch.finfo(alike.dtype).tiny).log_()
        scores = accumulator(query) @ accumulator(keys).T / temperature + log_weight
        excluded = own[:, None, :, None] & not_negative[:, :, None, :]  # images cells all_images key_cells
        return scores.masked_fill(excluded.flatten(2), torch.finfo(scores.dtype).min).logsumexp(dim=2)

    images = torch.arange(len(key), device=key.device)
    own = images == images[first_image : first_image + len(query), None]  # batch all_images
    at_a_time = max(1, PART_BYTES // max(1, 4 * query.shape[1] * len(keys)))
    together = zip(*(each.split(at_a_time) for each in (query, query_looks, not_negative, own)), strict=True)
    return torch.cat(
        [
            checkpoint(of_some, one, keys, look, excluded, place, use_reentrant=False, preserve_rng_state=False)
            for one, look, excluded, place in together
        ]
    )
