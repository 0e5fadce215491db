"""From the pixels of a view to its vectors: the backbone with its projection heads, then the predictor."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from densecl.model.backbone import Backbone
from densecl.model.heads import DenseHead, GlobalHead, head_layers
from densecl.model.methods import Method


class Level(NamedTuple):
    """What an encoder makes of the cells of one feature map. Without a dense head the first two are None."""

    cells: Float[Tensor, "batch cells dim"] | None
    pooled: Float[Tensor, "batch dim"] | None  # mean of the dense head's output over the cells, then L2-normalized
    features: Float[Tensor, "batch channels rows cols"]  # the backbone's map, pooled to the grid


class Embeddings(NamedTuple):
    """What an encoder makes of one view: the vector of the image, and the `Level` of each stage with a dense loss.

    `pooled` is L2-normalized; the others are for methods that compare by cosine.
    """

    vector: Float[Tensor, "batch dim"]
    cells: Float[Tensor, "batch cells dim"] | None  # this and the next two: the last level
    pooled: Float[Tensor, "batch dim"] | None
    features: Float[Tensor, "batch channels rows cols"]
    earlier: tuple[Level, ...] = ()  # the other levels

    @property
    def levels(self) -> tuple[Level, ...]:
        """The earliest stage first."""
        return *self.earlier, Level(self.cells, self.pooled, self.features)


class Encoder(nn.Module):
    """A backbone with its projection heads: one for image vectors, and with dense learning one for cells.

    Args:
        backbone: gives the feature map.
        global_head: makes the image vector.
        dense_head: makes a vector for each cell; None: the plain global method.
        earlier: maps of the backbone, by their index, that are used beside the last one.
        earlier_heads: dense heads for the earlier maps. If there is one for each, `dense_head` is for the last map. If
            there is one less, `dense_head` is for the last of them.
        grid: pool the feature map to this many cells a side before the dense head; None: leave it.
        l2_normalize: bring the vectors to length 1.
    """

    def __init__(
        self,
        backbone: Backbone,
        global_head: GlobalHead,
        dense_head: DenseHead | None,
        *,
        earlier: tuple[int, ...] = (),
        earlier_heads: Iterable[nn.Module] = (),
        grid: int | None = None,
        l2_normalize: bool = False,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.grid = grid
        self.l2_normalize = l2_normalize
        self.global_head = global_head
        self.dense_head = dense_head
        self.earlier = earlier
        self.earlier_heads = nn.ModuleList(earlier_heads)

    @property
    def dense_heads(self) -> list[DenseHead | None]:
        """Of each level, the earliest stage first."""
        return [*self.earlier_heads, self.dense_head]  # pyright: ignore[reportReturnType]

    def forward(self, pixels: Float[Tensor, "batch channels height width"]) -> Embeddings:
        return self.project(self.maps(pixels))

    def maps(self, pixels: Float[Tensor, "batch channels height width"]) -> list[Float[Tensor, "batch _ _ _"]]:
        """The backbone's maps that are used, its last one last."""
        return self.backbone(pixels, self.earlier) if self.earlier else [self.backbone(pixels)]

    def project(self, maps: list[Float[Tensor, "batch _ _ _"]]) -> Embeddings:
        """The vectors that the heads make of the maps."""
        vector = self._finish(self.global_head(maps[-1]))
        *earlier, last = (self._level(head, features) for head, features in zip(self.dense_heads, maps, strict=False))
        return Embeddings(vector, *last, earlier=tuple(earlier))

    def _level(self, head: DenseHead | None, features: Float[Tensor, "batch _ _ _"]) -> Level:
        if self.grid is not None:
            features = F.adaptive_avg_pool2d(features, self.grid)
        if head is None:
            return Level(None, None, features)
        cells = head(features).flatten(2)  # batch dim cells
        return Level(self._finish(cells.transpose(1, 2)), l2_normalize(cells.mean(dim=2)), features)

    def _finish(self, vectors: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        return l2_normalize(vectors) if self.l2_normalize else at_least_float32(vectors)


def create_encoder(
    backbone: Backbone,
    method: Method,
    *,
    hidden_dim: int | None = None,
    dim: int | None = None,
    grid: int | None = None,
    dense: bool = True,
    stages: Sequence[int] = (-1,),
) -> Encoder:
    """An encoder with the method's heads, of its own widths unless others are given.

    Args:
        backbone: gives the feature maps.
        method: has the heads' shapes.
        hidden_dim: width of the heads' hidden layers.
        dim: length of the vectors.
        grid: see `Encoder`.
        dense: whether there is a dense loss.
        stages: of the backbone, on which the dense loss acts, see `Backbone.stages_at`.

    Raises:
        UserError: the backbone has no such stage.
    """
    shape, dense_shape = method.projector, method.dense_projector or method.projector
    global_head = GlobalHead(backbone.channels, *shape.widths(backbone.channels, hidden_dim, dim), shape)
    if not dense:
        return Encoder(backbone, global_head, None, grid=grid, l2_normalize=method.l2_normalize)
    channels, earlier = [backbone.channels], ()
    if tuple(stages) != (-1,):
        chosen, (last,) = backbone.stages_at(stages), backbone.stages_at([-1])
        channels = [stage.channels for stage in chosen]
        earlier = tuple(stage.index for stage in chosen if stage != last)
    heads = [DenseHead(one, *dense_shape.widths(one, hidden_dim, dim), dense_shape) for one in channels]
    return Encoder(
        backbone,
        global_head,
        heads[-1],
        earlier=earlier,
        earlier_heads=heads[:-1],
        grid=grid,
        l2_normalize=method.l2_normalize,
    )


class Predictor(nn.Module):
    """Predicts the projections of the other view, at each level with its own layers [BYOL, SimSiam]."""

    def __init__(self, encoder: Encoder, method: Method, hidden_dim: int | None = None) -> None:
        super().__init__()
        assert method.predictor is not None
        hidden, _ = method.predictor.widths(encoder.backbone.channels, hidden_dim)
        dim = encoder.global_head.dim
        self.vector_layers = head_layers(dim, hidden, dim, method.predictor, cells=False)
        *earlier, self.cell_layers = (
            None if head is None else head_layers(head.dim, hidden, head.dim, method.predictor, cells=True)
            for head in encoder.dense_heads
        )
        self.earlier_cell_layers = nn.ModuleList(earlier)  # pyright: ignore[reportArgumentType]

    def forward(self, projected: Embeddings) -> Embeddings:
        vector = at_least_float32(self.vector_layers(projected.vector))
        every_layers = [*self.earlier_cell_layers, self.cell_layers]
        *earlier, last = (
            level if layers is None or level.cells is None else level._replace(cells=_predicted(layers, level.cells))
            for layers, level in zip(every_layers, projected.levels, strict=True)
        )
        return Embeddings(vector, *last, earlier=tuple(earlier))


def _predicted(layers: nn.Module, cells: Float[Tensor, "batch cells dim"]) -> Float[Tensor, "batch cells dim"]:
    column = cells.transpose(1, 2)[:, :, :, None]  # batch dim cells 1: a map, for the 1x1 convolutions
    return at_least_float32(layers(column)).squeeze(3).transpose(1, 2)


def fieldwise(function: Callable[..., Tensor], *embeddings: Embeddings) -> Embeddings:
    """Applies a function to each tensor of the embeddings, and makes embeddings of the results."""
    vector = function(*(one.vector for one in embeddings))
    every = zip(*(one.levels for one in embeddings), strict=True)  # of each level, those of all embeddings
    *earlier, last = (_each_field(function, levels) for levels in every)
    return Embeddings(vector, *last, earlier=tuple(earlier))


def _each_field(function: Callable[..., Tensor], levels: Sequence[Level]) -> Level:
    fields: Any = (None if field[0] is None else function(*field) for field in zip(*levels, strict=True))
    return Level(*fields)


def at_least_float32(values: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """Half precision made float32; float64 stays."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


def l2_normalize(vectors: Float[Tensor, "*shape dim"]) -> Float[Tensor, "*shape dim"]:
    """Vectors of length 1 along the last axis, in float32 at least."""
    return F.normalize(at_least_float32(vectors), dim=-1)
