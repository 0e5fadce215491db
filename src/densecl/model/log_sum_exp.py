"""The log-sum-exp of similarities, differentiable, without the similarities in memory.

For the scores s_ij = q_i.k_j / t of queries and keys,

    lse_i = log sum_j exp(s_ij)
    d lse_i / d q_i = 1/t * sum_j exp(s_ij - lse_i) k_j      the output of attention with the keys as values
    d lse_i / d k_j = 1/t * exp(s_ij - lse_i) q_i

so one attention call gives the value and, kept until the backward pass, all that the gradient of the queries needs. The
gradient of the keys takes another attention call, in which the keys attend to the queries (`_KeyGradient`).
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

from densecl.model.attention_kernels import DIM_MULTIPLE, accumulator, attend
from densecl.model.precision import products_dtype

#: Bytes that are worked on at a time: of similarities within images, or of keys in the backward pass.
PART_BYTES = 2**22


def log_sum_exp(
    query: Float[Tensor, "*queries dim"],
    key: Float[Tensor, "keys dim"],
    temperature: float,
) -> Float[Tensor, "*queries"]:
    """log sum_j exp(q.k_j / temperature) of each query, over keys that all queries share.

    The products are made in the dtype of the query, or in that of `precision.products_in`. Gradients have this dtype's
    accuracy but are returned in the query's dtype, because small gradients need its range. The result is in float32 at
    least. Keys without gradient may change before the backward pass.
    """
    queries = query.reshape(-1, query.shape[-1]).contiguous()
    result: Any = _LogSumExp.apply(queries, key.to(query.dtype).contiguous(), 1 / temperature, products_dtype(query))
    return result.reshape(query.shape[:-1])


def log_sum_exp_of_other_images(
    query: Float[Tensor, "batch cells dim"],
    key: Float[Tensor, "all_images key_cells dim"],
    temperature: float,
    first_image: int = 0,
) -> Float[Tensor, "batch cells"]:
    """The same for each query cell over the key cells of all images but its own.

    In `key` the image of the first query stands at `first_image`; the other images of the batch follow.
    """
    key = key.to(query.dtype).contiguous()
    images_only = query.shape[1] == 1  # their products are too few to be worth less precision
    products = query.dtype if images_only else products_dtype(query)
    result: Any = _LogSumExpOfOtherImages.apply(query.contiguous(), key, 1 / temperature, first_image, products)
    return result


def log_sum_exp_of_own_image(
    query: Float[Tensor, "batch cells dim"],
    key: Float[Tensor, "batch key_cells dim"],
    not_negative: Bool[Tensor, "batch cells key_cells"],
    temperature: float,
) -> Float[Tensor, "batch cells"]:
    """The same over the key cells of the own image, except those that are not negatives.

    Without any negative the result is the least finite number. These similarities are few, so they are computed
    plainly, some images at a time, and again in the backward pass.
    """

    def of_some(query: Tensor, key: Tensor, not_negative: Tensor) -> Tensor:
        scores = accumulator(query) @ accumulator(key).mT / temperature
        return scores.masked_fill(not_negative, torch.finfo(scores.dtype).min).logsumexp(dim=2)

    images = _parts(query.shape[1] * key.shape[1])
    parts = zip(query.split(images), key.split(images), not_negative.split(images), strict=True)
    return torch.cat([checkpoint(of_some, *part, use_reentrant=False, preserve_rng_state=False) for part in parts])


class _LogSumExp(Function):
    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, scale: float, products: torch.dtype) -> Tensor:
        ctx.scale, ctx.dtype = scale, query.dtype
        query, key = query.to(products), key.to(products)
        mean, lse = attend(query[None], key[None], key[None], scale)
        ctx.save_for_backward(mean[0], *((query, key, lse[0]) if ctx.needs_input_grad[1] else ()))
        return lse[0]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        mean, *kept = ctx.saved_tensors
        key_grad = None
        if kept:
            query, key, lse = kept
            key_grad = torch.empty_like(key, dtype=ctx.dtype)
            _KeyGradient(query[None], lse[None], grad[None], ctx.scale).of_all_queries(key, key_grad)
        return _query_gradient(mean, grad, ctx), key_grad, None, None


class _LogSumExpOfOtherImages(Function):
    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, scale: float, first_image: int, products: torch.dtype) -> Tensor:
        ctx.scale, ctx.first_image, ctx.dtype = scale, first_image, query.dtype
        query, key = query.to(products), key.to(products)
        others = other_images(key.expand(2, *key.shape).contiguous())[first_image:][: len(query)]
        mean, lse = attend(query, others, others, scale)
        ctx.save_for_backward(mean, *((query, key, lse) if ctx.needs_input_grad[1] else ()))
        return lse

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        mean, *kept = ctx.saved_tensors
        key_grad = None
        if kept:
            query, key, lse = kept
            key_grad = torch.empty_like(key, dtype=ctx.dtype)
            gradient = _KeyGradient(query, lse, grad, ctx.scale, copies=2)
            first, last = ctx.first_image, ctx.first_image + len(query)
            # Keys of our images met the queries of our other images. Keys of other processes met all our queries.
            gradient.of_other_images(key[first:last], key_grad[first:last])
            gradient.of_all_queries(key[:first].flatten(0, 1), key_grad[:first].flatten(0, 1))
            gradient.of_all_queries(key[last:].flatten(0, 1), key_grad[last:].flatten(0, 1))
        return _query_gradient(mean, grad, ctx), key_grad, None, None, None


def other_images(twice: Float[Tensor, "two images cells dim"]) -> Float[Tensor, "images other_cells dim"]:
    """For each image the cells of all others: windows on two copies in a row, so they need no memory."""
    images = twice.shape[1]
    windows = twice.flatten(0, 1).unfold(0, images - 1, 1)  # images + 2, cells, dim, images - 1
    return windows.movedim(3, 1).flatten(1, 2)[1:][:images]


def _query_gradient(mean: Tensor, grad: Tensor, ctx: Any) -> Tensor:
    return (mean * (grad[..., None] * ctx.scale)).to(ctx.dtype)


def _parts(numbers: int) -> int:
    """How many items of so many numbers are worked on at a time."""
    return max(1, PART_BYTES // max(1, 4 * numbers))


class _KeyGradient:
    """The gradient of keys, sum_i grad_i / t * exp(s_ij - lse_i) q_i, as attention of the keys to the queries.

    With one more coordinate, -lse_i * t for a query and 1 for a key, the scores s_ij - lse_i are products, too.
    """

    def __init__(self, query: Tensor, lse: Tensor, grad: Tensor, scale: float, copies: int = 1) -> None:
        images, cells, dim = query.shape
        self.query = query.new_zeros(copies, images, cells, dim + DIM_MULTIPLE)
        self.value = torch.zeros_like(self.query)
        self.scale = scale

        rest = -lse / scale
        for number in range(dim, dim + 3):  # half precision needs three numbers for one of float32
            self.query[0, ..., number] = rest
            rest = rest - self.query[0, ..., number]
        self.query[0, ..., :dim] = query
        largest = grad.abs().amax().clamp(min=torch.finfo(grad.dtype).tiny)  # float16 has few small numbers
        torch.mul(query, (grad / largest)[..., None], out=self.value[0, ..., :dim])
        self.factor = largest * scale
        for each in (self.query, self.value):
            each[1:] = each[0]

    def of_other_images(self, key: Tensor, out: Tensor) -> None:
        """Writes to `out` the gradient that the keys of each image, "images cells dim", get from all other images."""
        at_a_time = _parts(self.query[0, 0].numel())
        together = (key, out, other_images(self.query), other_images(self.value))
        for part in zip(*(each.split(at_a_time) for each in together), strict=True):
            self._write(*part)

    def of_all_queries(self, key: Tensor, out: Tensor) -> None:
        """Writes to `out` the gradient that keys, "keys dim", get from all queries."""
        query, value = (each[0].flatten(0, 1)[None] for each in (self.query, self.value))
        at_a_time = _parts(self.query.shape[-1])
        for key_part, out_part in zip(key.split(at_a_time), out.split(at_a_time), strict=True):
            self._write(key_part[None], out_part[None], query, value)

    def _write(self, key: Tensor, out: Tensor, query: Tensor, value: Tensor) -> None:
        # In the queries the rest of the added coordinates is 0.
        mean, lse = attend(F.pad(key, (0, DIM_MULTIPLE), value=1.0), query, value, self.scale)
        torch.mul(mean[..., : key.shape[-1]], (lse.exp() * self.factor)[..., None], out=out)
