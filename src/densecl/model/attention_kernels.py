"""Attention that also returns the log-sum-exp of its scores, with the best kernel that PyTorch has for the device.

PyTorch's public attention does not return the log-sum-exp. So this file, and no other, calls the private operators.
If one is missing or does not take the inputs, `attend_in_chunks` does the same in as little memory.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor
from torch.backends.cuda import SDPAParams, can_use_efficient_attention, can_use_flash_attention

#: Bytes of scores that `attend_in_chunks` holds at a time.
CHUNK_BYTES = 2**23
#: CUDA kernels want rows that are multiples of 16 bytes.
DIM_MULTIPLE = 8

Kernel = Callable[[Tensor, Tensor, Tensor, float], tuple[Tensor, Tensor]]


def attend(
    query: Float[Tensor, "groups queries dim"],
    key: Float[Tensor, "groups keys dim"],
    value: Float[Tensor, "groups keys dim"],
    scale: float,
) -> tuple[Float[Tensor, "groups queries dim"], Float[Tensor, "groups queries"]]:
    """The mean of the values under the softmax of the scores, and the log-sum-exp of the scores.

        score_ij = scale * q_i.k_j;  lse_i = log sum_j exp(score_ij);  mean_i = sum_j exp(score_ij - lse_i) v_j

    The groups are independent and may overlap in memory. The last axis must be contiguous. The scores never exist as a
    whole. Without keys the mean is 0 and the log-sum-exp minus infinity. No gradient flows through.

    Returns:
        The mean, in the inputs' dtype, and the log-sum-exp, in float32 at least.
    """
    with torch.no_grad(), torch.autocast(query.device.type, enabled=False):
        if not query.numel() or not key.numel():  # the kernels crash
            return torch.zeros_like(query), accumulator(query.new_empty(query.shape[:2])).fill_(-torch.inf)
        return _kernel_for(query, key, value)(query, key, value, scale)


def attend_in_chunks(query: Tensor, key: Tensor, value: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """`attend` on any device, `CHUNK_BYTES` of scores at a time (at least one row)."""
    mean, lse = torch.empty_like(query), accumulator(query.new_empty(query.shape[:2]))
    rows = max(1, CHUNK_BYTES // (key.shape[1] * lse.element_size()))
    for group in range(len(query)):
        group_key, group_value = accumulator(key[group]), accumulator(value[group])
        for start in range(0, query.shape[1], rows):
            here = group, slice(start, start + rows)
            scores = accumulator(query[here]).mul(scale) @ group_key.T
            largest = scores.amax(dim=1, keepdim=True)
            total = scores.sub_(largest).exp_().sum(dim=1, keepdim=True)
            lse[here] = (largest + total.log()).squeeze(1)
            mean[here] = scores @ group_value / total
    return mean, lse


def _kernel_for(query: Tensor, key: Tensor, value: Tensor) -> Kernel:
    aten: Any = torch.ops.aten
    if query.device.type == "cpu" and hasattr(aten, "_scaled_dot_product_flash_attention_for_cpu"):
        return _flash_on_cpu
    if query.is_cuda and torch.version.hip is None:
        heads = _padded_heads(query), _padded_heads(key), _padded_heads(value)
        params = SDPAParams(heads[0], heads[1], heads[2], None, 0.0, False, False)
        if hasattr(aten, "_scaled_dot_product_flash_attention") and can_use_flash_attention(params):
            return _flash_on_cuda  # half precision only
        if hasattr(aten, "_scaled_dot_product_efficient_attention") and can_use_efficient_attention(params):
            return _efficient_on_cuda
    return attend_in_chunks


def _flash_on_cpu(query: Tensor, key: Tensor, value: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    heads = (tensor[:, None] for tensor in (query, key, value))
    mean, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(*heads, scale=scale)
    return mean[:, 0], lse[:, 0]


def _flash_on_cuda(query: Tensor, key: Tensor, value: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    heads = map(_padded_heads, (query, key, value))
    mean, lse, *_ = torch.ops.aten._scaled_dot_product_flash_attention(*heads, scale=scale)
    return _unpadded(mean, lse, query)


def _efficient_on_cuda(query: Tensor, key: Tensor, value: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    heads = map(_padded_heads, (query, key, value))
    mean, lse, *_ = torch.ops.aten._scaled_dot_product_efficient_attention(*heads, None, True, scale=scale)
    return _unpadded(mean, lse, query)


def _padded_heads(tensor: Tensor) -> Tensor:
    """As one attention head. Zeros fill up its dim; they change no product."""
    missing = -tensor.shape[-1] % DIM_MULTIPLE
    return (F.pad(tensor, (0, missing)) if missing else tensor)[:, None]


def _unpadded(mean: Tensor, lse: Tensor, query: Tensor) -> tuple[Tensor, Tensor]:
    """Drops the dims that `_padded_heads` added, and the queries that efficient attention adds to the log-sum-exp."""
    return mean[:, 0, :, : query.shape[2]], lse[:, 0, : query.shape[1]]


def accumulator(tensor: Tensor) -> Tensor:
    """Half precision made float32; float64 stays."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))
