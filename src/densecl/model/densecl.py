"""DenseCL: dense contrastive learning for self-supervised visual pre-training [Wang et al., CVPR 2021].

MoCo pulls the vector of an image towards that of another view of it and away from a queue of other
images'. DenseCL does the same once more for every cell of the feature map, after matching the cells
of the two views:

    loss = (1 - dense_weight) * InfoNCE(image vectors) + dense_weight * InfoNCE(matched cell vectors)
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, get_args

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from densecl.errors import UserError
from densecl.model.backbone import Backbone
from densecl.model.distributed import gather, mean_over_processes, own_part, rank, world_size
from densecl.model.heads import DenseHead, GlobalHead
from densecl.model.info_nce import info_nce, info_nce_over_cells
from densecl.model.matching import Match, feature_similarity, match_by_features, match_by_geometry, match_mutually
from densecl.model.queue import Queue
from densecl.views import Views, cell_distances

KeyNorm = Literal["shuffle", "split", "ema"]
Matching = Literal["features", "mutual", "geometry"]
DenseNegatives = Literal["pooled", "cells", "batch"]


class Embeddings(NamedTuple):
    """What an encoder makes of one view. Vectors have unit length; without a dense head the middle two are None."""

    vector: Float[Tensor, "batch dim"]
    cells: Float[Tensor, "batch cells dim"] | None
    pooled: Float[Tensor, "batch dim"] | None  # the dense head's output averaged over the cells, then normalised
    features: Float[Tensor, "batch channels rows cols"]  # the backbone's map, pooled to the grid


class Output(NamedTuple):
    """The loss of one step and what it was made from (of the first direction, if the loss is symmetric)."""

    loss: Float[Tensor, ""]
    global_loss: Float[Tensor, ""]
    dense_loss: Float[Tensor, ""]
    query: Embeddings
    key: Embeddings
    match: Int[Tensor, "batch cells"]  # for each query cell its key cell
    weight: Bool[Tensor, "batch cells"]  # whether that pair counts in the dense loss


class Encoder(nn.Module):
    """A backbone with its two projection heads (without `dense`, only the global one)."""

    def __init__(self, backbone: Backbone, hidden_dim: int, dim: int, grid: int | None, dense: bool) -> None:
        super().__init__()
        self.backbone = backbone
        self.grid = grid
        self.global_head = GlobalHead(backbone.channels, hidden_dim, dim)
        self.dense_head = DenseHead(backbone.channels, hidden_dim, dim) if dense else None

    def forward(self, pixels: Float[Tensor, "batch channels height width"]) -> Embeddings:
        features = self.backbone(pixels)
        vector = unit(self.global_head(features))
        if self.grid is not None:
            features = F.adaptive_avg_pool2d(features, self.grid)
        if self.dense_head is None:
            return Embeddings(vector, None, None, features)
        cells = self.dense_head(features).flatten(2)  # batch dim cells
        return Embeddings(vector, unit(cells.transpose(1, 2)), unit(cells.mean(dim=2)), features)


class DenseCL(nn.Module):
    """Two encoders, two queues and the weighted loss. A call is a training step up to the loss.

    Args:
        backbone: gives a feature map "batch channels rows cols"; any module is wrapped in a `Backbone`.
        dim: length of the embeddings.
        hidden_dim: width of the heads' hidden layer; None: the backbone's.
        grid: pool backbone map and dense head alike to this many cells a side; None: leave them.
        queue_length: keys in each queue.
        temperature: of InfoNCE. A schedule may set the attribute before each step.
        key_momentum: share of its old weights that the key encoder keeps each step; may be scheduled.
        dense_weight: share of the dense loss; may be scheduled. Built with 0 there is no dense head.
        key_norm: how batch norm in the key encoder is kept from telling query and key apart from the
            rest by their common statistics: "shuffle" mixes the images of all devices (on one device
            it does nothing), "split" takes statistics over random sub-batches of at most `key_split` images,
            "ema" uses the moving average of the query encoder's [Cai et al. 2021]. None: "shuffle" where
            there is batch norm.
        matching: "features", "mutual" or "geometry", see `matching`.
        match_radius: for "geometry" and for what "batch" excludes, in diagonals of the larger cell.
        dense_negatives: "pooled", a queue of pooled dense keys; "cells", a queue of one random cell an
            image; "batch", all key cells of the batch but those that show the same place.
        symmetric: average the loss with that of the exchanged views.
        seed: fixes the queues' first keys and what is drawn during a step (by seed and step alone, so
            that a resumed run draws the same).

    Raises:
        UserError: for an unknown choice, or if `key_norm` is given and the backbone has no batch norm.
    """

    def __init__(
        self,
        backbone: Backbone | nn.Module,
        *,
        dim: int = 128,
        hidden_dim: int | None = None,
        grid: int | None = None,
        queue_length: int = 65536,
        temperature: float = 0.2,
        key_momentum: float = 0.999,
        dense_weight: float = 0.5,
        key_norm: KeyNorm | None = None,
        key_split: int = 32,
        matching: Matching = "features",
        match_radius: float = 0.7,
        dense_negatives: DenseNegatives = "pooled",
        symmetric: bool = False,
        seed: int = 0,
    ) -> None:
        super().__init__()
        for name, value, kind in (
            ("key_norm", key_norm or "shuffle", KeyNorm),
            ("matching", matching, Matching),
            ("dense_negatives", dense_negatives, DenseNegatives),
        ):
            if value not in get_args(kind):
                raise UserError(f"{name} is one of {', '.join(get_args(kind))}, not '{value}'.")
        if not isinstance(backbone, Backbone):
            backbone = Backbone(backbone)
        has_batch_norm = any(isinstance(module, _BatchNorm) for module in backbone.modules())
        if key_norm is not None and not has_batch_norm:
            raise UserError(f"--key-norm {key_norm}: {backbone.name} has no batch norm. Take --key-norm auto.")
        self.temperature = temperature
        self.key_momentum = key_momentum
        self.dense_weight = dense_weight
        self.key_norm = (key_norm or "shuffle") if has_batch_norm else None
        self.key_split = key_split
        self.matching = matching
        self.match_radius = match_radius
        self.dense_negatives = dense_negatives
        self.symmetric = symmetric
        self.seed = seed
        self.steps = 0

        self.query_encoder = Encoder(backbone, hidden_dim or backbone.channels, dim, grid, dense=dense_weight > 0)
        self.key_encoder = copy.deepcopy(self.query_encoder).requires_grad_(False)
        self.global_queue = Queue(queue_length, dim, self._generator())
        self.dense_queue = None
        if dense_weight > 0 and dense_negatives != "batch":
            self.dense_queue = Queue(queue_length, dim, self._generator(1))

    @property
    def backbone(self) -> Backbone:
        """The trained backbone: the result."""
        return self.query_encoder.backbone

    def forward(self, first: Views, second: Views) -> Output:
        """The loss between two views of the same images. Moves the key encoder and renews the queues on the way."""
        directions = [(first, second), (second, first)] if self.symmetric else [(first, second)]
        queries = [self.query_encoder(query_views.pixels) for query_views, _ in directions]
        self.move_key_encoder()
        keys = [self.encode_keys(key_views.pixels) for _, key_views in directions]

        # The loss is worth full precision: similarities divided by a small temperature.
        with torch.autocast(first.pixels.device.type, enabled=False):
            losses = [self.losses(*step) for step in zip(queries, keys, directions, strict=True)]
        global_losses, dense_losses, matches = zip(*losses, strict=True)
        global_loss, dense_loss = torch.stack(global_losses).mean(), torch.stack(dense_losses).mean()
        loss = (1 - self.dense_weight) * global_loss + self.dense_weight * dense_loss

        for key in keys:
            self.enqueue(key)
        self.steps += 1
        return Output(loss, global_loss, dense_loss, queries[0], keys[0], *matches[0])

    def losses(
        self, query: Embeddings, key: Embeddings, views: tuple[Views, Views]
    ) -> tuple[Float[Tensor, ""], Float[Tensor, ""], Match]:
        """Global loss, dense loss and the matches of one direction."""
        global_loss = info_nce(query.vector, key.vector, self.global_queue.keys, self.temperature).mean()

        with torch.no_grad():
            distances = cell_distances(*views, *query.features.shape[2:])
            match = self.match(query, key, distances)
        if query.cells is None or key.cells is None:
            return global_loss, torch.zeros_like(global_loss), match

        if self.dense_queue is None:
            all_keys, first_image = gather(key.cells), rank() * len(key.cells)
            near = distances <= self.match_radius
            cell_losses = info_nce_over_cells(query.cells, all_keys, match.index, near, self.temperature, first_image)
        else:
            positive = key.cells.gather(1, match.index[:, :, None].expand_as(query.cells))
            cell_losses = info_nce(query.cells, positive, self.dense_queue.keys, self.temperature)
        # The divisor counts over all processes, whose gradients are then averaged.
        counted = mean_over_processes(match.valid.sum().to(cell_losses.dtype)).clamp(min=1 / world_size())
        return global_loss, (cell_losses * match.valid).sum() / counted, match

    def match(self, query: Embeddings, key: Embeddings, distances: Float[Tensor, "batch cells cells"]) -> Match:
        """Matches on the backbone's features or on the geometry of the crops."""
        if self.matching == "geometry":
            return match_by_geometry(distances, self.match_radius)
        similarity = feature_similarity(at_least_float32(query.features), at_least_float32(key.features))
        return match_mutually(similarity) if self.matching == "mutual" else match_by_features(similarity)

    @torch.no_grad()
    def enqueue(self, key: Embeddings) -> None:
        """Puts the keys of all processes into the queues, after the loss."""
        self.global_queue.enqueue(gather(key.vector))
        if self.dense_queue is None or key.cells is None or key.pooled is None:
            return
        if self.dense_negatives == "pooled":
            self.dense_queue.enqueue(gather(key.pooled))
        else:
            batch, cells, _ = key.cells.shape
            chosen = own_part(torch.randint(cells, (batch * world_size(),), generator=self._generator()))
            device = key.cells.device
            self.dense_queue.enqueue(gather(key.cells[torch.arange(batch, device=device), chosen.to(device)]))

    @torch.no_grad()
    def move_key_encoder(self) -> None:
        """key = momentum * key + (1 - momentum) * query; for "ema" the batch-norm statistics too [Cai et al. 2021]."""
        step = 1 - self.key_momentum
        for key, query in zip(self.key_encoder.parameters(), self.query_encoder.parameters(), strict=True):
            key.lerp_(query, step)
        if self.key_norm == "ema":
            # The query's own averages begin with those of no data at all. A mean in which the nth step counts n times
            # forgets them, until the momentum remembers less.
            step = max(step, 2 / (self.steps + 2))
            for key, query in zip(self.key_encoder.buffers(), self.query_encoder.buffers(), strict=True):
                if key.is_floating_point():
                    key.lerp_(query, step)

    @torch.no_grad()
    def encode_keys(self, pixels: Float[Tensor, "batch channels height width"]) -> Embeddings:
        """The key encoder's embeddings of a view, under the chosen batch-norm regime."""
        self.key_encoder.train(self.training and self.key_norm != "ema")
        if self.key_norm == "shuffle" and world_size() > 1:
            order = torch.randperm(len(pixels) * world_size(), generator=self._generator()).to(pixels.device)
            mixed = self.key_encoder(own_part(gather(pixels)[order]))
            return _fieldwise(lambda field: own_part(gather(field)[order.argsort()]), mixed)
        if self.key_norm == "split" and len(pixels) > self.key_split:
            order = torch.randperm(len(pixels), generator=self._generator()).to(pixels.device)
            parts = pixels[order].tensor_split(math.ceil(len(pixels) / self.key_split))
            encoded = [self.key_encoder(part) for part in parts]
            return _fieldwise(lambda *fields: torch.cat(fields)[order.argsort()], *encoded)
        return self.key_encoder(pixels)

    def get_extra_state(self) -> int:
        """The number of steps taken, as a plain number: asking a GPU for it each step would stall it."""
        return self.steps

    def set_extra_state(self, state: int) -> None:
        self.steps = state

    def _generator(self, stream: int = 0) -> torch.Generator:
        """Chance that depends on seed and step alone, the same on every process."""
        return torch.Generator().manual_seed((self.seed * 1_000_003 + self.steps) * 2 + stream)


def _fieldwise(function: Callable[..., Tensor], *embeddings: Embeddings) -> Embeddings:
    """Applies a function to the vectors of all embeddings, to their cells, and so on."""
    fields: Any = (None if field[0] is None else function(*field) for field in zip(*embeddings, strict=True))
    return Embeddings(*fields)


def at_least_float32(values: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """Half precision made float32; float64 stays."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


def unit(vectors: Float[Tensor, "*shape dim"]) -> Float[Tensor, "*shape dim"]:
    """Vectors of length 1 along the last axis, in float32 at least."""
    return F.normalize(at_least_float32(vectors), dim=-1)
