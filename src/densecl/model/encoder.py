"""From the pixels of a view to its vectors: the backbone with its projection heads, then the predictor."""

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

    `pooled` is L2-normalized; the others are for methods that compare by cosine.
    """

    vector: Float[Tensor, "batch dim"]
    cells: Float[Tensor, "batch cells dim"] | None
    pooled: Float[Tensor, "batch dim"] | None  # mean of the dense head's output over the cells, then L2-normalized
    features: Float[Tensor, "batch channels rows cols"]  # the backbone's map, pooled to the grid


class Encoder(nn.Module):
    """A backbone with its projection heads: one for image vectors, and with dense learning one for cells.

    Args:
        backbone: gives the feature map.
        global_head: makes the image vector.
        dense_head: makes a vector for each cell; None: the plain global method.
        grid: pool the feature map to this many cells a side before the dense head; None: leave it.
        l2_normalize: bring the vectors to length 1.
    """

    def __init__(
        self,
        backbone: Backbone,
        global_head: GlobalHead,
        dense_head: DenseHead | None,
        *,
        grid: int | None = None,
        l2_normalize: bool = False,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.grid = grid
        self.l2_normalize = l2_normalize
        self.global_head = global_head
        self.dense_head = dense_head

    def forward(self, pixels: Float[Tensor, "batch channels height width"]) -> Embeddings:
        return self.project(self.backbone(pixels))

    def project(self, features: Float[Tensor, "batch channels rows cols"]) -> Embeddings:
        """The vectors that the heads make of a feature map."""
        finish = l2_normalize if self.l2_normalize else at_least_float32
        vector = finish(self.global_head(features))
        if self.grid is not None:
            features = F.adaptive_avg_pool2d(features, self.grid)
        if self.dense_head is None:
            return Embeddings(vector, None, None, features)
        cells = self.dense_head(features).flatten(2)  # batch dim cells
        return Embeddings(vector, finish(cells.transpose(1, 2)), l2_normalize(cells.mean(dim=2)), features)


def create_encoder(
    backbone: Backbone,
    method: Method,
    *,
    hidden_dim: int | None = None,
    dim: int | None = None,
    grid: int | None = None,
    dense: bool = True,
) -> Encoder:
    """An encoder with the method's heads, of its own widths unless others are given."""
    shape, dense_shape = method.projector, method.dense_projector or method.projector
    global_head = GlobalHead(backbone.channels, *shape.widths(backbone.channels, hidden_dim, dim), shape)
    dense_head = None
    if dense:
        dense_head = DenseHead(backbone.channels, *dense_shape.widths(backbone.channels, hidden_dim, dim), dense_shape)
    return Encoder(backbone, global_head, dense_head, grid=grid, l2_normalize=method.l2_normalize)


class Predictor(nn.Module):
    """Predicts the projections of the other view, at each level with its own layers [BYOL, SimSiam]."""

    def __init__(self, encoder: Encoder, method: Method, hidden_dim: int | None = None) -> None:
        super().__init__()
        assert method.predictor is not None
        hidden, _ = method.predictor.widths(encoder.backbone.channels, hidden_dim)
        dim = encoder.global_head.dim
        self.vector_layers = head_layers(dim, hidden, dim, method.predictor, cells=False)
        self.cell_layers = None
        if encoder.dense_head is not None:
            dim = encoder.dense_head.dim
            self.cell_layers = head_layers(dim, hidden, dim, method.predictor, cells=True)

    def forward(self, projected: Embeddings) -> Embeddings:
        vector = at_least_float32(self.vector_layers(projected.vector))
        if self.cell_layers is None or projected.cells is None:
            return projected._replace(vector=vector)
        column = projected.cells.transpose(1, 2)[:, :, :, None]  # batch dim cells 1: a map, for the 1x1 convolutions
        cells = at_least_float32(self.cell_layers(column)).squeeze(3).transpose(1, 2)
        return projected._replace(vector=vector, cells=cells)


def fieldwise(function: Callable[..., Tensor], *embeddings: Embeddings) -> Embeddings:
    """Applies a function to each field of the embeddings, and makes embeddings of the results."""
    fields: Any = (None if field[0] is None else function(*field) for field in zip(*embeddings, strict=True))
    return Embeddings(*fields)


def at_least_float32(values: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """Half precision made float32; float64 stays."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


def l2_normalize(vectors: Float[Tensor, "*shape dim"]) -> Float[Tensor, "*shape dim"]:
    """Vectors of length 1 along the last axis, in float32 at least."""
    return F.normalize(at_least_float32(vectors), dim=-1)
