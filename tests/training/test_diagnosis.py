from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from densecl.model import DenseCL, Embeddings, Output, create_backbone
from densecl.training.diagnosis import (
    MEASURES,
    diagnose,
    similarity_to_others,
    spread,
)
from densecl.views import Views

BATCH, ROWS, COLS, DIM = 3, 4, 4, 8
CELLS = ROWS * COLS


def views() -> Views:
    """Both views are the whole image, so that equal cells lie at equal places."""
    box = torch.tensor([[0.0, 0.0, 64.0, 64.0]]).expand(BATCH, 4)
    return Views(torch.zeros(BATCH, 3, 64, 64), box, torch.zeros(BATCH, dtype=torch.bool))


def output(features: Tensor, cells: Tensor, vector: Tensor) -> Output:
    """A step in which query and key view came out the same."""
    embeddings = Embeddings(vector, cells, F.normalize(cells.mean(dim=1), dim=1), features)
    match = torch.arange(CELLS).expand(BATCH, CELLS)
    loss = torch.tensor(1.0)
    return Output(loss, loss, loss, embeddings, embeddings, match, torch.ones(BATCH, CELLS, dtype=torch.bool))


def unit(*shape: int, seed: int = 0) -> Tensor:
    return F.normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed)), dim=-1)


@pytest.fixture(scope="module")
def model() -> DenseCL:
    return DenseCL(create_backbone("test_resnet"), queue_length=100, dim=DIM)


def measures(model: DenseCL, output: Output) -> dict[str, float]:
    return dict(zip(MEASURES, diagnose(model, output, views(), views()).tolist(), strict=True))


def test_perfect_matches(model: DenseCL) -> None:
    features = unit(BATCH, CELLS, 64).transpose(1, 2).unflatten(2, (ROWS, COLS))
    found = measures(model, output(features, unit(BATCH, CELLS, DIM), unit(BATCH, DIM)))
    assert found["match_accuracy"] == 1
    assert found["match_chance"] == pytest.approx(1 / CELLS)  # the neighbor's center is further than 0.7 diagonals
    assert found["distinct_matches"] == 1
    assert found["global_positive"] == pytest.approx(1)
    assert found["dense_positive"] == pytest.approx(1)
    assert found["global_chance_loss"] == pytest.approx(math.log(101))
    assert found["dense_chance_loss"] == pytest.approx(math.log(101))


def test_collapsed_cells(model: DenseCL) -> None:
    one_cell = unit(BATCH, 1, DIM)
    features = unit(BATCH, 64)[:, :, None, None].expand(BATCH, 64, ROWS, COLS)
    found = measures(model, output(features, one_cell.expand(BATCH, CELLS, DIM), unit(BATCH, DIM)))
    assert found["cell_spread"] == pytest.approx(0, abs=1e-12)
    assert found["image_spread"] > 0.1
    assert found["distinct_matches"] == pytest.approx(1 / CELLS)
    assert found["match_accuracy"] == pytest.approx(1 / CELLS)


def test_collapsed_images(model: DenseCL) -> None:
    vector = unit(1, DIM).expand(BATCH, DIM)
    features = unit(BATCH, CELLS, 64).transpose(1, 2).unflatten(2, (ROWS, COLS))
    found = measures(model, output(features, unit(BATCH, CELLS, DIM), vector))
    assert found["image_spread"] == pytest.approx(0, abs=1e-12)
    assert found["cell_spread"] > 0.1
    assert found["global_negative"] == pytest.approx(1)


def test_the_chance_level_among_the_batchs_cells_counts_what_is_left_out() -> None:
    model = DenseCL(
        create_backbone("test_resnet"), queue_length=100, dim=DIM, dense_negatives="batch", match_radius=0.8
    )
    features = unit(BATCH, CELLS, 64).transpose(1, 2).unflatten(2, (ROWS, COLS))
    found = measures(model, output(features, unit(BATCH, CELLS, DIM), unit(BATCH, DIM)))
    # Cells one step away lie 1/sqrt(2) = 0.71 diagonals off, within 0.8: corners have 2, edges 3, inner cells 4.
    neighbors = {2: 4, 3: 8, 4: 4}
    candidates = BATCH * CELLS
    expected = sum(many * math.log(candidates - near) for near, many in neighbors.items()) / CELLS
    assert found["dense_chance_loss"] == pytest.approx(expected)


def test_without_a_dense_head_the_dense_measures_are_empty() -> None:
    model = DenseCL(create_backbone("test_resnet"), queue_length=100, dim=DIM, dense_weight=0.0)
    features = unit(BATCH, CELLS, 64).transpose(1, 2).unflatten(2, (ROWS, COLS))
    full = output(features, unit(BATCH, CELLS, DIM), unit(BATCH, DIM))
    bare = full.query._replace(cells=None, pooled=None)
    found = measures(model, full._replace(query=bare, key=bare))
    empty = {name for name, value in found.items() if math.isnan(value)}
    assert empty == {"dense_loss", "dense_chance_loss", "dense_positive", "dense_negative"}
    assert found["cell_spread"] > 0.1  # of the features, instead


def test_spread_is_one_minus_the_mean_cosine() -> None:
    vectors = unit(7, 5)
    assert spread(vectors).item() == pytest.approx(1 - (vectors @ vectors.T).mean().item(), abs=1e-6)


def test_similarity_to_others_against_every_pair() -> None:
    query, key = unit(BATCH, CELLS, DIM, seed=1), unit(BATCH, CELLS, DIM, seed=2)
    pairs = [(query[i] @ key[j].T).mean().item() for i in range(BATCH) for j in range(BATCH) if i != j]
    assert similarity_to_others(query, key).item() == pytest.approx(sum(pairs) / len(pairs), abs=1e-6)
    assert math.isnan(similarity_to_others(query[:1], key[:1]).item())


@pytest.mark.parametrize(
    ("method", "settings", "global_chance", "dense_chance"),
    [
        ("simclr", {}, math.log(2 * BATCH - 1), math.log(2 * BATCH * CELLS - 1)),  # all but the query itself
        ("simclr", {"dense_negatives": "pooled"}, math.log(2 * BATCH - 1), math.log(2 * (BATCH - 1) + 1)),
        ("simclr", {"dense_negatives": "others"}, math.log(2 * BATCH - 1), math.log(2 * (BATCH - 1) * CELLS + 1)),
        ("dino", {}, math.log(DIM), math.log(DIM)),
        ("byol", {}, math.nan, math.nan),
        ("vicreg", {}, math.nan, math.nan),
    ],
)
def test_what_guessing_costs_is_known_where_there_are_candidates(
    method: str, settings: dict, global_chance: float, dense_chance: float
) -> None:
    features = unit(BATCH, CELLS, 64).transpose(1, 2).unflatten(2, (ROWS, COLS))
    model = DenseCL(create_backbone("test_resnet"), method=method, dim=DIM, hidden_dim=8, **settings)
    # Vectors of any length: what is measured are their directions.
    found = measures(model, output(features, 3 * unit(BATCH, CELLS, DIM), 5 * unit(BATCH, DIM)))
    assert found["global_chance_loss"] == pytest.approx(global_chance, nan_ok=True)
    assert found["dense_chance_loss"] == pytest.approx(dense_chance, nan_ok=True)
    assert found["global_positive"] == pytest.approx(1) and found["dense_positive"] == pytest.approx(1)
    assert 0 < found["image_spread"] <= 1 and 0 < found["cell_spread"] <= 1


def test_an_offset_of_all_features_is_seen_though_the_vectors_stay() -> None:
    features = unit(BATCH, CELLS, 64).transpose(1, 2).unflatten(2, (ROWS, COLS))
    model = DenseCL(create_backbone("test_resnet"), queue_length=100, dim=DIM)
    vectors = unit(BATCH, CELLS, DIM), unit(BATCH, DIM)
    before, after = (measures(model, output(some, *vectors)) for some in (features, features + 3))
    means = torch.nn.functional.normalize(features.mean(dim=(2, 3)), dim=1)
    assert before["feature_spread"] == pytest.approx(1 - (means @ means.T).mean().item(), abs=1e-6)
    assert after["feature_spread"] < 0.001 and after["image_spread"] == before["image_spread"]
