"""What a run computes on: an NVIDIA or AMD GPU, Apple's, or the CPU."""

from __future__ import annotations

import functools
import warnings

import torch

from densecl.borrowed import seeded
from densecl.model import DenseCL, create_backbone
from densecl.views import Views


def choose_device() -> str:
    """ "cuda" (AMD's GPUs, too), "mps" (Apple's) or "cpu"."""
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() and why_not(torch.device("mps")) is None else "cpu"


@functools.cache
def why_not(device: torch.device) -> str | None:
    """Why a device cannot train: what torch says when it is tried on a tiny network. None: it can.

    Not every version of torch has all operations on Apple's GPUs. (With PYTORCH_ENABLE_MPS_FALLBACK=1, which the
    command line sets, those that it lacks are computed on the CPU.)
    """
    try:
        with seeded(0), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model = DenseCL(create_backbone("test_resnet"), method="simclr", matching="geometry").to(device)
            first, second = (_views(device) for _ in range(2))
            model(first, second).loss.backward()
            finite = all(one.grad.isfinite().all() for one in model.parameters() if one.grad is not None)
    except (RuntimeError, TypeError, NotImplementedError) as error:  # TypeError: no float64 there
        return " ".join(str(error).split())[:160]
    return None if finite else "its gradients are not finite"


def _views(device: torch.device) -> Views:
    box = torch.tensor([[0.0, 0.0, 1.0, 1.0]]).repeat(4, 1).to(device)
    return Views(torch.rand(4, 3, 64, 64).to(device), box, torch.zeros(4, dtype=torch.bool, device=device))
