"""The projection heads: from a backbone's feature map to one vector an image, and to one vector a cell."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, nn


class GlobalHead(nn.Module):
    """Average pool, Linear, ReLU, Linear. No norm layer. Not normalised to unit length [DenseCL, MoCo v2]."""

    def __init__(self, channels: int, hidden_dim: int, dim: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(channels, hidden_dim), nn.ReLU(), nn.Linear(hidden_dim, dim))
        for layer in self.layers:
            if isinstance(layer, nn.Linear):
                nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
                nn.init.zeros_(layer.bias)

    def forward(self, features: Float[Tensor, "batch channels rows cols"]) -> Float[Tensor, "batch dim"]:
        return self.layers(features.mean(dim=(2, 3)))


class DenseHead(nn.Module):
    """1x1 convolution, ReLU, 1x1 convolution: the global head's shape, cell by cell [DenseCL].

    The convolutions keep torch's default initialisation, as the authors' do.
    """

    def __init__(self, channels: int, hidden_dim: int, dim: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(channels, hidden_dim, 1), nn.ReLU(), nn.Conv2d(hidden_dim, dim, 1))

    def forward(self, features: Float[Tensor, "batch channels rows cols"]) -> Float[Tensor, "batch dim rows cols"]:
        return self.layers(features)
