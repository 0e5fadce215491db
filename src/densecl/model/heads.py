"""The projection heads and predictors: from a feature map to one vector per image and one vector per cell.

Both levels have the same layers: a 1x1 convolution is a linear layer for each cell.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from densecl.errors import UserError

#: Length of the L2-normalized vectors that DINO compares with its prototypes [Caron et al. 2021].
BOTTLENECK = 256


@dataclass(frozen=True)
class HeadShape:
    """The layers of a projector or predictor: linear, with norm and activation after all but the last.

    A width is a number of units or a ratio to the backbone's channels. With a ratio the head fits any backbone and is
    the paper's on a ResNet-50, which has 2048 channels.

    Raises:
        UserError: both are given for one width, or a number of units that is no whole number above 0.
    """

    layers: int = 2
    hidden: int | None = None  # units of the hidden layers
    hidden_ratio: float | None = None  # neither: 1
    dim: int | None = None  # length of the vectors
    dim_ratio: float | None = None  # neither: a length of 128
    norm: bool = False  # batch norm after each hidden layer
    last_norm: bool = False  # and after the last, without a learned scale
    activation: type[nn.Module] = nn.ReLU
    prototypes: bool = False  # the vectors are similarities to this many prototypes

    def __post_init__(self) -> None:
        for name in ("hidden", "dim"):
            units, ratio = getattr(self, name), getattr(self, f"{name}_ratio")
            if units is not None and (not isinstance(units, int) or units < 1):
                raise UserError(
                    f"HeadShape: {name} is a number of units, not {units}. A multiple of the backbone's width is"
                    f" {name}_ratio={units}."
                )
            if units is not None and ratio is not None:
                raise UserError(f"HeadShape: give {name} or {name}_ratio, not both.")

    def widths(self, channels: int, hidden: int | None = None, dim: int | None = None) -> tuple[int, int]:
        """Widths of the hidden layers and of the vectors for a backbone. Numbers that are given come first."""
        hidden = hidden or self.hidden or round((self.hidden_ratio or 1) * channels)
        dim = dim or self.dim or (round(self.dim_ratio * channels) if self.dim_ratio else 128)
        return hidden, dim


class GlobalHead(nn.Module):
    """Average pool, then linear layers [MoCo v2: Linear, ReLU, Linear]. The vectors are not L2-normalized."""

    def __init__(self, channels: int, hidden_dim: int, dim: int, shape: HeadShape | None = None) -> None:
        super().__init__()
        self.dim = dim
        self.layers = head_layers(channels, hidden_dim, dim, shape or HeadShape(), cells=False)
        for layer in self.layers:
            if isinstance(layer, nn.Linear):
                nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
                nn.init.zeros_(layer.bias)

    def forward(self, features: Float[Tensor, "batch channels rows cols"]) -> Float[Tensor, "batch dim"]:
        return self.layers(features.mean(dim=(2, 3)))


class DenseHead(nn.Module):
    """The global head's layers for each cell, as 1x1 convolutions [DenseCL: two, with a ReLU between].

    They keep torch's default initialization, as in the authors' code.
    """

    def __init__(self, channels: int, hidden_dim: int, dim: int, shape: HeadShape | None = None) -> None:
        super().__init__()
        self.dim = dim
        self.layers = head_layers(channels, hidden_dim, dim, shape or HeadShape(), cells=True)

    def forward(self, features: Float[Tensor, "batch channels rows cols"]) -> Float[Tensor, "batch dim rows cols"]:
        return self.layers(features)


def head_layers(channels: int, hidden_dim: int, dim: int, shape: HeadShape, *, cells: bool) -> nn.Sequential:
    """The layers of a head, for "batch channels rows cols" if `cells`, else for "batch channels"."""
    norm = nn.BatchNorm2d if cells else nn.BatchNorm1d
    end = BOTTLENECK if shape.prototypes else dim
    widths = [channels, *[hidden_dim] * (shape.layers - 1), end]
    layers: list[nn.Module] = []
    for number, (before, after) in enumerate(itertools.pairwise(widths), start=1):
        layers.append(nn.Conv2d(before, after, 1) if cells else nn.Linear(before, after))
        if number < shape.layers:
            layers += [norm(after)] if shape.norm else []
            layers.append(shape.activation())
    layers += [norm(end, affine=False)] if shape.last_norm else []
    layers += [Prototypes(end, dim)] if shape.prototypes else []
    return nn.Sequential(*layers)


class Prototypes(nn.Module):
    """Cosine similarity to each prototype: a linear layer without bias, weight-normalized at length 1 [DINO].

    In full precision, because the similarities are later divided by a temperature of a few hundredths.
    """

    def __init__(self, dim: int, count: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(count, dim))
        nn.init.trunc_normal_(self.weight, std=0.02)

    def extra_repr(self) -> str:
        return "count={}, dim={}".format(*self.weight.shape)

    def forward(self, vectors: Float[Tensor, "batch dim *cells"]) -> Float[Tensor, "batch count *cells"]:
        with torch.autocast(vectors.device.type, enabled=False):
            vectors = vectors.to(torch.promote_types(vectors.dtype, torch.float32))
            unit = F.normalize(vectors, dim=1).movedim(1, -1)
            return F.linear(unit, F.normalize(self.weight, dim=1)).movedim(-1, 1)
