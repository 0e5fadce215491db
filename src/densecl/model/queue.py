"""A first-in-first-out memory of keys, the negatives of MoCo [He et al. 2020]."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn


class Queue(nn.Module):
    """The newest `length` keys. Starts with random vectors of length 1. Keys and position are in the state dict."""

    keys: Float[Tensor, "queue dim"]
    position: Int[Tensor, ""]

    def __init__(self, length: int, dim: int, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.register_buffer("keys", F.normalize(torch.randn(length, dim, generator=generator), dim=1))
        self.register_buffer("position", torch.zeros((), dtype=torch.long))

    def extra_repr(self) -> str:
        return "length={}, dim={}".format(*self.keys.shape)

    @torch.no_grad()
    def enqueue(self, keys: Float[Tensor, "batch dim"]) -> None:
        """Replaces the oldest keys and wraps round at the end. Of a long batch only the newest keys stay."""
        length = len(self.keys)
        keys = keys[-length:].to(self.keys.dtype)
        places = (self.position + torch.arange(len(keys), device=keys.device)) % length
        self.keys[places] = keys
        self.position.copy_((self.position + len(keys)) % length)
