"""From the pixels of a view to its vectors: the backbone with its projection heads, and the predictor after them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from densecl.model.backbone import Backbone
from densecl.model.heads import DenseHead, GlobalHead, head_layers
from densecl.model.methods import Method


class Embeddings(NamedTuple):
    """What an encoder makes of one view. Without a dense head the middle two are None.

    The vectors of contrastive methods have unit length, `pooled` always.
    """

    vector: Float[Tensor, "batch dim"]
    cells: Float[Tensor, "batch cells dim"] | None
    pooled: Float[Tensor, "batch dim"] | None  # the dense head's output averaged over the cells, then normalized
    features: Float[Tensor, "batch channels rows cols"]  # the backbone's map, pooled to the grid


class Encoder(nn.Module):
    """A backbone with its two projection heads (without `dense`, only the global one)."""

    def __init__(
        self,
        backbone: Backbone,
        method: Method,
        *,
        hidden_dim: int | None = None,
        dim: int | None = None,
        grid: int | None = None,
        dense: bool = True,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.grid = grid
        self.unit = method.unit
        shape, dense_shape = method.projector, method.dense_projector or method.projector
        hidden, self.dim = shape.widths(backbone.channels, hidden_dim, dim)
        dense_hidden, self.dense_dim = dense_shape.widths(backbone.channels, hidden_dim, dim)
        self.global_head = GlobalHead(backbone.channels, hidden, self.dim, shape)
        self.dense_head = DenseHead(backbone.channels, dense_hidden, self.dense_dim, dense_shape) if dense else None

    def forward(self, pixels: Float[Tensor, "batch channels height width"]) -> Embeddings:
        features = self.backbone(pixels)
        finish = unit if self.unit else at_least_float32
        vector = finish(self.global_head(features))
        if self.grid is not None:
            features = F.adaptive_avg_pool2d(features, self.grid)
        if self.dense_head is None:
            return Embeddings(vector, None, None, features)
        cells = self.dense_head(features).flatten(2)  # batch dim cells
        return Embeddings(vector, finish(cells.transpose(1, 2)), unit(cells.mean(dim=2)), features)


class Predictor(nn.Module):
    """From a view's projections to those of its other view, at each level with layers of its own [BYOL, SimSiam]."""

    def __init__(self, encoder: Encoder, method: Method, hidden_dim: int | None = None) -> None:
        super().__init__()
        assert method.predictor is not None
        hidden, _ = method.predictor.widths(encoder.backbone.channels, hidden_dim)
        self.vector_layers = head_layers(encoder.dim, hidden, encoder.dim, method.predictor, cells=False)
        self.cell_layers = None
        if encoder.dense_head is not None:
            dim = encoder.dense_dim
            self.cell_layers = head_layers(dim, hidden, dim, method.predictor, cells=True)

    def forward(self, projected: Embeddings) -> Embeddings:
        vector = at_least_float32(self.vector_layers(projected.vector))
        if self.cell_layers is None or projected.cells is None:
            return projected._replace(vector=vector)
        column = projected.cells.transpose(1, 2)[:, :, :, None]  # batch dim cells 1: to a 1x1 convolution a map
        cells = at_least_float32(self.cell_layers(column)).squeeze(3).transpose(1, 2)
        return projected._replace(vector=vector, cells=cells)


def fieldwise(function: Callable[..., Tensor], *embeddings: Embeddings) -> Embeddings:
    """Applies a function to the vectors of all embeddings, to their cells, and so on."""
    fields: Any = (None if field[0] is None else function(*field) for field in zip(*embeddings, strict=True))
    return Embeddings(*fields)


def at_least_float32(values: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """Half precision made float32; float64 stays."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


def unit(vectors: Float[Tensor, "*shape dim"]) -> Float[Tensor, "*shape dim"]:
    """Vectors of length 1 along the last axis, in float32 at least."""
    return F.normalize(at_least_float32(vectors), dim=-1)
