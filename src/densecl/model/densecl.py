"""DenseCL: dense contrastive learning for self-supervised visual pre-training [Wang et al., CVPR 2021].

MoCo pulls the vector of an image towards that of another view of it and away from a queue of other
images'. DenseCL does the same once more for every cell of the feature map, after matching the cells
of the two views:

    loss = (1 - dense_weight) * objective(image vectors) + dense_weight * objective(matched cell vectors)

The objective is MoCo's InfoNCE, or that of any other method in `methods`.
"""

from __future__ import annotations

import contextlib
import copy
import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple, TypeVar, get_args

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from densecl.borrowed import set_modes
from densecl.choices import DenseNegatives, DenseStatistics, KeyNorm, Matching
from densecl.errors import UserError
from densecl.model.attention_kernels import quick_dtype
from densecl.model.backbone import Backbone
from densecl.model.distributed import gather, own_part, world_size
from densecl.model.encoder import Embeddings, Encoder, Predictor, at_least_float32, fieldwise
from densecl.model.matching import (
    Match,
    feature_similarity,
    keep_best,
    match_by_features,
    match_by_geometry,
    match_mutually,
)
from densecl.model.methods import Method, find_method
from densecl.model.objectives import Pairs, Temperature, image_pairs
from densecl.model.queue import Queue
from densecl.views import Views, cell_distances

#: Length of a queue when none is given [paper].
QUEUE_LENGTH = 65536

Value = TypeVar("Value")


class Output(NamedTuple):
    """The loss of one step and what it was made from (of the first pair of views, if there are several)."""

    loss: Float[Tensor, ""]
    global_loss: Float[Tensor, ""]
    dense_loss: Float[Tensor, ""]
    query: Embeddings
    key: Embeddings
    match: Int[Tensor, "batch cells"]  # for each query cell its key cell
    weight: Bool[Tensor, "batch cells"]  # whether that pair counts in the dense loss


class DenseCL(nn.Module):
    """The encoders, what the method keeps, and the weighted loss. A call is a training step up to the loss.

    In evaluation mode or under `torch.no_grad` a call changes nothing, so that a validation loop leaves the training as
    it is.

    Settings that are not given are the method's own; a setting of something that the method does not have is refused.

    Args:
        backbone: gives a feature map "batch channels rows cols"; any module is wrapped in a `Backbone`.
        method: a name in `methods.METHODS`, or a method of one's own.
        dim: length of the embeddings; for dino the number of prototypes.
        hidden_dim: width of the heads' hidden layers.
        grid: pool backbone map and dense head alike to this many cells a side; None: leave them.
        queue_length: keys in each queue. None: the paper's 65536.
        temperature: of a softmax over similarities. A schedule may set the attribute before each step.
        teacher_temperature: of dino's teacher; may be scheduled.
        key_momentum: share of its old weights that the key encoder keeps each step; may be scheduled.
        dense_weight: share of the dense loss; may be scheduled. Built with 0 there is no dense head.
        key_norm: how batch norm in the key encoder is kept from telling query and key apart from the
            rest by their common statistics: "shuffle" mixes the images of all devices (on one device
            it does nothing), "split" takes statistics over random sub-batches of at most `key_split` images,
            "ema" uses the moving average of the query encoder's [Cai et al. 2021]. None: "shuffle" where
            there is batch norm and the method has a queue.
        matching: "features", "mutual" or "geometry", see `matching`; "both": half the loss by features, half by
            geometry.
        match_radius: for "geometry" and for what is no negative, in diagonals of the larger cell.
        match_top_k: keep only this share (0-1) of an image's query cells, those whose pairs are most alike.
        dense_negatives: "pooled", pooled dense vectors of other images (moco: a queue of them); "cells", a queue of
            one random cell an image; "batch", all cells of the batch but those that show the same place; "others",
            all cells of the batch's other images.
        dense_statistics: barlow and vicreg: over all matched "cells" of the batch, or of each "position" in the map.
        symmetric: average the loss with that of the exchanged views.
        seed: fixes the queues' first keys and what is drawn during a step (by seed and step alone, so
            that a resumed run draws the same).

    Raises:
        UserError: for an unknown choice, a setting that the method does not have, or if `key_norm` is given and the
            backbone has no batch norm.
    """

    def __init__(
        self,
        backbone: Backbone | nn.Module,
        *,
        method: str | Method = "moco",
        dim: int | None = None,
        hidden_dim: int | None = None,
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
        dense_statistics: DenseStatistics | None = None,
        symmetric: bool | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.method = method = find_method(method) if isinstance(method, str) else method
        for name, value, kind in (
            ("key_norm", key_norm or "shuffle", KeyNorm),
            ("matching", matching, Matching),
            ("dense_negatives", dense_negatives or "pooled", DenseNegatives),
            ("dense_statistics", dense_statistics or "cells", DenseStatistics),
        ):
            if value not in get_args(kind):
                raise UserError(f"{name} is one of {', '.join(get_args(kind))}, not '{value}'.")
        if not isinstance(backbone, Backbone):
            backbone = Backbone(backbone)
        if key_norm is not None and not backbone.uses_batch_statistics:
            lacks = "has no batch norm. Leave it out."
            if backbone.norm_statistics_frozen:
                lacks = "has its statistics frozen. Leave it out, or take --no-freeze-norm-statistics."
            raise UserError(f"--key-norm {key_norm}: {backbone.name} {lacks}")
        if key_norm is not None and method.keys != "average":
            raise UserError(f"--key-norm {key_norm}: {method.name} has no key encoder. Leave it out.")
        if dense_negatives is not None and dense_negatives not in (method.dense_negatives or (dense_negatives,)):
            known = " or ".join(method.dense_negatives)
            raise UserError(f"--dense-negatives {dense_negatives}: {method.name} has {known}.")
        first_teacher = method.teacher_temperature[0] if method.teacher_temperature else None
        usual_negatives = method.dense_negatives[0] if method.dense_negatives else None
        self.temperature = self._or_own("temperature", temperature, method.temperature)
        self.teacher_temperature = self._or_own("teacher_temperature", teacher_temperature, first_teacher)
        self.key_momentum = self._or_own("key_momentum", key_momentum, method.key_momentum)
        self.dense_negatives = self._or_own("dense_negatives", dense_negatives, usual_negatives)
        own_statistics: DenseStatistics | None = "cells" if method.statistics else None
        statistics: DenseStatistics | None = self._or_own("dense_statistics", dense_statistics, own_statistics)
        length = self._or_own("queue_length", queue_length, QUEUE_LENGTH if method.queue else None)
        self.dense_weight = dense_weight
        self.key_norm = key_norm or ("shuffle" if backbone.uses_batch_statistics and method.queue else None)
        self.key_split = key_split
        self.matching = matching
        self.match_radius = match_radius
        self.match_top_k = match_top_k
        self.symmetric = method.symmetric if symmetric is None else symmetric
        self.seed = seed
        self.steps = 0

        dense = dense_weight > 0
        self.query_encoder = Encoder(backbone, method, hidden_dim=hidden_dim, dim=dim, grid=grid, dense=dense)
        self.key_encoder = None
        if method.keys == "average":
            self.key_encoder = copy.deepcopy(self.query_encoder).requires_grad_(False)
        self.predictor = Predictor(self.query_encoder, method, hidden_dim) if method.predictor is not None else None
        self.global_objective = method.objective(self.query_encoder.dim)
        self.dense_objective = None
        if dense:
            self.dense_objective = method.objective(self.query_encoder.dense_dim, statistics or "cells")
        self.global_queue = self.dense_queue = None
        if length is not None:
            self.global_queue = Queue(length, self.query_encoder.dim, self._generator())
            if dense and self.dense_negatives in ("pooled", "cells"):
                self.dense_queue = Queue(length, self.query_encoder.dense_dim, self._generator(1))

    def _or_own(self, name: str, given: Value | None, own: Value | None) -> Value | None:
        """The value that was given, or the method's own, which is None for what it does not have."""
        if own is None and given is not None:
            flag = "--" + name.replace("_", "-")
            raise UserError(f"{flag} {given}: {self.method.name} has no {name.replace('_', ' ')}. Leave it out.")
        return own if given is None else given

    @property
    def backbone(self) -> Backbone:
        """The trained backbone: the result."""
        return self.query_encoder.backbone

    def compile_encoders(self) -> None:
        """Compiles both backbones at their first use (torch.compile), in place: names and state stay."""
        for encoder in (self.query_encoder, self.key_encoder):
            if encoder is not None:
                encoder.backbone.compile()

    def forward(self, first: Views, second: Views, small: Sequence[Views] = ()) -> Output:
        """The loss between two views of the same images.

        A step of training moves the key encoder and renews the queues on the way. In evaluation mode or under
        `torch.no_grad` nothing moves: no weights, queues or centers, no statistics of batch norm, no count of steps.

        `small` are further views, usually of fewer pixels, that are queries only: each is compared with the keys of
        the large ones [multi-crop, Caron et al. 2020]. The loss is the mean over all pairs of a query and a key view.

        Raises:
            UserError: for a batch of one image, if the method cannot learn from it.
        """
        takes_statistics = self.training or self.method.statistics  # heads in evaluation mode have theirs
        if takes_statistics and len(first.pixels) < self.method.least_batch:
            raise UserError(
                f"--method {self.method.name} takes statistics over the batch {self.method.needs_batch_in}:"
                f" it needs at least {self.method.least_batch} images per device, not {len(first.pixels)}."
            )
        if self.dense_negatives == "others" and len(first.pixels) * world_size() == 1:
            raise UserError("--dense-negatives others: a batch of one image has no others. Raise --batch-size.")
        directions = [(first, second), (second, first)] if self.symmetric else [(first, second)]
        learns = self.training and torch.is_grad_enabled()
        with self._statistics_kept() if self.training and not learns else contextlib.nullcontext():
            projected = [self.query_encoder(query_views.pixels) for query_views, _ in directions]
            projected += [self.query_encoder(views.pixels) for views in small]
            if learns:
                self.move_key_encoder()
            keys = self.keys(projected, directions)
            queries = [self.predictor(one) for one in projected] if self.predictor is not None else projected
        compared = [*zip(queries, keys, directions, strict=False)]
        for query, query_views in zip(queries[len(directions) :], small, strict=True):
            compared += [(query, key, (query_views, views)) for key, (_, views) in zip(keys, directions, strict=True)]

        # The loss is worth full precision: similarities divided by a small temperature. But those with negatives,
        # nearly all of its work, only count in sum, so they are made by what is quick.
        products = quick_dtype(queries[0].vector)
        with torch.autocast(first.pixels.device.type, enabled=False):
            # The second pair may be the first with its views exchanged. (That of cells has other matches.)
            known = self.symmetric and self.method.keys == "shared" and self.global_objective.exchangeable
            global_losses: list[Float[Tensor, ""]] = []
            for number, (query, key, _) in enumerate(compared):
                again = known and number == 1
                global_losses.append(global_losses[0] if again else self.global_loss(query, key, products))
            dense_losses, matches = zip(*(self.dense_loss(*one, products) for one in compared), strict=True)
        global_loss, dense_loss = torch.stack(global_losses).mean(), torch.stack(dense_losses).mean()
        loss = (1 - self.dense_weight) * global_loss + self.dense_weight * dense_loss

        if learns:
            self.remember(keys)
            self.steps += 1
        return Output(loss, global_loss, dense_loss, queries[0], keys[0], *matches[0])

    def global_loss(self, query: Embeddings, key: Embeddings, products: torch.dtype | None = None) -> Float[Tensor, ""]:
        """The loss of image vectors; `products` is that of `Pairs`, for a queue, which are many."""
        images = image_pairs(query.vector, key.vector)
        if self.global_queue is not None:
            images = images._replace(negatives=self.global_queue.keys, products=products)
        return self.global_objective(images, self._temperatures)

    def dense_loss(
        self, query: Embeddings, key: Embeddings, views: tuple[Views, Views], products: torch.dtype | None = None
    ) -> tuple[Float[Tensor, ""], Match]:
        """The loss of matched cells, 0 without a dense head, and the matches; `products` is that of `Pairs`."""
        with torch.no_grad():
            rows, cols = query.features.shape[2:]
            key_rows, key_cols = key.features.shape[2:]
            distances = cell_distances(*views, rows, cols, (key_rows, key_cols))
            matches = self.match(query, key, distances)
        if self.dense_objective is None or query.cells is None or key.cells is None:
            return query.vector.new_zeros(()), matches[0]

        excluded = self.no_negatives(distances), self.no_negatives(cell_distances(views[0], views[0], rows, cols))
        negatives = self.dense_queue.keys if self.dense_queue is not None else None
        pooled = None
        if self.dense_queue is None and self.dense_negatives == "pooled":
            assert query.pooled is not None and key.pooled is not None
            pooled = torch.stack([key.pooled, query.pooled], dim=1)
        dense_losses = [
            self.dense_objective(
                Pairs(query.cells, key.cells, *match, *excluded, negatives, pooled, products), self._temperatures
            )
            for match in matches
        ]
        return torch.stack(dense_losses).mean(), matches[0]

    @property
    def _temperatures(self) -> Temperature:
        return Temperature(self.temperature or 1.0, self.teacher_temperature or 1.0)

    def match(
        self, query: Embeddings, key: Embeddings, distances: Float[Tensor, "batch cells key_cells"]
    ) -> list[Match]:
        """Matches on the backbone's features or on the geometry of the crops; of "both", those by features first."""
        found = []
        if self.matching != "geometry":
            similarity = feature_similarity(at_least_float32(query.features), at_least_float32(key.features))
            match = match_mutually(similarity) if self.matching == "mutual" else match_by_features(similarity)
            found.append(keep_best(match, similarity, self.match_top_k))
        if self.matching in ("geometry", "both"):
            found.append(keep_best(match_by_geometry(distances, self.match_radius), -distances, self.match_top_k))
        return found

    def no_negatives(self, distances: Float[Tensor, "batch cells key_cells"]) -> Bool[Tensor, "batch cells key_cells"]:
        """The cells of its own image that are no negatives of a cell: what shows nearly the same place, or all."""
        return (distances <= self.match_radius) | (self.dense_negatives == "others")

    # --- keys -----------------------------------------------------------------------------------------

    def keys(self, projected: list[Embeddings], directions: list[tuple[Views, Views]]) -> list[Embeddings]:
        """The keys of each direction, from where the method has them."""
        if self.key_encoder is not None:
            return [self.encode_keys(key_views.pixels) for _, key_views in directions]
        shared = self.method.keys == "shared"
        if self.symmetric:
            keys = [projected[1], projected[0]]
        else:
            with torch.set_grad_enabled(shared and torch.is_grad_enabled()):
                keys = [self.query_encoder(directions[0][1].pixels)]
        return keys if shared else [fieldwise(Tensor.detach, key) for key in keys]

    @torch.no_grad()
    def remember(self, keys: list[Embeddings]) -> None:
        """Shows the keys to the objectives and puts those of all processes into the queues, after the loss."""
        self.global_objective.observe(torch.cat([key.vector for key in keys]))
        if self.dense_objective is not None:
            self.dense_objective.observe(torch.cat([key.cells.flatten(0, 1) for key in keys if key.cells is not None]))
        if self.global_queue is not None:
            for key in keys:
                self.enqueue(key)

    @torch.no_grad()
    def enqueue(self, key: Embeddings) -> None:
        """Puts the keys of all processes into the queues."""
        assert self.global_queue is not None
        self.global_queue.enqueue(gather(key.vector))
        if self.dense_queue is None or key.cells is None or key.pooled is None:
            return
        if self.dense_negatives == "pooled":
            self.dense_queue.enqueue(gather(key.pooled))
        else:
            batch, cells, _ = key.cells.shape
            chosen = own_part(torch.randint(cells, (batch * world_size(),), generator=self._generator()))
            device = key.cells.device
            chosen = chosen.to(device, non_blocking=True)
            self.dense_queue.enqueue(gather(key.cells[torch.arange(batch, device=device), chosen]))

    @torch.no_grad()
    def move_key_encoder(self) -> None:
        """key = momentum * key + (1 - momentum) * query; for "ema" the batch-norm statistics too [Cai et al. 2021]."""
        if self.key_encoder is None or self.key_momentum is None:
            return
        keys, queries = self.key_encoder, self.query_encoder
        move = get_ema_multi_avg_fn(self.key_momentum)
        move(list(keys.parameters()), list(queries.parameters()), None)
        if self.key_norm == "ema":
            # The query's own averages begin with those of no data at all. A mean in which the nth step counts n times
            # forgets them, until the momentum remembers less.
            move = get_ema_multi_avg_fn(min(self.key_momentum, 1 - 2 / (self.steps + 2)))
            own, new = ([one for one in encoder.buffers() if one.is_floating_point()] for encoder in (keys, queries))
            move(own, new, None)

    @torch.no_grad()
    def encode_keys(self, pixels: Float[Tensor, "batch channels height width"]) -> Embeddings:
        """The key encoder's embeddings of a view, under the chosen batch-norm regime."""
        assert self.key_encoder is not None
        # As the query encoder, whose owner may have put parts of it into evaluation mode.
        both = zip(self.key_encoder.modules(), self.query_encoder.modules(), strict=True)
        set_modes({part: queries.training and self.key_norm != "ema" for part, queries in both})
        if self.key_norm == "shuffle" and world_size() > 1:
            order = self._order(len(pixels) * world_size(), pixels.device)
            mixed = self.key_encoder(own_part(gather(pixels)[order]))
            return fieldwise(lambda field: own_part(gather(field)[order.argsort()]), mixed)
        if self.key_norm == "split" and len(pixels) > self.key_split:
            order = self._order(len(pixels), pixels.device)
            parts = pixels[order].tensor_split(math.ceil(len(pixels) / self.key_split))
            encoded = [self.key_encoder(part) for part in parts]
            return fieldwise(lambda *fields: torch.cat(fields)[order.argsort()], *encoded)
        return self.key_encoder(pixels)

    @contextlib.contextmanager
    def _statistics_kept(self) -> Iterator[None]:
        """What the networks note of the batches that they see in training mode is forgotten at the end."""
        networks = (self.query_encoder, self.key_encoder, self.predictor)
        buffers = [buffer for network in networks if network is not None for buffer in network.buffers()]
        before = [buffer.clone() for buffer in buffers]
        try:
            yield
        finally:
            for buffer, value in zip(buffers, before, strict=True):
                buffer.copy_(value)

    def _order(self, images: int, device: torch.device) -> Int[Tensor, "images"]:
        """A random order, the same on every process. The copy does not wait for what the device still has to do."""
        return torch.randperm(images, generator=self._generator()).to(device, non_blocking=True)

    # --- state ----------------------------------------------------------------------------------------

    def get_extra_state(self) -> int:
        """The number of steps taken, as a plain number: asking a GPU for it each step would stall it."""
        return self.steps

    def set_extra_state(self, state: int) -> None:
        self.steps = state

    def _generator(self, stream: int = 0) -> torch.Generator:
        """Chance that depends on seed and step alone, the same on every process."""
        return torch.Generator().manual_seed((self.seed * 1_000_003 + self.steps) * 2 + stream)
