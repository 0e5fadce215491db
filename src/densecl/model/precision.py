"""The precision of a loss: full, except for its many products with negatives, which may be quick.

A loss divides similarities by a small temperature, so half precision would spoil it. The products with negatives are
nearly all of the work, but only their sum counts, so half precision does for them. `log_sum_exp` asks for their dtype
here; nothing in between needs to know it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar

import torch
from torch import Tensor

_products: ContextVar[torch.dtype | None] = ContextVar("products", default=None)


@contextlib.contextmanager
def loss_precision(vectors: Tensor) -> Iterator[None]:
    """Turns autocast off for the loss of these vectors. Products with negatives stay quick if autocast was on."""
    quick = quick_dtype(vectors)  # asks whether autocast is on
    with products_in(quick), torch.autocast(vectors.device.type, enabled=False):
        yield


@contextlib.contextmanager
def products_in(dtype: torch.dtype | None) -> Iterator[None]:
    """Makes the products with negatives in this dtype; None: in that of the query vectors."""
    before = _products.set(dtype)
    try:
        yield
    finally:
        _products.reset(before)


def products_dtype(query: Tensor) -> torch.dtype:
    """The dtype for the products of these query vectors with negatives."""
    return _products.get() or query.dtype


def quick_dtype(vectors: Tensor) -> torch.dtype | None:
    """float16 for float32 vectors on an NVIDIA GPU under autocast, None elsewhere.

    Such GPUs have fast kernels for half precision and slow ones for float32. float16, because it is eight times as
    accurate as bfloat16 for vectors of length 1.
    """
    on_nvidia = vectors.is_cuda and torch.version.hip is None
    return torch.float16 if on_nvidia and vectors.dtype == torch.float32 and torch.is_autocast_enabled("cuda") else None
