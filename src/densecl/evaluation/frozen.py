"""Using a backbone without changing it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import nn


@contextlib.contextmanager
def evaluating(backbone: nn.Module) -> Iterator[None]:
    """Evaluation mode and no gradient; afterwards every module is in the mode it was in."""
    training = {module: module.training for module in backbone.modules()}
    backbone.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, was in training.items():
            module.training = was
