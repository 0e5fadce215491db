"""The log-sum-exp of similarities, differentiable, without the similarities in memory.

For the scores s_ij = q_i.k_j / t of queries and keys,

    lse_i = log sum_j exp(s_ij)
    d lse_i / d q_i = 1/t * sum_j exp(s_ij - lse_i) k_j      the output of attention with the keys as values
    d lse_i / d k_j = 1/t * exp(s_ij - lse_i) q_i

so that one attention call gives the value and, kept until the backward pass, all that the gradient of the queries
needs. The gradient of the keys is an attention call once more, in which keys ask queries (`_KeyGradient`).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

from densecl.model.attention_kernels import CHUNK_BYTES, DIM_MULTIPLE, accumulator, attend


def log_sum_exp(
    query: Float[Tensor, "*queries dim"], key: Float[Tensor, "keys dim"], temperature: float
) -> Float[Tensor, "*queries"]:
    """log sum_j exp(q.k_j / temperature) of each query, over keys that all queries share.

    Half precision is computed by half precision's kernels; the result is in float32 at least. Keys that need no
    gradient may change before the backward pass.
    """
    queries = query.reshape(-1, query.shape[-1]).contiguous()
    result: Any = _LogSumExp.apply(queries, key.to(query.dtype).contiguous(), 1 / temperature)
    return result.reshape(query.shape[:-1])


def log_sum_exp_of_other_images(
    query: Float[Tensor, "batch cells dim"],
    key: Float[Tensor, "all_images cells dim"],
    temperature: float,
    first_image: int = 0,
) -> Float[Tensor, "batch cells"]:
    """The same for each query cell over the key cells of all images but its own.

    The image of the first query stands at `first_image` in `key`, the other images of the batch follow.
    """
    key = key.to(query.dtype).contiguous()
    result: Any = _LogSumExpOfOtherImages.apply(query.contiguous(), key, 1 / temperature, first_image)
    return result


def log_sum_exp_of_own_image(
    query: Float[Tensor, "batch cells dim"],
    key: Float[Tensor, "batch cells dim"],
    excluded: Bool[Tensor, "batch cells cells"],
    temperature: float,
) -> Float[Tensor, "batch cells"]:
    """The same over the key cells of the own image that are not excluded; of none, the least finite number.

    These similarities are few: they are made plainly, some images at a time, and once more for the backward pass.
    """

    def of_some(query: Tensor, key: Tensor, excluded: Tensor) -> Tensor:
        scores = accumulator(query) @ accumulator(key).mT / temperature
        return scores.masked_fill(excluded, torch.finfo(scores.dtype).min).logsumexp(dim=2)

    images = max(1, CHUNK_BYTES // max(1, 4 * query.shape[1] ** 2))
    parts = zip(query.split(images), key.split(images), excluded.split(images), strict=True)
    return torch.cat([checkpoint(of_some, *part, use_reentrant=False, preserve_rng_state=False) for part in parts])


class _LogSumExp(Function):
    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, scale: float) -> Tensor:
        mean, lse = attend(query[None], key[None], key[None], scale)
        ctx.scale = scale
        ctx.save_for_backward(mean[0], *((query, key, lse[0]) if ctx.needs_input_grad[1] else ()))
        return lse[0]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        mean, *kept = ctx.saved_tensors
        query_grad, key_grad = _query_gradient(mean, grad, ctx.scale), None
        if kept:
            query, key, lse = kept
            key_grad = _KeyGradient.of(query[None], lse[None], grad[None], ctx.scale).at(key[None])[0]
        return query_grad, key_grad, None


class _LogSumExpOfOtherImages(Function):
    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, scale: float, first_image: int) -> Tensor:
        others = other_images(key)[first_image:][: len(query)]
        mean, lse = attend(query, others, others, scale)
        ctx.scale, ctx.first_image = scale, first_image
        ctx.save_for_backward(mean, *((query, key, lse) if ctx.needs_input_grad[1] else ()))
        return lse

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        mean, *kept = ctx.saved_tensors
        query_grad, key_grad = _query_gradient(mean, grad, ctx.scale), None
        if kept:
            query, key, lse = kept
            own = slice(ctx.first_image, ctx.first_image + len(query))
            gradient = _KeyGradient.of(query, lse, grad, ctx.scale)
            key_grad = torch.empty_like(key)
            # Keys of these images met the queries of the other ones here, keys of another process's met all of them.
            key_grad[own] = gradient.from_other_images().at(key[own])
            for elsewhere in (slice(0, own.start), slice(own.stop, len(key))):
                keys = key[elsewhere]
                key_grad[elsewhere] = gradient.from_all().at(keys.flatten(0, 1)[None]).view_as(keys)
        return query_grad, key_grad, None, None


def other_images(values: Float[Tensor, "images cells dim"]) -> Float[Tensor, "images other_cells dim"]:
    """For each image the cells of all others: windows on two copies in a row, of the size of two copies."""
    twice = torch.cat([values, values])
    windows = twice.unfold(0, len(values) - 1, 1)  # images + 2, cells, dim, images - 1
    return windows.movedim(3, 1).flatten(1, 2)[1:][: len(values)]


def _query_gradient(mean: Tensor, grad: Tensor, scale: float) -> Tensor:
    return (mean * (grad[..., None] * scale)).to(mean.dtype)


class _KeyGradient(NamedTuple):
    """The gradient of keys, sum_i grad_i / t * exp(s_ij - lse_i) q_i, as attention of the keys to the queries.

    The scores s_ij - lse_i are products too if each query gets -lse_i * t, and each key 1, as another coordinate.
    """

    query: Tensor  # groups queries dim + DIM_MULTIPLE
    value: Tensor  # the same shape, filled up with zeros
    scale: float
    factor: Tensor

    @classmethod
    def of(cls, query: Tensor, lse: Tensor, grad: Tensor, scale: float) -> _KeyGradient:
        coordinates, rest = [], -lse / scale
        for _ in range(3):  # half precision needs three numbers for what float32 says in one
            coordinates.append(rest.to(query.dtype))
            rest = rest - coordinates[-1]
        extra = F.pad(torch.stack(coordinates, dim=-1), (0, DIM_MULTIPLE - 3))
        largest = grad.abs().amax().clamp(min=torch.finfo(grad.dtype).tiny)  # float16 has few small numbers
        value = (query * (grad / largest)[..., None]).to(query.dtype)
        return cls(torch.cat([query, extra], dim=-1), F.pad(value, (0, DIM_MULTIPLE)), scale, largest * scale)

    def from_other_images(self) -> _KeyGradient:
        return self._replace(query=other_images(self.query), value=other_images(self.value))

    def from_all(self) -> _KeyGradient:
        return self._replace(query=self.query.flatten(0, 1)[None], value=self.value.flatten(0, 1)[None])

    def at(self, key: Float[Tensor, "groups keys dim"]) -> Float[Tensor, "groups keys dim"]:
        ones = F.pad(key, (0, 3), value=1.0)
        mean, lse = attend(F.pad(ones, (0, DIM_MULTIPLE - 3)), self.query, self.value, self.scale)
        return (mean[..., : key.shape[-1]] * (lse.exp() * self.factor)[..., None]).to(key.dtype)
