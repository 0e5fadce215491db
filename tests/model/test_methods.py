"""`DenseCL` with each of the methods: that it puts encoder, matches and objective together as it should."""

from __future__ import annotations

import copy
import dataclasses
import itertools
import math
import re
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any, get_args

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from densecl.choices import DenseNegatives, Matching, MethodName
from densecl.errors import UserError
from densecl.model import METHODS, DenseCL, Output, Scheduled, create_backbone, log_sum_exp, precision
from densecl.model.heads import HeadShape, Prototypes
from densecl.model.matching import Match, keep_best
from densecl.model.methods import Method, find_method
from densecl.model.objectives import Pairs, image_pairs
from densecl.views import Views
from tests.frozen import WatchedNorm, frozen_norm, modes
from tests.model import reference
from tests.model.test_objectives import QUERY_TEMPERATURE, expected_loss
from tests.processes import on_two_processes

NAMES = list(METHODS)
BATCH, RADIUS = 3, 0.7
DOCUMENTATION = Path(__file__).parents[2] / "docs"


class PatchNet(nn.Module):
    """tanh of a linear map of each patch: the smallest thing with a feature map."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 4, stride=4)

    def forward(self, pixels: Tensor) -> Tensor:
        return torch.tanh(self.conv(pixels))


def views(seed: int, size: int = 12, batch: int = BATCH, dtype: torch.dtype = torch.float64) -> Views:
    chance = torch.Generator().manual_seed(seed)
    corner = torch.rand(batch, 2, generator=chance, dtype=dtype) * 20
    box = torch.cat([corner, corner + 30 + 20 * torch.rand(batch, 2, generator=chance, dtype=dtype)], dim=1)
    flipped = torch.rand(batch, generator=chance) < 0.5
    return Views(torch.randn(batch, 3, size, size, generator=chance, dtype=dtype), box, flipped)


def make(name: str, backbone: type[nn.Module] = PatchNet, **settings) -> DenseCL:
    """A small model; the key encoder, where there is one, is another than the query encoder."""
    torch.manual_seed(0)
    small = {"dim": 6, "hidden_dim": 8, **({"queue_length": 7} if METHODS[name].queue else {})}
    if METHODS[name].temperature is not None:
        small["temperature"] = QUERY_TEMPERATURE
    if METHODS[name].teacher_temperature is not None:
        small["teacher_temperature"] = 0.2  # that of test_objectives
    model = DenseCL(backbone(), method=name, match_radius=RADIUS, **{**small, **settings}).double()
    if model.key_encoder is not None:
        with torch.no_grad():
            for weight in model.key_encoder.parameters():
                weight.add_(0.1 * torch.randn_like(weight))
    return model


@pytest.mark.parametrize(
    ("name", "negatives", "counted"),
    [("moco", "pooled", 4), ("moco", "cells", 4), ("moco", "batch", 4), ("simclr", "batch", 2)],
)
def test_products_are_made_by_what_is_quick(name: str, negatives: str, counted: int, monkeypatch) -> None:
    """In both directions: of cells, and of images with a queue. Forward; keys with a gradient ask once more."""
    seen = Counter()
    attend = log_sum_exp.attend
    monkeypatch.setattr(precision, "quick_dtype", lambda vectors: torch.bfloat16)
    monkeypatch.setattr(log_sum_exp, "attend", lambda *those: seen.update([those[0].dtype]) or attend(*those))
    make(name, dense_negatives=negatives, symmetric=True)(views(1), views(2))
    assert seen[torch.bfloat16] == counted
    assert seen[torch.float64] == (0 if METHODS[name].queue else 2)  # images with the batch's: too few to matter


# --- the table ----------------------------------------------------------------------------------------------------


def test_the_command_line_knows_the_methods_of_the_table() -> None:
    assert {*get_args(MethodName)} == {*METHODS, "densecl"}


@pytest.mark.parametrize(
    ("name", "projector", "predictor"),
    [
        ("moco", (2048, 128), None),
        ("simclr", (2048, 128), None),
        ("byol", (4096, 256), (4096, 256)),
        ("simsiam", (2048, 2048), (512, 2048)),
        ("barlow", (8192, 8192), None),
        ("vicreg", (8192, 8192), None),
    ],
)
def test_on_a_resnet50_the_heads_are_the_papers(name: str, projector: tuple, predictor: tuple | None) -> None:
    method = METHODS[name]
    assert method.projector.widths(2048) == projector
    assert (method.predictor and method.predictor.widths(2048)) == predictor


@pytest.mark.parametrize(
    ("shape", "widths"),
    [
        ({}, (64, 128)),
        ({"hidden": 2, "dim": 1}, (2, 1)),
        ({"hidden_ratio": 2.0, "dim_ratio": 1.0}, (128, 64)),
        ({"hidden_ratio": 0.5, "dim": 5}, (32, 5)),
    ],
)
def test_a_width_is_a_number_of_units_or_a_ratio(shape: dict, widths: tuple[int, int]) -> None:
    assert HeadShape(**shape).widths(64) == widths
    assert HeadShape(**shape).widths(64, hidden=3, dim=4) == (3, 4)


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ({"hidden": 2.0}, "hidden is a number of units, not 2.0. .* hidden_ratio=2.0"),
        ({"dim": 0.5}, "dim_ratio=0.5"),
        ({"dim": 0}, "number of units, not 0"),
        ({"hidden": 2, "hidden_ratio": 1.0}, "give hidden or hidden_ratio, not both"),
    ],
)
def test_a_ratio_is_not_taken_for_units(shape: dict, message: str) -> None:
    given: Any = SimpleNamespace(**{"hidden": None, "hidden_ratio": None, "dim": None, "dim_ratio": None, **shape})
    with pytest.raises(UserError, match=message):  # not of a whole one: here, the types are checked before
        HeadShape.__post_init__(given)


def test_a_prototype_is_compared_by_direction_alone() -> None:
    layer, vectors = Prototypes(5, 4), torch.randn(3, 5)
    rows = [[F.cosine_similarity(one, row, dim=0) for row in layer.weight] for one in vectors]
    expected = torch.stack([torch.stack(row) for row in rows])
    torch.testing.assert_close(layer(vectors), expected)
    torch.testing.assert_close(layer(vectors[:, :, None, None])[:, :, 0, 0], expected)


# --- the two levels -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_a_dense_weight_of_nought_is_the_plain_method_to_the_bit(name: str) -> None:
    plain, both = make(name, dense_weight=0.0), make(name)
    both.load_state_dict(plain.state_dict(), strict=False)
    both.set_schedule(both.scheduled._replace(dense_weight=0.0))
    assert not any("dense" in parameter or "cell" in parameter for parameter, _ in plain.named_parameters())
    first, second = views(1), views(2)
    losses = [model(first, second).loss for model in (plain, both)]
    assert torch.equal(*losses)
    for loss in losses:
        loss.backward()
    others = dict(both.named_parameters())
    for parameter, weight in plain.named_parameters():
        if weight.requires_grad:
            assert weight.grad is not None and torch.equal(weight.grad, others[parameter].grad), parameter


@pytest.mark.parametrize("name", NAMES)
def test_image_vectors_go_through_the_papers_formula(name: str) -> None:
    model = make(name, symmetric=False)
    queue = copy.deepcopy(model.global_queue)
    output = model(views(1), views(2))
    pairs = image_pairs(output.query.vector, output.key.vector, queue and queue.keys)
    expected = expected_loss(name, pairs, "cells", torch.zeros(6))
    torch.testing.assert_close(output.global_loss, expected, rtol=1e-10, atol=1e-10)


matchings = ["features", "mutual", "geometry", "both"]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("matching", matchings)
@pytest.mark.parametrize("fraction", [1.0, 0.4])
def test_matched_cells_go_through_the_papers_formula(name: str, matching: str, fraction: float) -> None:
    settings = {"dense_negatives": "batch"} if METHODS[name].dense_negatives else {}
    model = make(name, symmetric=False, matching=matching, match_top_k=fraction, **settings)
    first, second = views(1), views(2)
    output = model(first, second)
    tables, own_tables = (distances(first, other) for other in (second, first))
    expected = []
    for kind in ("features", "geometry") if matching == "both" else (matching,):
        matches = []
        for image, table in enumerate(tables):
            similarity = reference.similarities(
                output.query.features[image].detach(), output.key.features[image].detach()
            )
            found = {
                "features": lambda _table, similarity: reference.match_by_features(similarity),
                "mutual": lambda _table, similarity: reference.match_mutually(similarity),
                "geometry": lambda table, _similarity: reference.match_by_geometry(table, RADIUS),
            }[kind](table, similarity)
            if kind == "geometry":
                similarity = [[-value for value in row] for row in table]
            matches.append(best_of(found, similarity, fraction))
        assert any(match is not None for row in matches for match in row)
        assert output.query.cells is not None and output.key.cells is not None
        pairs = Pairs(
            query=output.query.cells,
            key=output.key.cells,
            match=torch.tensor([[match or 0 for match in row] for row in matches]),
            valid=torch.tensor([[match is not None for match in row] for row in matches]),
            not_negative=torch.tensor(tables) <= RADIUS,
            not_negative_query=torch.tensor(own_tables) <= RADIUS,
        )
        expected.append(expected_loss(name, pairs, "cells", torch.zeros(pairs.query.shape[2])))
    torch.testing.assert_close(output.dense_loss, sum(expected) / len(expected), rtol=1e-10, atol=1e-10)


def pairs_of(output: Output, not_negative: Tensor) -> Pairs:
    """The cells of an output with its matches."""
    assert output.query.cells is not None and output.key.cells is not None
    return Pairs(
        query=output.query.cells,
        key=output.key.cells,
        match=output.match,
        valid=output.valid,
        not_negative=not_negative,
        not_negative_query=not_negative,
    )


def distances(first: Views, second: Views) -> list:
    sides = zip(first.box.tolist(), first.flipped.tolist(), second.box.tolist(), second.flipped.tolist(), strict=True)
    return [reference.distances(*one, 3, 3) for one in sides]


def best_of(matches: list[int | None], similarity: list[list[float]], fraction: float) -> list[int | None]:
    """The best of an image's pairs: sort, cut, put back in place."""
    there = [cell for cell, match in enumerate(matches) if match is not None]
    there.sort(key=lambda cell: -similarity[cell][matches[cell] or 0])
    kept = there[: math.ceil(fraction * len(matches))]
    return [match if cell in kept else None for cell, match in enumerate(matches)]


@given(cells=st.integers(1, 6), fraction=st.floats(0.01, 1.0), seed=st.integers(0, 2**16))
def test_the_best_pairs_are_kept(cells: int, fraction: float, seed: int) -> None:
    chance = torch.Generator().manual_seed(seed)
    similarity = torch.rand(2, cells, 4, generator=chance)
    match = Match(torch.randint(4, (2, cells), generator=chance), torch.rand(2, cells, generator=chance) < 0.6)
    ours = keep_best(match, similarity, fraction)
    assert torch.equal(ours.index, match.index)
    for image in range(2):
        found = [int(one) if valid else None for one, valid in zip(match.index[image], match.valid[image], strict=True)]
        expected = best_of(found, similarity[image].tolist(), fraction)
        assert ours.valid[image].tolist() == [one is not None for one in expected]


@pytest.mark.parametrize("statistics", ["cells", "position"])
@pytest.mark.parametrize("name", ["barlow", "vicreg"])
def test_statistics_of_cells_or_of_each_position(name: str, statistics: str) -> None:
    model = make(name, symmetric=False, dense_statistics=statistics, dense_weight=1.0)
    output = model(views(1), views(2))
    near = torch.zeros(BATCH, 9, 9, dtype=torch.bool)
    pairs = pairs_of(output, near)
    expected = expected_loss(name, pairs, statistics, torch.zeros(6))
    torch.testing.assert_close(output.loss, expected, rtol=1e-10, atol=1e-10)


def test_pooled_negatives_of_simclr_are_those_of_the_other_images_in_both_views() -> None:
    output = make("simclr", symmetric=False, dense_negatives="pooled")(views(1), views(2))
    assert output.query.pooled is not None and output.key.pooled is not None
    near = torch.zeros(BATCH, 9, 9, dtype=torch.bool)
    pooled = torch.stack([output.query.pooled, output.key.pooled], dim=1)
    pairs = pairs_of(output, near)._replace(pooled=pooled)
    torch.testing.assert_close(output.dense_loss, expected_loss("simclr", pairs, "cells", torch.zeros(6)))


def test_negatives_of_simclr_may_be_the_cells_of_the_other_images_in_both_views() -> None:
    output = make("simclr", symmetric=False, dense_negatives="others")(views(1), views(2))
    own_image = torch.ones(BATCH, 9, 9, dtype=torch.bool)
    pairs = pairs_of(output, own_image)
    torch.testing.assert_close(output.dense_loss, expected_loss("simclr", pairs, "cells", torch.zeros(6)))


@pytest.mark.parametrize("name", ["moco", "simclr"])
def test_negatives_from_other_images_need_other_images(name: str) -> None:
    alone = Views(*(field[:1] for field in views(1)))
    with pytest.raises(UserError, match=r"one image has no others|at least 2 images"):
        make(name, dense_negatives="others")(alone, alone)


# --- keys and directions ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_a_symmetric_loss_is_the_mean_of_both_directions(name: str) -> None:
    momentum = {"key_momentum": 1.0} if METHODS[name].keys == "momentum-encoder" else {}
    model = make(name, symmetric=False, **momentum)
    first, second = views(1), views(2)
    one, other = (copy.deepcopy(model)(*pair).loss for pair in ((first, second), (second, first)))
    symmetric = make(name, symmetric=True, **momentum)
    symmetric.load_state_dict(model.state_dict())
    torch.testing.assert_close(symmetric(first, second).loss, (one + other) / 2, rtol=1e-10, atol=1e-10)
    assert make(name).symmetric == METHODS[name].symmetric == (name != "moco")


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_where_keys_come_from_and_whether_they_learn(name: str, symmetric: bool) -> None:
    model = make(name, symmetric=symmetric)
    output = model(views(1), views(2))
    keys = METHODS[name].keys
    assert output.query.vector.requires_grad
    assert output.key.vector.requires_grad == (keys == "shared-weights")
    assert (model.key_encoder is None) == (keys != "momentum-encoder")
    again = copy.deepcopy(model)
    encoder = again.key_encoder if again.key_encoder is not None else again.query_encoder
    torch.testing.assert_close(output.key.vector, encoder(views(2).pixels).vector)


@pytest.mark.parametrize("name", ["byol", "simsiam"])
def test_a_predictor_stands_between_the_projection_and_the_key(name: str) -> None:
    model = make(name)
    output = model(views(1), views(2))
    with torch.no_grad():
        projected = model.query_encoder(views(1).pixels)
        assert model.predictor is not None and projected.cells is not None
        torch.testing.assert_close(output.query.vector, model.predictor.vector_layers(projected.vector))
        # One convolution for all cells is one linear layer for each, with statistics over all of them.
        layers: Any = model.predictor.cell_layers
        first, norm, activation, last = layers
        cells = projected.cells.flatten(0, 1) @ first.weight.flatten(1).T + first.bias
        cells = (cells - cells.mean(dim=0)) / (cells.var(dim=0, unbiased=False) + norm.eps).sqrt()
        cells = activation(cells) @ last.weight.flatten(1).T + last.bias
    torch.testing.assert_close(output.query.cells, cells.unflatten(0, (BATCH, 9)))


@pytest.mark.parametrize("matching", ["features", "geometry", "both"])
@pytest.mark.parametrize("name", NAMES)
def test_local_crops_are_compared_with_the_keys_of_the_large_ones(name: str, matching: str) -> None:
    momentum = {"key_momentum": 1.0} if METHODS[name].keys == "momentum-encoder" else {}
    model = make(name, matching=matching, **momentum)
    large, local = [views(1), views(2)], [views(3, size=8), views(4, size=8)]
    one_way = make(name, symmetric=False, matching=matching, **momentum)
    one_way.load_state_dict(model.state_dict())
    pairs = [(0, 1), (1, 0)] if model.symmetric else [(0, 1)]
    compared = [(large[query], large[key]) for query, key in pairs]
    compared += [(query, large[key]) for query, (_, key) in itertools.product(local, pairs)]
    losses = [copy.deepcopy(one_way)(*pair).loss for pair in compared]
    output = model(*large, local)
    torch.testing.assert_close(output.loss, torch.stack(losses).mean(), rtol=1e-10, atol=1e-10)
    output.loss.backward()
    assert all(weight.grad is not None for weight in model.parameters() if weight.requires_grad)


# --- it is only asked -----------------------------------------------------------------------------------------------


class NormNet(nn.Sequential):
    """A `PatchNet` that takes statistics of its batch."""

    def __init__(self) -> None:
        super().__init__(nn.Conv2d(3, 8, 4, stride=4), nn.BatchNorm2d(8), nn.Tanh())


def state(model: DenseCL) -> dict[str, Any]:
    return copy.deepcopy(dict(model.state_dict()))


def assert_same_state(one: dict[str, Any], other: dict[str, Any]) -> None:
    assert one.keys() == other.keys()
    for key, value in one.items():
        assert torch.equal(value, other[key]) if isinstance(value, Tensor) else value == other[key], key


ASKED = {
    "evaluation": (False, torch.enable_grad),
    "evaluation without gradients": (False, torch.no_grad),
    "evaluation in inference mode": (False, torch.inference_mode),
    "training without gradients": (True, torch.no_grad),
    "training in inference mode": (True, torch.inference_mode),
}


@pytest.mark.parametrize("asked", ASKED)
@pytest.mark.parametrize("dense_weight", [0.0, 0.5])
@pytest.mark.parametrize("name", NAMES)
def test_what_is_only_asked_leaves_no_trace(name: str, dense_weight: float, asked: str) -> None:
    training, gradients = ASKED[asked]
    momentum = {"key_momentum": 0.5} if METHODS[name].keys == "momentum-encoder" else {}
    model = make(name, backbone=NormNet, dense_weight=dense_weight, **momentum)
    untouched = copy.deepcopy(model)
    for one in (model, untouched):
        one(views(1), views(2), [views(3, size=8)])
    before = state(model)
    model.train(training)
    with gradients():
        outputs = [model(views(4), views(5), [views(6, size=8)]) for _ in range(2)]
    assert outputs[0].loss.isfinite() and torch.equal(outputs[0].loss, outputs[1].loss)
    assert_same_state(before, state(model))
    if training and not momentum:
        assert torch.equal(outputs[0].loss, copy.deepcopy(untouched)(views(4), views(5), [views(6, size=8)]).loss)
    if not training:
        assert not any(module.training for module in model.modules())
        if gradients is torch.enable_grad:
            outputs[0].loss.backward()
    model.train()
    for one in (model, untouched):
        one(views(7), views(8))
    assert_same_state(state(model), state(untouched))
    assert model.steps == 2


@pytest.mark.parametrize("key_norm", ["shuffle", "split", "ema"])
@pytest.mark.parametrize("negatives", ["pooled", "cells", "batch"])
def test_no_way_to_norm_keys_or_to_find_negatives_leaves_a_trace(key_norm: Any, negatives: DenseNegatives) -> None:
    model = make("moco", backbone=NormNet, key_norm=key_norm, key_split=2, dense_negatives=negatives)
    model(views(1), views(2))
    before = state(model)
    for training in (False, True):
        model.train(training)
        with torch.no_grad():
            model(views(3), views(4))
        assert_same_state(before, state(model))
    model(views(3), views(4))
    assert not torch.equal(before["global_queue.keys"], model.state_dict()["global_queue.keys"])


def test_one_image_can_be_asked_about_where_norms_have_their_statistics() -> None:
    model = make("byol", backbone=NormNet).eval()
    assert model(views(1, batch=1), views(2, batch=1)).loss.isfinite()
    with pytest.raises(UserError, match="method barlow takes statistics"):
        make("barlow").eval()(views(1, batch=1), views(2, batch=1))


def test_the_key_encoder_keeps_the_norms_in_evaluation_mode_that_the_query_encoder_does() -> None:
    model = make("moco", backbone=NormNet)
    assert model.key_encoder is not None
    norms: list[Any] = [one.get_submodule("backbone.model.1") for one in (model.query_encoder, model.key_encoder)]
    norms[0].eval()
    model(views(1), views(2))
    assert [norm.training for norm in norms] == [False, False]
    assert all((norm.running_mean == 0).all() and norm.num_batches_tracked == 0 for norm in norms)
    assert model.key_encoder.training


@pytest.mark.parametrize("name", NAMES)
def test_a_loss_is_computed_once_where_both_directions_have_the_same(name: str) -> None:
    model = make(name, symmetric=True)
    calls = []
    model.global_objective.register_forward_hook(lambda *_: calls.append("global"))
    assert model.dense_objective is not None
    model.dense_objective.register_forward_hook(lambda *_: calls.append("dense"))
    model(views(1), views(2), [views(3, size=8)])
    # Two directions, and a local crop with each key.
    assert calls.count("global") == (3 if name in ("barlow", "vicreg") else 4)
    assert calls.count("dense") == 4


# --- it trains ------------------------------------------------------------------------------------------------------


#: What makes it, and the sides in pixels of large views and local crops.
BACKBONES = {
    "test_resnet": ({"output_stride": 8}, 32, 16),
    "test_convnext": ({}, 64, 32),
    "test_vit": ({}, 48, 32),
}
POSSIBLE = [
    (name, backbone, matching, negatives)
    for name, backbone, matching in itertools.product(NAMES, BACKBONES, matchings)
    for negatives in METHODS[name].dense_negatives or (None,)
]


def covering(size: int) -> list[tuple]:
    """A few of the possible combinations with all values together that any has, `size` at a time.

    Greedily: always one with most that is still missing, of those the first whose values were chosen least often.
    """
    groups = {one: set(itertools.combinations(enumerate(one), size)) for one in POSSIBLE}
    missing, chosen, times = set().union(*groups.values()), [], Counter()
    while missing:
        best = max(POSSIBLE, key=lambda one: (len(groups[one] & missing), -sum(times[each] for each in enumerate(one))))
        chosen.append(best)
        missing -= groups[best]
        times.update(enumerate(best))
    return chosen


COMBINATIONS, ON_TWO_PROCESSES = covering(2), covering(1)


def test_every_possible_pair_of_values_is_among_the_combinations() -> None:
    for one, other in itertools.combinations(range(4), 2):
        assert {(row[one], row[other]) for row in COMBINATIONS} == {(row[one], row[other]) for row in POSSIBLE}
    # Some that could be lost by a mistake in what is possible.
    for name, backbone in itertools.product(NAMES, BACKBONES):
        assert any(row[:2] == (name, backbone) for row in COMBINATIONS)
    either = (("moco", "pooled"), ("moco", "cells"), ("moco", "batch"), ("simclr", "pooled"), ("simclr", "others"))
    for name, negatives in either:
        assert any((row[0], row[3]) == (name, negatives) for row in COMBINATIONS)
    for place, negatives in itertools.product([*BACKBONES, *matchings], [*get_args(DenseNegatives), None]):
        assert any(place in row and row[3] == negatives for row in COMBINATIONS)
    assert len(COMBINATIONS) < len(POSSIBLE) / 2


def test_every_value_is_run_on_two_processes() -> None:
    occurring = [set(column) for column in zip(*ON_TWO_PROCESSES, strict=True)]
    assert occurring == [{*METHODS}, {*BACKBONES}, {*get_args(Matching)}, {*get_args(DenseNegatives), None}]


def steps(rank: int, world: int, combinations: list) -> list[list[Tensor]]:
    """Two steps of each combination, with a local crop: the losses, and the sum of the weights afterwards."""
    torch.set_num_threads(1)
    results = []
    for name, backbone, matching, negatives in combinations:
        torch.manual_seed(0)
        settings, large_size, local_size = BACKBONES[backbone]
        queue = {"queue_length": 16} if METHODS[name].queue else {}
        small = {"dim": 16, "hidden_dim": 16, **queue, "dense_negatives": negatives, "matching": matching}
        method = DenseCL(create_backbone(backbone, **settings), method=name, match_top_k=0.8, **small)
        model = DistributedDataParallel(method) if world > 1 else method
        optimizer = torch.optim.AdamW([one for one in model.parameters() if one.requires_grad], lr=1e-3)
        losses = []
        for step in range(2):
            sizes = enumerate((large_size, large_size, local_size))
            three = [views(3 * step + number + 10 * rank, size, 2, torch.float32) for number, size in sizes]
            loss = model(*three[:2], three[2:]).loss
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.detach())
        total = torch.stack([weight.detach().sum() for weight in method.parameters()]).sum()
        results.append([*losses, total])
    return results


@pytest.mark.parametrize("combination", COMBINATIONS, ids=lambda one: "-".join(map(str, one)))
def test_a_few_steps(combination: tuple) -> None:
    (result,) = steps(0, 1, [combination])
    assert all(value.isfinite() for value in result)


def test_a_few_steps_on_two_processes() -> None:
    first, second = on_two_processes(steps, 2, ON_TWO_PROCESSES)
    for combination, ours, theirs in zip(ON_TWO_PROCESSES, first, second, strict=True):
        assert all(value.isfinite() for value in [*ours, *theirs]), combination
        assert torch.equal(ours[-1], theirs[-1]), f"{combination}: the processes' weights differ"


@pytest.mark.parametrize("name", NAMES)
def test_everything_needed_to_go_on_is_in_the_state(name: str) -> None:
    model = make(name)
    optimizer = torch.optim.SGD([one for one in model.parameters() if one.requires_grad], lr=0.1, momentum=0.9)

    def step(model: DenseCL, optimizer: torch.optim.Optimizer, number: int) -> Tensor:
        loss = model(views(2 * number), views(2 * number + 1)).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss

    for number in range(2):
        step(model, optimizer, number)
    state = copy.deepcopy((model.state_dict(), optimizer.state_dict()))
    torch.manual_seed(9)
    resumed = make(name)
    with torch.no_grad():
        for weight in [*resumed.parameters(), *(one for one in resumed.buffers() if one.is_floating_point())]:
            weight.fill_(0.3)
    again = torch.optim.SGD([one for one in resumed.parameters() if one.requires_grad], lr=0.1, momentum=0.9)
    resumed.load_state_dict(state[0])
    again.load_state_dict(state[1])
    for number in range(2, 4):
        assert torch.equal(step(model, optimizer, number), step(resumed, again, number))
    for key, value in model.state_dict().items():
        other = resumed.state_dict()[key]
        assert torch.equal(value, other) if isinstance(value, Tensor) else value == other


# --- what does not go together ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"method": "bylo"}, "method is one of .* Did you mean 'byol'?"),
        ({"method": "byol", "queue_length": 64}, "queue_length=64: byol has no queue length. Leave it out."),
        ({"method": "simclr", "queue_length": 64}, "queue_length=64: simclr has no queue length"),
        ({"method": "vicreg", "dense_negatives": "batch"}, "dense_negatives batch: vicreg has no dense negatives"),
        (
            {"method": "simclr", "dense_negatives": "cells"},
            "dense_negatives cells: simclr has batch or others",
        ),
        ({"method": "simsiam", "key_momentum": 0.9}, "key_momentum=0.9: simsiam has no key momentum"),
        ({"method": "barlow", "temperature": 0.1}, "temperature=0.1: barlow has no temperature"),
        ({"method": "moco", "teacher_temperature": 0.1}, "teacher_temperature=0.1: moco has no teacher"),
        ({"method": "dino", "dense_statistics": "cells"}, "dense_statistics cells: dino has no dense statistics"),
    ],
)
def test_a_setting_that_the_method_does_not_have_is_refused(settings: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        DenseCL(PatchNet(), **settings)


def test_key_norm_needs_a_key_encoder() -> None:
    with pytest.raises(UserError, match="simclr has no key encoder"):
        DenseCL(create_backbone("test_resnet"), method="simclr", key_norm="ema")


@pytest.mark.parametrize("name", NAMES)
def test_one_image_is_too_few_for_batch_statistics(name: str) -> None:
    model = make(name)
    pair = views(1, batch=1), views(2, batch=1)
    if name in ("moco", "dino"):
        assert model(*pair).loss.isfinite()
    else:
        with pytest.raises(UserError, match=f"method {name} takes statistics .* at least 2 images"):
            model(*pair)


def test_find_method() -> None:
    assert find_method("dino") is METHODS["dino"]


def test_a_method_of_ones_own_needs_no_entry_in_the_table() -> None:
    own = dataclasses.replace(METHODS["byol"], name="mine", symmetric=False)
    model = DenseCL(PatchNet(), method=own, hidden_dim=8).double()
    assert model(views(1), views(2)).loss.isfinite() and not model.symmetric


# --- an eighth ----------------------------------------------------------------------------------------------------


@pytest.fixture
def documented(monkeypatch: pytest.MonkeyPatch) -> Method:
    """The worked example of the documentation, as a row in the table."""
    pages = "\n".join(page.read_text() for page in sorted(DOCUMENTATION.glob("*.md")))
    blocks = re.findall(r"^```python\n(.*?)^```$", pages, flags=re.DOTALL | re.MULTILINE)
    (code,) = [block for block in blocks if "(Objective)" in block]
    names: dict[str, Any] = {}
    exec(code, names)
    monkeypatch.setitem(METHODS, "distance", names["distance"])
    return names["distance"]


@pytest.mark.parametrize("matching", get_args(Matching))
def test_the_documented_method_gives_its_formula_at_both_levels(documented: Method, matching: str) -> None:
    model = make(documented.name, matching=matching, dense_weight=1.0, symmetric=False)
    query, key = views(1), views(2)
    output = model(query, key)
    expected = (output.query.vector - output.key.vector).square().sum(dim=1).mean()
    assert output.global_loss.item() == pytest.approx(expected.item(), rel=1e-12)
    if matching != "both":  # whose second match is not told
        pairs = pairs_of(output, torch.zeros(BATCH, 9, 9, dtype=torch.bool))
        distances = (pairs.query - pairs.positive).square().sum(dim=2)[output.valid]
        assert output.dense_loss.item() == pytest.approx(distances.mean().item(), rel=1e-12)
    output.loss.backward()
    assert all(weight.grad is not None for weight in model.query_encoder.dense_head.parameters())


def test_the_documented_method_trains(documented: Method) -> None:
    losses = steps(0, 1, [(documented.name, "test_resnet", "geometry", None)])[0][:2]
    assert all(loss.isfinite() for loss in losses) and losses[0] != losses[1]


@pytest.mark.parametrize("key_norm", ["shuffle", "split", "ema"])
def test_batch_norm_that_its_owner_froze_stays_frozen_in_both_encoders(key_norm: str) -> None:
    model = DenseCL(frozen_norm(), method="moco", dim=4, queue_length=8, key_norm=key_norm, key_split=2)
    before = modes(model.query_encoder)
    model(views(0, size=32, batch=4, dtype=torch.float32), views(1, size=32, batch=4, dtype=torch.float32))
    assert not WatchedNorm.trained and modes(model.query_encoder) == before
    assert model.key_encoder is not None
    assert modes(model.key_encoder) == ([False] * len(before) if key_norm == "ema" else before)


# --- scheduled settings -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_the_model_says_what_it_starts_with(name: str) -> None:
    method = METHODS[name]
    start = DenseCL(PatchNet(), method=name, hidden_dim=8, dense_weight=0.3).scheduled
    teacher = method.teacher_temperature and method.teacher_temperature[0]
    assert start == Scheduled(0.3, method.temperature, teacher, method.key_momentum)
    if method.temperature is not None:
        assert DenseCL(PatchNet(), method=name, hidden_dim=8, temperature=0.9).scheduled.temperature == 0.9


def test_in_micro_batches_moving_averages_move_as_far_as_in_one() -> None:
    model = make("dino", key_momentum=0.5)
    assert model.key_encoder is not None
    name = "global_head.layers.0.weight"
    query, key = model.query_encoder.get_parameter(name), model.key_encoder.get_parameter(name)
    expected = 0.5 * key.detach() + 0.5 * query.detach()
    model.set_schedule(model.scheduled, micro_batches=4)
    outputs = [model(views(1), views(2)) for _ in range(4)]
    torch.testing.assert_close(key, expected)
    center, fraction = torch.zeros(6).double(), 1 - 0.9 ** (1 / 4)
    model = make("dino", key_momentum=1.0, symmetric=False)
    model.set_schedule(model.scheduled, micro_batches=4)
    for _ in range(4):
        outputs.append(model(views(1), views(2)))
        center = (1 - fraction) * center + fraction * outputs[-1].key.vector.mean(dim=0)
    torch.testing.assert_close(model.global_objective.get_buffer("center"), center)
    torch.testing.assert_close(center, (1 - 0.9) * outputs[-1].key.vector.mean(dim=0))


def test_a_momentum_encoder_needs_a_momentum() -> None:
    with pytest.raises(UserError, match="moco has a momentum encoder, so it needs a key_momentum"):
        dataclasses.replace(METHODS["moco"], key_momentum=None)
