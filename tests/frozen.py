"""A small network in training mode whose owner keeps its batch norm in evaluation mode."""

from __future__ import annotations

from torch import Tensor, nn


class WatchedNorm(nn.BatchNorm2d):
    """Batch norm that remembers whether it ever took the statistics of a batch, in itself or in a copy."""

    trained = False

    def forward(self, pixels: Tensor) -> Tensor:
        WatchedNorm.trained |= self.training
        return super().forward(pixels)


def frozen_norm() -> nn.Sequential:
    WatchedNorm.trained = False
    norm = WatchedNorm(8)
    norm.eval()
    return nn.Sequential(nn.Conv2d(3, 8, 4, stride=4), norm, nn.ReLU(), nn.Dropout(0.1), nn.Conv2d(8, 16, 2, stride=2))


def modes(module: nn.Module) -> list[bool]:
    """Whether each part is in training mode."""
    return [part.training for part in module.modules()]
