"""The package's method against the loops of `reference`: values, gradients, queues, moving average."""

from __future__ import annotations

import copy
import itertools
import math
from collections import deque
from typing import Any

import pytest
import torch
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from densecl.model import DenseCL, Scheduled
from densecl.model.info_nce import info_nce, info_nce_over_cells
from densecl.model.matching import feature_similarity, match_by_features, match_by_geometry, match_mutually
from densecl.model.queue import Queue
from densecl.views import Views, cell_distances
from tests.model import reference
from tests.model.reference import Reference, Settings, View

seeds = st.integers(0, 2**16)
dtypes = st.sampled_from([torch.float64, torch.float32])
TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5}


class PatchNet(nn.Module):
    """tanh of a linear map of each patch: the smallest thing with a feature map."""

    def __init__(self, channels: int = 5, patch: int = 4, in_channels: int = 3) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, channels, patch, stride=patch)

    def forward(self, pixels: Tensor) -> Tensor:
        return torch.tanh(self.conv(pixels))


class NormNet(nn.Module):
    """A convolution and batch norm."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 4, stride=4)
        self.norm = nn.BatchNorm2d(4)

    def forward(self, pixels: Tensor) -> Tensor:
        return self.norm(self.conv(pixels))


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def units(*shape: int, seed: int = 0) -> Tensor:
    return nn.functional.normalize(random(*shape, seed=seed), dim=-1)


def random_boxes(batch: int, seed: int) -> Tensor:
    """Crops that overlap more or less, some of them by far smaller than others."""
    chance = torch.rand(batch, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    corner, size = chance[:, :2] * 40, 20 + chance[:, 2:] * 80
    return torch.cat([corner, corner + size], dim=1)


def random_views(batch: int, height: int, width: int, seed: int, dtype: torch.dtype = torch.float64) -> Views:
    flipped = torch.rand(batch, generator=torch.Generator().manual_seed(seed)) < 0.5
    return Views(random(batch, 3, height, width, seed=seed).to(dtype), random_boxes(batch, seed + 1).to(dtype), flipped)


def plain(views: Views) -> View:
    boxes = [(x0, y0, x1, y1) for x0, y0, x1, y1 in views.box.double().tolist()]
    return View(views.pixels.double(), boxes, views.flipped.tolist())


def close(actual: Tensor | None, expected: Tensor | None, dtype: torch.dtype = torch.float64) -> None:
    assert actual is not None
    assert expected is not None
    tolerance = TOLERANCE[dtype]
    torch.testing.assert_close(actual.detach().double(), expected.detach(), rtol=tolerance, atol=tolerance)


# --- InfoNCE ----------------------------------------------------------------------------------------------------


@given(
    shape=st.lists(st.integers(1, 4), min_size=1, max_size=2),
    dim=st.integers(1, 6),
    length=st.integers(1, 9),
    temperature=st.floats(0.1, 2.0),
    dtype=dtypes,
    seed=seeds,
)
def test_info_nce(shape: list[int], dim: int, length: int, temperature: float, dtype: torch.dtype, seed: int) -> None:
    query, positive, queue = (
        units(*lead, dim, seed=seed + number).to(dtype) for number, lead in enumerate((shape, shape, [length]))
    )
    query.requires_grad_()
    weights = random(*shape, seed=seed + 3)  # so that each query has a gradient of its own
    losses = info_nce(query, positive, queue, temperature)
    assert losses.shape == tuple(shape)
    (losses * weights.to(dtype)).sum().backward()

    exact = query.detach().double().requires_grad_()
    negatives = list(queue.double())
    every = [
        reference.info_nce(one, other.double(), negatives, temperature)
        for one, other in zip(exact.reshape(-1, dim), positive.reshape(-1, dim), strict=True)
    ]
    expected = torch.stack(every).reshape(shape)
    (expected * weights).sum().backward()
    close(losses, expected, dtype)
    close(query.grad, exact.grad, dtype)


def test_gradient_is_the_formula_of_the_facts() -> None:
    """dloss/dq = sigmoid(lse - s+) / t * (O - k+), O the queue's mean under the softmax over the queue alone."""
    query, positive, queue = units(6, 4, seed=1).requires_grad_(), units(6, 4, seed=2), units(9, 4, seed=3)
    info_nce(query, positive, queue, 0.2).sum().backward()
    scores = query.detach() @ queue.T / 0.2
    mean = scores.softmax(dim=1) @ queue
    gap = scores.logsumexp(dim=1) - (query.detach() * positive).sum(dim=1) / 0.2
    close(query.grad, gap.sigmoid()[:, None] / 0.2 * (mean - positive))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("sign", [1, -1])
def test_info_nce_stays_finite_at_tiny_temperatures(dtype: torch.dtype, sign: int) -> None:
    """exp(2 / 0.005) is beyond float32 and float64 alike at both ends."""
    query = units(1, 4).to(dtype).requires_grad_()
    loss = info_nce(query, sign * query.detach(), -sign * query.detach(), 0.001)
    loss.sum().backward()
    assert loss.item() == pytest.approx(0 if sign == 1 else 2000, abs=1e-2)
    assert query.grad is not None
    assert query.grad.isfinite().all()


@given(
    batch=st.integers(1, 3),
    before=st.integers(0, 2),
    after=st.integers(0, 2),
    rows=st.integers(1, 3),
    cols=st.integers(1, 3),
    radius=st.floats(0.1, 3.0),
    matching=st.sampled_from(["random", "geometry"]),
    dtype=dtypes,
    seed=seeds,
)
@example(1, 0, 0, 1, 1, 0.7, "random", torch.float64, 0)  # nothing at all is negative
def test_cells_of_the_batch_as_negatives(
    batch: int,
    before: int,
    after: int,
    rows: int,
    cols: int,
    radius: float,
    matching: str,
    dtype: torch.dtype,
    seed: int,
) -> None:
    """With images of other processes before and after the own ones."""
    temperature, cells, images = 0.2, rows * cols, before + batch + after
    query = units(batch, cells, 4, seed=seed).to(dtype).requires_grad_()
    keys = units(images, cells, 4, seed=seed + 1).to(dtype)
    tables = [
        reference.distances(tuple(one), bool(seed & 1), tuple(other), bool(seed & 2), rows, cols)
        for one, other in zip(random_boxes(batch, seed).tolist(), random_boxes(batch, seed + 1).tolist(), strict=True)
    ]
    near = torch.tensor(tables, dtype=torch.float64) <= radius
    if matching == "geometry":
        positive = torch.tensor(tables).argmin(dim=2)
    else:
        positive = torch.randint(cells, (batch, cells), generator=torch.Generator().manual_seed(seed))
    losses = info_nce_over_cells(query, keys, positive, near, temperature, before)
    weights = random(batch, cells, seed=seed + 2)
    (losses * weights.to(dtype)).sum().backward()

    exact = query.detach().double().requires_grad_()
    every_key = [list(image) for image in keys.double()]
    expected = torch.zeros(batch, cells, dtype=torch.float64)
    for image, cell in itertools.product(range(batch), range(cells)):
        match = int(positive[image, cell])
        negatives = reference.cell_negatives(every_key, before + image, match, tables[image][cell], radius)
        one = reference.info_nce(exact[image, cell], every_key[before + image][match], negatives, temperature)
        expected[image, cell] = one
    (expected * weights).sum().backward()
    close(losses, expected, dtype)
    close(query.grad, exact.grad, dtype)


# --- matching ---------------------------------------------------------------------------------------------------


@given(
    batch=st.integers(1, 3),
    channels=st.integers(1, 4),
    rows=st.integers(1, 3),
    cols=st.integers(1, 3),
    tied=st.booleans(),
    dtype=dtypes,
    seed=seeds,
)
def test_matches_are_the_most_similar(
    batch: int, channels: int, rows: int, cols: int, tied: bool, dtype: torch.dtype, seed: int
) -> None:
    """Ties, made on purpose by features of -1, 0 and 1, are judged by similarity, not by index."""
    query, key = (random(batch, channels, rows, cols, seed=seed + number) for number in (0, 1))
    if tied:
        query, key = query.round().clamp(-1, 1), key.round().clamp(-1, 1)
    query, key = query.to(dtype), key.to(dtype)
    similarity = feature_similarity(query, key)
    one_way, mutual = match_by_features(similarity), match_mutually(similarity)
    assert one_way.valid.all()
    slack = TOLERANCE[dtype]
    for image in range(batch):
        table = reference.similarities(query[image].double(), key[image].double())
        close(similarity[image], torch.tensor(table, dtype=torch.float64), dtype)
        for cell, row in enumerate(table):
            chosen = int(one_way.index[image, cell])
            assert row[chosen] >= max(row) - slack
            other = int(mutual.index[image, cell])
            column = [line[other] for line in table]
            best_both_ways = row[other] >= max(row) - slack and column[cell] >= max(column) - slack
            alone = sum(value >= max(row) - slack for value in row) == 1
            alone = alone and sum(value >= max(column) - slack for value in column) == 1
            if mutual.valid[image, cell]:
                assert best_both_ways
            elif alone:
                assert not best_both_ways
        if not tied:
            expected = reference.match_mutually(table)
            assert [match is not None for match in expected] == mutual.valid[image].tolist()
            assert reference.match_by_features(table) == one_way.index[image].tolist()


@given(batch=st.integers(1, 4), rows=st.integers(1, 4), cols=st.integers(1, 4), radius=st.floats(0.1, 2.0), seed=seeds)
def test_geometry(batch: int, rows: int, cols: int, radius: float, seed: int) -> None:
    first, second = random_views(batch, 8, 8, seed), random_views(batch, 8, 8, seed + 100)
    distance = cell_distances(first, second, rows, cols)
    match = match_by_geometry(distance, radius)
    query, key = plain(first), plain(second)
    for image in range(batch):
        table = reference.distances(
            query.boxes[image], query.flipped[image], key.boxes[image], key.flipped[image], rows, cols
        )
        close(distance[image], torch.tensor(table, dtype=torch.float64))
        for cell, (row, expected) in enumerate(zip(table, reference.match_by_geometry(table, radius), strict=True)):
            assume(all(abs(value - radius) > 1e-9 for value in row))
            assert bool(match.valid[image, cell]) == (expected is not None)
            assert row[int(match.index[image, cell])] <= min(row) + 1e-9


def test_a_flipped_view_of_the_same_crop_matches_mirrored() -> None:
    box = torch.tensor([[10.0, 20.0, 50.0, 60.0]])
    pixels = torch.zeros(1, 3, 8, 8)
    straight, flipped = Views(pixels, box, torch.tensor([False])), Views(pixels, box, torch.tensor([True]))
    match = match_by_geometry(cell_distances(straight, flipped, 2, 4), 0.7)
    assert match.index.tolist() == [[3, 2, 1, 0, 7, 6, 5, 4]]
    assert match.valid.all()


# --- the queue --------------------------------------------------------------------------------------------------


@given(length=st.integers(1, 7), batches=st.lists(st.integers(1, 16), max_size=8), seed=seeds)
def test_queue_is_first_in_first_out(length: int, batches: list[int], seed: int) -> None:
    queue = Queue(length, 3, torch.Generator().manual_seed(seed)).double()
    expected = deque(queue.keys.clone().unbind(), maxlen=length)
    for number, batch in enumerate(batches):
        keys = units(batch, 3, seed=seed + number + 1)
        queue.enqueue(keys)
        expected.extend(keys.unbind())
        oldest_first = queue.keys.roll(-int(queue.position), dims=0)
        assert torch.equal(oldest_first, torch.stack(list(expected)))


def test_queues_begin_as_random_unit_vectors_of_their_own() -> None:
    model = DenseCL(PatchNet(), dim=16, queue_length=500, seed=3)
    assert model.dense_queue is not None
    queues = [model.global_queue.keys, model.dense_queue.keys]
    other = DenseCL(PatchNet(), dim=16, queue_length=500, seed=4)
    for keys in queues:
        torch.testing.assert_close(keys.norm(dim=1), torch.ones(500))
        # Uniform on the sphere: mean 0, covariance 1/dim, so 1/sqrt(500 * 16) is the deviation of the mean.
        assert keys.mean(dim=0).abs().max() < 4 / math.sqrt(500 * 16)
        assert (keys.T @ keys / 500 - torch.eye(16) / 16).abs().max() < 0.02
        assert len(keys.unique(dim=0)) == 500
    assert not torch.isclose(queues[0], queues[1]).all(dim=1).any()
    assert not torch.equal(queues[0], other.global_queue.keys)
    torch.manual_seed(99)
    assert torch.equal(queues[0], DenseCL(PatchNet(), dim=16, queue_length=500, seed=3).global_queue.keys)


# --- the heads --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("hidden_dim", "width"), [(None, 96), (200, 200)])
def test_heads_are_as_the_paper_has_them(hidden_dim: int | None, width: int) -> None:
    torch.manual_seed(0)
    encoder = DenseCL(PatchNet(channels=96), hidden_dim=hidden_dim, queue_length=4).query_encoder
    assert encoder.dense_head is not None
    for head, layer in ((encoder.global_head, nn.Linear), (encoder.dense_head, nn.Conv2d)):
        parts: list[Any] = [module for module in head.modules() if not list(module.children())]
        assert [type(part) for part in parts] == [layer, nn.ReLU, layer]  # so no norm layer
        first, _, second = parts
        assert first.weight.shape[:2] == (width, 96)
        assert second.weight.shape[:2] == (128, width)
        for part in (first, second):
            weight, bias, fan_in = part.weight.detach(), part.bias.detach(), part.weight.shape[1]
            if layer is nn.Linear:  # kaiming normal
                assert weight.std().item() == pytest.approx(math.sqrt(2 / fan_in), rel=0.03)
                kurtosis = (weight / weight.std()).pow(4).mean().item()
                assert kurtosis == pytest.approx(3, abs=0.3)
                assert (bias == 0).all()
            else:  # torch's default: uniform within 1 / sqrt(fan in)
                assert weight.shape[2:] == (1, 1)
                bound = 1 / math.sqrt(fan_in)
                for values in (weight, bias):
                    assert 0.9 * bound < values.abs().max() <= bound
                assert weight.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.03)


# --- the whole step ---------------------------------------------------------------------------------------------


def make_pair(model_settings: Settings, *, length: int, dim: int, dtype: torch.dtype, seed: int):
    """A model and its reference with the same weights and queues; the key encoder differs from the query encoder."""
    torch.manual_seed(seed)
    model = DenseCL(
        PatchNet(patch=model_settings.patch),
        dim=dim,
        hidden_dim=16,
        grid=model_settings.grid,
        queue_length=length,
        temperature=model_settings.temperature,
        key_momentum=model_settings.key_momentum,
        dense_weight=model_settings.dense_weight,
        matching=model_settings.matching,  # pyright: ignore[reportArgumentType]
        match_radius=model_settings.radius,
        dense_negatives=model_settings.dense_negatives,  # pyright: ignore[reportArgumentType]
        symmetric=model_settings.symmetric,
        seed=seed,
    ).to(dtype)
    with torch.no_grad():
        for weight in model.key_encoder.parameters():
            weight.add_(0.3 * torch.randn_like(weight))
    queries, keys = (dict(encoder.named_parameters()) for encoder in (model.query_encoder, model.key_encoder))
    dense_queue = model.dense_queue.keys if model.dense_queue is not None else None
    return model, Reference(model_settings, queries, keys, model.global_queue.keys, dense_queue)


def compare_step(model: DenseCL, exact: Reference, first: Views, second: Views, dtype: torch.dtype) -> None:
    output = model(first, second)
    loss, global_loss, dense_loss = exact.step(plain(first), plain(second))
    close(output.loss, loss, dtype)
    close(output.global_loss, global_loss, dtype)
    close(output.dense_loss, dense_loss, dtype)
    output.loss.backward()
    loss.backward()
    for name, weight in model.query_encoder.named_parameters():
        assert weight.grad is not None
        expected = exact.query[name].grad
        # The reference leaves out the dense head where no cell counts; ours must give it a gradient of 0.
        close(weight.grad, torch.zeros_like(weight, dtype=torch.float64) if expected is None else expected, dtype)
    for name, weight in model.key_encoder.named_parameters():
        assert weight.grad is None
        close(weight, exact.key[name], dtype)
    compare_queue(model.global_queue, exact.global_queue, dtype)
    if model.dense_queue is not None and model.dense_negatives == "pooled":
        compare_queue(model.dense_queue, exact.dense_queue, dtype)


def compare_queue(queue: Queue, expected: deque[Tensor] | None, dtype: torch.dtype) -> None:
    assert expected is not None
    close(queue.keys.roll(-int(queue.position), dims=0), torch.stack(list(expected)), dtype)


all_settings = st.builds(
    Settings,
    patch=st.just(4),
    grid=st.sampled_from([None, None, 1, 2, 3]),
    temperature=st.floats(0.1, 1.0),
    key_momentum=st.sampled_from([0.0, 0.5, 0.99, 1.0]),
    dense_weight=st.floats(0.05, 1.0),
    matching=st.sampled_from(["features", "mutual", "geometry"]),
    dense_negatives=st.sampled_from(["pooled", "cells", "batch", "others"]),
    radius=st.sampled_from([0.3, 0.7, 1.5]),
    symmetric=st.booleans(),
)


@settings(max_examples=40)
@given(
    model_settings=all_settings,
    batch=st.integers(1, 3),
    rows=st.integers(1, 3),
    cols=st.integers(1, 4),
    length=st.integers(1, 6),
    seed=seeds,
)
def test_loss_gradient_keys_and_queues_of_a_step(
    model_settings: Settings, batch: int, rows: int, cols: int, length: int, seed: int
) -> None:
    batch += batch == 1 and model_settings.dense_negatives == "others"
    model, exact = make_pair(model_settings, length=length, dim=3, dtype=torch.float64, seed=seed)
    first, second = (random_views(batch, 4 * rows, 4 * cols, seed + number) for number in (10, 20))
    compare_step(model, exact, first, second, torch.float64)


USUAL = Settings(
    patch=4,
    grid=None,
    temperature=0.2,
    key_momentum=0.9,
    dense_weight=0.5,
    matching="features",
    dense_negatives="pooled",
    radius=0.7,
    symmetric=False,
)


@pytest.mark.parametrize("matching", ["features", "mutual", "geometry"])
@pytest.mark.parametrize("dense_negatives", ["pooled", "batch", "others"])
def test_a_step_in_float32(matching: str, dense_negatives: str) -> None:
    changed = Settings(**{**vars(USUAL), "matching": matching, "dense_negatives": dense_negatives})
    model, exact = make_pair(changed, length=7, dim=4, dtype=torch.float32, seed=0)
    first, second = (random_views(3, 12, 12, seed, torch.float32) for seed in (1, 2))
    compare_step(model, exact, first, second, torch.float32)


@pytest.mark.parametrize("dense_negatives", ["pooled", "batch"])
def test_several_steps_of_training(dense_negatives: str) -> None:
    """Loss, gradient, moving average and queues stay the reference's while both are trained."""
    changed = Settings(**{**vars(USUAL), "dense_negatives": dense_negatives, "matching": "geometry"})
    model, exact = make_pair(changed, length=7, dim=4, dtype=torch.float64, seed=0)
    for step in range(5):
        first, second = (random_views(3, 12, 12, 2 * step + number) for number in (0, 1))
        model.zero_grad()
        for weight in exact.query.values():
            weight.grad = None
        compare_step(model, exact, first, second, torch.float64)
        with torch.no_grad():
            for weight in [*model.query_encoder.parameters(), *exact.query.values()]:
                assert weight.grad is not None
                weight.sub_(0.5 * weight.grad)


def test_query_cells_without_a_positive_weigh_nothing() -> None:
    """Crops that share nothing in one image; all that is left counts as the whole."""
    changed = Settings(**{**vars(USUAL), "matching": "geometry", "dense_negatives": "batch"})
    model, exact = make_pair(changed, length=7, dim=4, dtype=torch.float64, seed=0)
    first, second = (random_views(2, 12, 12, seed) for seed in (1, 2))
    apart = second.box + torch.tensor([[0.0], [500.0]], dtype=torch.float64)
    second = second._replace(box=apart)
    valid = copy.deepcopy(model)(first, second).valid
    assert valid[0].any()
    assert not valid[1].any()
    compare_step(model, exact, first, second, torch.float64)
    # And when no cell has a positive the dense loss is 0 with a gradient of 0, not NaN.
    model.zero_grad()
    output = model(first, second._replace(box=second.box + 500))
    close(output.dense_loss, torch.zeros(()).double())
    output.dense_loss.backward()
    assert model.query_encoder.dense_head is not None
    for weight in model.query_encoder.dense_head.parameters():
        assert weight.grad is None or (weight.grad == 0).all()


def test_embeddings_and_the_pooled_dense_key() -> None:
    model, exact = make_pair(USUAL, length=7, dim=4, dtype=torch.float64, seed=0)
    first, second = (random_views(2, 12, 8, seed) for seed in (1, 2))
    output = model(first, second)
    exact.step(plain(first), plain(second))
    for embeddings, weights, views in ((output.query, exact.query, first), (output.key, exact.key, second)):
        for image in range(2):
            encoded = reference.encode(weights, views.pixels[image], 4, None)
            close(embeddings.vector[image], encoded.vector)
            close(embeddings.cells[image], torch.stack(encoded.cells))
            close(embeddings.pooled[image], encoded.pooled)
            close(embeddings.features[image], encoded.features)
            mean_of_units = reference.unit(torch.stack(encoded.cells).mean(dim=0))
            assert not torch.allclose(embeddings.pooled[image], mean_of_units), "normalized after the mean, not before"


def test_a_dense_weight_of_nought_is_the_global_method() -> None:
    model = DenseCL(PatchNet(), dim=4, queue_length=5, dense_weight=0.0)
    assert model.dense_queue is None
    assert not any("dense" in name for name, _ in model.named_parameters())
    output = model(*(random_views(2, 12, 12, seed, torch.float32) for seed in (1, 2)))
    assert output.loss == output.global_loss
    assert output.dense_loss == 0
    output.loss.backward()
    assert all(weight.grad is not None for weight in model.query_encoder.parameters())


def test_dense_weight_temperature_and_momentum_may_be_set_before_a_step() -> None:
    model, exact = make_pair(USUAL, length=7, dim=4, dtype=torch.float64, seed=0)
    exact.settings.dense_weight, exact.settings.temperature, exact.settings.key_momentum = 0.2, 0.7, 0.3
    model.set_schedule(Scheduled(dense_weight=0.2, temperature=0.7, key_momentum=0.3))
    compare_step(model, exact, random_views(2, 12, 12, 1), random_views(2, 12, 12, 2), torch.float64)


# --- keys -------------------------------------------------------------------------------------------------------


def test_keys_come_from_the_key_encoder() -> None:
    """With a frozen key encoder, the keys stay while the query encoder changes, and differ from its output."""
    first, second = (random_views(2, 12, 12, seed) for seed in (1, 2))
    model, _ = make_pair(Settings(**{**vars(USUAL), "key_momentum": 1.0}), length=7, dim=4, dtype=torch.float64, seed=0)
    before = model(first, second)
    with torch.no_grad():
        for weight in model.query_encoder.parameters():
            weight.add_(torch.randn_like(weight))
        from_query = model.query_encoder(second.pixels)
    after = model(first, second)
    for name in ("vector", "cells", "pooled", "features"):
        assert torch.equal(getattr(before.key, name), getattr(after.key, name)), name
        assert not torch.allclose(getattr(after.key, name), getattr(from_query, name), atol=1e-2), name
        assert not torch.allclose(getattr(before.query, name), getattr(after.query, name), atol=1e-2), name


def test_key_encoder_starts_as_the_query_encoder_and_is_its_moving_average() -> None:
    torch.manual_seed(0)
    model = DenseCL(PatchNet(), dim=4, queue_length=7, key_momentum=0.8).double()
    names = [name for name, _ in model.query_encoder.named_parameters()]
    average = {name: weight.detach().clone() for name, weight in model.query_encoder.named_parameters()}
    for name, weight in model.key_encoder.named_parameters():
        assert torch.equal(weight, average[name])
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    for step in range(6):
        now = {name: weight.detach().clone() for name, weight in model.query_encoder.named_parameters()}
        output = model(*(random_views(2, 12, 12, 2 * step + number) for number in (0, 1)))
        for name in names:
            average[name] = 0.8 * average[name] + 0.2 * now[name]
        for name, weight in model.key_encoder.named_parameters():
            close(weight, average[name])
            assert step == 0 or not torch.allclose(weight, now[name], atol=1e-6), "else the average shows nothing"
        optimizer.zero_grad()
        output.loss.backward()
        optimizer.step()


def test_keys_carry_no_gradient() -> None:
    model, _ = make_pair(USUAL, length=7, dim=4, dtype=torch.float64, seed=0)
    output = model(*(random_views(2, 12, 12, seed) for seed in (1, 2)))
    assert not any(weight.requires_grad for weight in model.key_encoder.parameters())
    assert not any(tensor.requires_grad for tensor in tree_leaves(output.key))
    assert output.query.vector.requires_grad


def test_cell_queue_takes_one_random_cell_of_each_image() -> None:
    batch, length = 3, 40
    changed = Settings(**{**vars(USUAL), "dense_negatives": "cells"})
    model, _ = make_pair(changed, length=length, dim=4, dtype=torch.float64, seed=0)
    assert model.dense_queue is not None
    places = []
    for step in range(40):
        position = int(model.dense_queue.position)
        output = model(*(random_views(batch, 12, 12, 2 * step + number) for number in (0, 1)))
        for image in range(batch):
            stored = model.dense_queue.keys[(position + image) % length]
            same = torch.isclose(output.key.cells[image], stored, atol=1e-12).all(dim=1).nonzero().flatten().tolist()
            assert len(same) == 1
            places += same
    counts = torch.bincount(torch.tensor(places), minlength=9).double()
    expected = len(places) / 9
    assert ((counts - expected) ** 2 / expected).sum() < 20.1  # chi-squared of 8 degrees of freedom, 1 %


# --- state ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dense_negatives", ["pooled", "cells", "batch", "others"])
def test_everything_needed_to_go_on_is_in_the_state(dense_negatives: str) -> None:
    changed = Settings(**{**vars(USUAL), "dense_negatives": dense_negatives})
    model, _ = make_pair(changed, length=7, dim=4, dtype=torch.float64, seed=0)
    views = [[random_views(3, 12, 12, 2 * step + number) for number in (0, 1)] for step in range(4)]
    for pair in views[:2]:
        model(*pair)
    state = copy.deepcopy(model.state_dict())
    assert any(value is not state and torch.equal(value, model.global_queue.keys) for value in tensors(state))
    torch.manual_seed(123)
    resumed, _ = make_pair(changed, length=7, dim=4, dtype=torch.float64, seed=0)
    with torch.no_grad():
        for weight in [*resumed.parameters(), resumed.global_queue.keys]:
            weight.zero_()
    resumed.load_state_dict(state)
    for pair in views[2:]:
        assert torch.equal(model(*pair).loss, resumed(*pair).loss)
    for one, other in zip(tensors(model.state_dict()), tensors(resumed.state_dict()), strict=True):
        assert torch.equal(one, other)


def tensors(state: dict) -> list[Tensor]:
    return [value for value in state.values() if isinstance(value, Tensor)]


# --- batch norm -------------------------------------------------------------------------------------------------


def norm_model(**changed) -> DenseCL:
    torch.manual_seed(0)
    return DenseCL(NormNet(), dim=4, queue_length=8, **changed).double()


def batch_normalized(model: DenseCL, pixels: Tensor) -> Tensor:
    """Key features under the statistics of exactly these images."""
    backbone = copy.deepcopy(model.key_encoder.backbone.model).train()
    return backbone(pixels)


def test_shuffle_on_one_device_is_plain_batch_norm() -> None:
    model = norm_model(key_norm="shuffle")
    first, second = (random_views(4, 12, 12, seed) for seed in (1, 2))
    output = model(first, second)
    close(output.key.features, batch_normalized(model, second.pixels))


def test_split_takes_statistics_over_random_sub_batches() -> None:
    """Some partition of the images into pairs explains the keys, each in its own place; not always the same one."""
    model = norm_model(key_norm="split", key_split=2)
    seen = set()
    for step in range(12):
        first, second = (random_views(4, 12, 12, 2 * step + number) for number in (0, 1))
        output = model(first, second)
        explained = []
        for partner in (1, 2, 3):
            pairs = [[0, partner], [image for image in (1, 2, 3) if image != partner]]
            expected = torch.empty_like(output.key.features)
            for pair in pairs:
                expected[pair] = batch_normalized(model, second.pixels[pair])
            if torch.allclose(output.key.features, expected):
                explained.append(partner)
        assert len(explained) == 1
        seen.update(explained)
        weights = {name: weight.detach() for name, weight in model.key_encoder.named_parameters()}
        for image in range(4):
            cells = reference.cells_of(output.key.features[image])
            vector = reference.unit(reference.head(weights, "global_head", torch.stack(cells).mean(dim=0)))
            close(output.key.vector[image], vector)
    assert seen == {1, 2, 3}


def test_ema_runs_the_keys_on_averaged_statistics_of_the_query() -> None:
    model = norm_model(key_norm="ema", key_momentum=0.6)
    mean, variance = torch.zeros(4).double(), torch.ones(4).double()
    for step in range(5):
        first, second = (random_views(4, 12, 12, 2 * step + number) for number in (0, 1))
        output = model(first, second)
        query: Any = model.query_encoder.backbone.model
        key: Any = model.key_encoder.backbone.model
        share = max(0.4, 2 / (step + 2))  # the nth step counts n times at first
        mean = (1 - share) * mean + share * query.norm.running_mean
        variance = (1 - share) * variance + share * query.norm.running_var
        close(key.norm.running_mean, mean)
        close(key.norm.running_var, variance)
        plain_output = key.conv(second.pixels)
        normalized = (plain_output - mean[:, None, None]) / (variance[:, None, None] + key.norm.eps).sqrt()
        close(output.key.features, normalized)
