"""What the method exchanges with other processes. With one process each function returns what it gets."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from jaxtyping import Float, Shaped
from torch import Tensor


def world_size() -> int:
    """Number of processes that train together."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Number of this process among them, from 0."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


@torch.no_grad()
def gather(local: Shaped[Tensor, "batch *rest"]) -> Shaped[Tensor, "all_images *rest"]:
    """Joins the parts of all processes in the order of their ranks. No gradient flows through."""
    if world_size() == 1:
        return local
    parts = [torch.empty_like(local) for _ in range(world_size())]
    dist.all_gather(parts, local.contiguous())
    return torch.cat(parts)


def gather_with_gradient(local: Float[Tensor, "batch *rest"]) -> Float[Tensor, "all_images *rest"]:
    """Joins the parts of all processes. Each part gets the sum of the gradients from all processes."""
    return local if world_size() == 1 else _Gather.apply(local)  # pyright: ignore[reportReturnType]


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, local: Tensor) -> Tensor:
        return gather(local)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        # Not a reduce-scatter, which gloo does not have. The tensors are small beside the encoders.
        (joined,) = gradients
        joined = joined.contiguous().clone()
        dist.all_reduce(joined)
        return own_part(joined)


def own_part(joined: Shaped[Tensor, "all_images *rest"]) -> Shaped[Tensor, "batch *rest"]:
    """The part of a joined tensor that belongs to this process: the inverse of `gather`."""
    return joined.chunk(world_size())[rank()]


@torch.no_grad()
def mean_over_processes(value: Tensor) -> Tensor:
    """The average of a value over all processes. No gradient flows through."""
    if world_size() == 1:
        return value
    value = value.clone()
    dist.all_reduce(value)
    return value / world_size()
