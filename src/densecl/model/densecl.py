"""DenseCL: dense contrastive learning for self-supervised visual pre-training [Wang et al., CVPR 2021].

MoCo pulls the vector of an image towards the vector of another view of it, and away from a queue of other images.
DenseCL does the same once more for every cell of the feature map, after matching the cells of the two views:

    loss = (1 - dense_weight) * objective(image vectors) + dense_weight * objective(matched cell vectors)

The objective is MoCo's InfoNCE, or that of any other method in `methods`.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from densecl.borrowed import buffers_kept
from densecl.choices import DenseNegatives, DenseSoftening, DenseStatistics, KeyNorm, Matching
from densecl.model.backbone import Backbone
from densecl.model.checks import check_batch, check_choices, check_key_norm, check_negatives, check_softening
from densecl.model.distillation import Guidance, Guided
from densecl.model.distributed import gather, own_part, world_size
from densecl.model.encoder import Embeddings, Level, Predictor, at_least_float32, create_encoder, fieldwise
from densecl.model.heads import DenseHead
from densecl.model.key_encoder import MomentumEncoder
from densecl.model.matching import Match, Matched, Matcher
from densecl.model.methods import Method, find_method
from densecl.model.objectives import Objective, Pairs, Temperature, image_pairs
from densecl.model.precision import loss_precision
from densecl.model.propagation import Propagation
from densecl.model.queue import Queue
from densecl.model.scheduled import Scheduled
from densecl.model.weighted_negatives import looks
from densecl.views import Views

#: Length of a queue if none is given [paper].
QUEUE_LENGTH = 65536


class Output(NamedTuple):
    """The loss of one step and what it was made from (of the first pair of views, if there are several)."""

    loss: Float[Tensor, ""]
    global_loss: Float[Tensor, ""]
    dense_loss: Float[Tensor, ""]
    query: Embeddings
    key: Embeddings
    match: Int[Tensor, "batch cells"]  # of the last stage: for each query cell its positive, a key cell
    valid: Bool[Tensor, "batch cells"]  # whether that pair counts in the dense loss
    guided: Guided | None = None  # what frozen networks add


class DenseCL(nn.Module):
    """The encoders, what the method keeps, and the weighted loss. A call is a training step up to the loss.

    In evaluation mode or under `torch.no_grad` a call changes nothing, so a validation loop does not disturb training.

    A setting that is not given is the method's own. A setting that the method does not have is refused.

    Args:
        backbone: gives a feature map "batch channels rows cols"; any module is wrapped in a `Backbone`.
        method: a name in `methods.METHODS`, or a method of your own.
        dim: length of the embeddings; for dino the number of prototypes.
        hidden_dim: width of the heads' hidden layers.
        dense_stages: the backbone's stages on which the dense loss acts, counted from 1; -1 is the last. Each has its
            own head, matches and queue, and the dense loss is their mean.
        grid: pool the feature map to this many cells a side before matching and before the dense head.
        queue_length: keys in each queue. None: the paper's 65536.
        temperature: of a softmax over similarities.
        teacher_temperature: of dino's teacher.
        key_momentum: fraction of its old weights that the momentum encoder keeps each step.
        dense_weight: weight of the dense loss, 0 to 1. With 0 there is no dense head. These last four may change from
            step to step, see `set_schedule`.
        key_norm: batch norm in the momentum encoder: "shuffle", "split" or "ema", see `MomentumEncoder`. None:
            "shuffle" if the backbone has batch norm and the method a queue.
        key_split: images per sub-batch with "split".
        matching: "features", "mutual" or "geometry", see `Matcher`; "both": half the loss by features, half by
            geometry.
        match_radius: two cells closer than this show the same place; in diagonals of the larger cell.
        match_top_k: fraction (0-1) of an image's query cells to keep, those with the best matches.
        dense_negatives: "pooled": pooled dense vectors of other images (moco: a queue of them); "cells": a queue of
            one random cell per image; "batch": all cells of the batch that do not show the same place; "others": all
            cells of the batch's other images.
        dense_softening: "propagation" (`Propagation`) or "weighted-negatives" (`weighted_negatives`).
        dense_statistics: barlow and vicreg: over all matched "cells" of the batch, or at each "position" in the map.
        symmetric: average the loss with that of the exchanged views.
        seed: fixes the queues' first keys and what is drawn in a step. Each draw follows from seed and step alone, so
            a resumed run draws the same.
        guidance: frozen networks that the backbone follows beside its own loss, on the first view.

    Raises:
        UserError: for an unknown choice, a setting that the method does not have, a stage that the backbone does not
            have, or `key_norm` for a backbone without batch norm.
    """

    def __init__(
        self,
        backbone: Backbone | nn.Module,
        *,
        method: str | Method = "moco",
        dim: int | None = None,
        hidden_dim: int | None = None,
        dense_stages: Sequence[int] = (-1,),
        grid: int | None = None,
        queue_length: int | None = None,
        temperature: float | None = None,
        teacher_temperature: float | None = None,
        key_momentum: float | None = None,
        dense_weight: float = 0.5,
        key_norm: KeyNorm | None = None,
        key_split: int = 32,
        matching: Matching = "features",
        match_radius: float = 0.7,
        match_top_k: float = 1.0,
        dense_negatives: DenseNegatives | None = None,
        dense_softening: DenseSoftening = "none",
        dense_statistics: DenseStatistics | None = None,
        symmetric: bool | None = None,
        seed: int = 0,
        guidance: Guidance | None = None,
    ) -> None:
        super().__init__()
        self.method = method = find_method(method) if isinstance(method, str) else method
        check_choices(
            key_norm=key_norm,
            matching=matching,
            dense_negatives=dense_negatives,
            dense_softening=dense_softening,
            dense_statistics=dense_statistics,
        )
        backbone = backbone if isinstance(backbone, Backbone) else Backbone(backbone)
        check_key_norm(key_norm, method, backbone)
        check_negatives(dense_negatives, method)
        own, first_teacher = method.given_or_own, method.teacher_temperature and method.teacher_temperature[0]
        self.scheduled = Scheduled(
            dense_weight=dense_weight,
            temperature=own("temperature", temperature, method.temperature),
            teacher_temperature=own("teacher_temperature", teacher_temperature, first_teacher),
            key_momentum=own("key_momentum", key_momentum, method.key_momentum),
        )
        self.micro_batches = 1
        usual_negatives = method.dense_negatives[0] if method.dense_negatives else None
        self.dense_negatives: DenseNegatives | None = own("dense_negatives", dense_negatives, usual_negatives)
        check_softening(dense_softening, method, self.dense_negatives)
        self.dense_softening: DenseSoftening = dense_softening
        usual_statistics: DenseStatistics | None = "cells" if method.statistics else None
        statistics: DenseStatistics | None = own("dense_statistics", dense_statistics, usual_statistics)
        queue_length = own("queue_length", queue_length, QUEUE_LENGTH if method.queue else None)
        self.key_norm = key_norm or ("shuffle" if backbone.uses_batch_statistics and method.queue else None)
        self.matcher = Matcher(
            matching=matching, radius=match_radius, top_k=match_top_k, own_image=self.dense_negatives != "others"
        )
        self.symmetric = method.symmetric if symmetric is None else symmetric
        self.seed = seed
        self.steps = 0
        self.guidance = guidance

        encoder = create_encoder(
            backbone,
            method,
            hidden_dim=hidden_dim,
            dim=dim,
            grid=grid,
            dense=dense_weight > 0,
            stages=dense_stages,
        )
        self.query_encoder = encoder
        self.key_encoder = None
        if method.keys == "momentum-encoder":
            self.key_encoder = MomentumEncoder(encoder, norm=self.key_norm, split=key_split)
        self.predictor = Predictor(encoder, method, hidden_dim) if method.predictor is not None else None
        self.global_objective = method.objective(encoder.global_head.dim)
        self.global_queue = None
        if queue_length is not None:
            self.global_queue = Queue(queue_length, encoder.global_head.dim, self._random())
        parts = (self._dense_parts(head, statistics, queue_length) for head in encoder.dense_heads)
        *earlier, (self.dense_objective, self.dense_queue) = parts
        self.earlier_objectives = nn.ModuleList(objective for objective, _ in earlier if objective is not None)
        self.earlier_queues = nn.ModuleList(queue for _, queue in earlier if queue is not None)
        soft = dense_softening == "propagation" and dense_weight > 0
        self.propagation = Propagation(encoder) if soft else None  # last, so that all else is drawn as without it

    def _dense_parts(
        self, head: DenseHead | None, statistics: DenseStatistics | None, queue_length: int | None
    ) -> tuple[Objective | None, Queue | None]:
        """What the dense loss of a stage keeps: its objective, and its queue if there is one."""
        if head is None:
            return None, None
        objective, queue = self.method.objective(head.dim, statistics or "cells"), None
        if queue_length is not None and self.dense_negatives in ("pooled", "cells"):
            queue = Queue(queue_length, head.dim, self._random(1))
        return objective, queue

    @property
    def backbone(self) -> Backbone:
        """The trained backbone: the result."""
        return self.query_encoder.backbone

    def set_schedule(self, scheduled: Scheduled, micro_batches: int = 1) -> None:
        """Sets the scheduled settings for the next step.

        With gradient accumulation a step is several calls, whose number is `micro_batches`. Then moving averages move
        as far in all of them together as in one.
        """
        self.scheduled, self.micro_batches = scheduled, micro_batches

    def forward(
        self,
        first: Views,
        second: Views,
        local: Sequence[Views] = (),
        taught: Float[Tensor, "batch _ _ _"] | None = None,
    ) -> Output:
        """The loss between two views of the same images.

        A training step updates the momentum encoder and the queues on the way. In evaluation mode or under
        `torch.no_grad` nothing changes: no weights, queues or centers, no batch-norm statistics, no count of steps.

        `local` are the local crops of multi-crop [Caron et al. 2020]: further views, usually smaller, that are queries
        only. Each is compared with the keys of the two large views. The loss is the mean over all pairs of a query view
        and a key view.

        `taught` are the teacher's cells of the first views, if they are known; else the teacher sees these views.

        Raises:
            UserError: for a batch of one image, if the method cannot learn from it.
        """
        check_batch(len(first.pixels), self.method, self.dense_negatives, training=self.training)
        learns = self.training and torch.is_grad_enabled()
        key_views = [second, first] if self.symmetric else [second]
        query_views = [*([first, second] if self.symmetric else [first]), *local]

        networks = [one for one in (self.query_encoder, self.key_encoder, self.predictor) if one is not None]
        with contextlib.nullcontext() if learns or not self.training else buffers_kept(*networks):
            maps = [self.query_encoder.maps(views.pixels) for views in query_views]
            projections = [self.query_encoder.project(one) for one in maps]
            if learns:
                self.momentum_update()
            keys = self.keys(projections, key_views)
            queries = projections
            for step in (self.predictor, self.propagation):
                queries = queries if step is None else [step(one) for one in queries]

        # Each large query view meets the key of the other large view. Each local crop meets every key.
        query_side, key_side = list(zip(queries, query_views, strict=True)), list(zip(keys, key_views, strict=True))
        pairs = [*zip(query_side, key_side, strict=False), *itertools.product(query_side[len(keys) :], key_side)]
        with loss_precision(queries[0].vector):
            global_losses = self.global_losses([(query, key) for (query, _), (key, _) in pairs])
            dense = [self.dense_loss(query, key, one, other) for (query, one), (key, other) in pairs]
        dense_losses, matches = zip(*dense, strict=True)
        global_loss, dense_loss = torch.stack(global_losses).mean(), torch.stack(dense_losses).mean()
        dense_weight = self.scheduled.dense_weight
        loss = (1 - dense_weight) * global_loss + dense_weight * dense_loss
        guided = None if self.guidance is None else self.guidance(maps[0][-1], first.pixels, loss, taught)
        loss = loss if guided is None else guided.loss

        if learns:
            self.update_queues(keys)
            self.steps += 1
        return Output(loss, global_loss, dense_loss, queries[0], keys[0], *matches[0], guided=guided)

    def keys(self, projections: list[Embeddings], key_views: list[Views]) -> list[Embeddings]:
        """The keys of each key view, from where the method has them."""
        if self.key_encoder is not None:
            return [self.key_encoder.keys(views.pixels, self.query_encoder, self._random()) for views in key_views]
        with_gradient = self.method.keys == "shared-weights"
        if self.symmetric:
            keys = [projections[1], projections[0]]
        else:
            with torch.set_grad_enabled(with_gradient and torch.is_grad_enabled()):
                keys = [self.query_encoder(key_views[0].pixels)]
        return keys if with_gradient else [fieldwise(Tensor.detach, key) for key in keys]

    def global_losses(self, pairs: list[tuple[Embeddings, Embeddings]]) -> list[Float[Tensor, ""]]:
        """The loss of the image vectors of each pair."""
        # The second pair of a symmetric loss may be the first with its views exchanged. Some losses are then the same.
        # (Cells have other matches then.)
        same = self.symmetric and self.method.keys == "shared-weights" and self.global_objective.exchangeable
        losses = [self.global_loss(*pair) for pair in (pairs[:1] + pairs[2:] if same else pairs)]
        return [losses[0], *losses] if same else losses

    def global_loss(self, query: Embeddings, key: Embeddings) -> Float[Tensor, ""]:
        """The loss of image vectors."""
        negatives = self.global_queue.keys if self.global_queue is not None else None
        return self.global_objective(image_pairs(query.vector, key.vector, negatives), self._temperature)

    def dense_loss(
        self, query: Embeddings, key: Embeddings, query_views: Views, key_views: Views
    ) -> tuple[Float[Tensor, ""], Match]:
        """The loss of matched cells (0 without a dense head), its mean over the stages; and the last one's matches."""
        levels = zip(query.levels, key.levels, self._objectives, self._queues, strict=True)
        losses, matches = zip(*(self.level_loss(*level, query_views, key_views) for level in levels), strict=True)
        return torch.stack(losses).mean(), matches[-1]

    def level_loss(
        self,
        query: Level,
        key: Level,
        objective: Objective | None,
        queue: Queue | None,
        query_views: Views,
        key_views: Views,
    ) -> tuple[Float[Tensor, ""], Match]:
        """The dense loss of one stage, and its matches."""
        matched = self.match(query, key, query_views, key_views)
        if objective is None or query.cells is None or key.cells is None:
            return at_least_float32(query.features.new_zeros(())), matched.matches[0]
        pooled = None
        if queue is None and self.dense_negatives == "pooled":
            assert query.pooled is not None and key.pooled is not None
            pooled = torch.stack([key.pooled, query.pooled], dim=1)
        weigh = self.dense_softening == "weighted-negatives"
        losses = [
            objective(
                Pairs(
                    query=query.cells,
                    key=key.cells,
                    match=match.index,
                    valid=match.valid,
                    not_negative=matched.not_negative,
                    not_negative_query=matched.not_negative_query,
                    negatives=queue.keys if queue is not None else None,
                    looks=looks(query.features, key.features) if weigh else None,
                    pooled=pooled,
                ),
                self._temperature,
            )
            for match in matched.matches
        ]
        return torch.stack(losses).mean(), matched.matches[0]

    @property
    def _objectives(self) -> list[Objective | None]:
        """Of each level."""
        return [*self.earlier_objectives, self.dense_objective]  # pyright: ignore[reportReturnType]

    @property
    def _queues(self) -> list[Queue | None]:
        """Of each level; they all have one, or none has."""
        none = [None] * len(self.query_encoder.earlier_heads)
        return [*(self.earlier_queues or none), self.dense_queue]  # pyright: ignore[reportReturnType]

    def match(self, query: Level, key: Level, query_views: Views, key_views: Views) -> Matched:
        """Matches the cells of two views by the backbone's features, or by where the views lie."""
        features = at_least_float32(query.features.detach()), at_least_float32(key.features.detach())
        return self.matcher(*features, query_views, key_views)

    @property
    def _temperature(self) -> Temperature:
        return Temperature(self.scheduled.temperature or 1.0, self.scheduled.teacher_temperature or 1.0)

    def momentum_update(self) -> None:
        """Moves the momentum encoder, if there is one, towards the query encoder."""
        if self.key_encoder is not None and self.scheduled.key_momentum is not None:
            momentum = self.scheduled.key_momentum ** (1 / self.micro_batches)
            self.key_encoder.momentum_update(self.query_encoder, momentum, self.steps)

    @torch.no_grad()
    def update_queues(self, keys: list[Embeddings]) -> None:
        """Shows the keys to the objectives, and puts those of all processes into the queues."""
        self.global_objective.observe(torch.cat([key.vector for key in keys]), self.micro_batches)
        for key in keys:
            if self.global_queue is not None:
                self.global_queue.enqueue(gather(key.vector))
        of_stages = zip(*(key.levels for key in keys), strict=True)
        for objective, queue, levels in zip(self._objectives, self._queues, of_stages, strict=True):
            if objective is not None:
                cells = torch.cat([level.cells.flatten(0, 1) for level in levels if level.cells is not None])
                objective.observe(cells, self.micro_batches)
            for level in levels:
                if queue is not None and self.dense_negatives == "pooled" and level.pooled is not None:
                    queue.enqueue(gather(level.pooled))
                elif queue is not None and level.cells is not None:
                    queue.enqueue(gather(self._one_cell_per_image(level.cells)))

    def _one_cell_per_image(self, cells: Float[Tensor, "batch cells dim"]) -> Float[Tensor, "batch dim"]:
        """A random cell of each image. Each process draws for all images and takes its own part."""
        batch, count, _ = cells.shape
        chosen = own_part(torch.randint(count, (batch * world_size(),), generator=self._random()))
        chosen = chosen.to(cells.device, non_blocking=True)
        return cells[torch.arange(batch, device=cells.device), chosen]

    def compile_encoders(self) -> None:
        """Compiles both backbones at their first use (torch.compile), in place: names and state stay."""
        for encoder in (self.query_encoder, self.key_encoder):
            if encoder is not None:
                encoder.backbone.compile()

    # --- state ----------------------------------------------------------------------------------------

    def get_extra_state(self) -> int:
        """The number of steps taken. A plain number: to ask a GPU for it in each step would stall it."""
        return self.steps

    def set_extra_state(self, state: int) -> None:
        self.steps = state

    def _random(self, stream: int = 0) -> torch.Generator:
        """Random numbers that follow from seed and step alone, the same on every process."""
        return torch.Generator().manual_seed((self.seed * 1_000_003 + self.steps) * 2 + stream)
