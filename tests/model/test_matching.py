"""What the matcher decides: positives, valid pairs, and cells that are not negatives."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from densecl.choices import Matching
from densecl.model.matching import (
    Matcher,
    feature_similarity,
    keep_best,
    match_by_features,
    match_by_geometry,
    match_mutually,
)
from densecl.views import Views, cell_distances

ROWS, COLS, KEY_ROWS, KEY_COLS = 3, 4, 2, 2
RADIUS = 0.7


def views(seed: int) -> Views:
    random = torch.Generator().manual_seed(seed)
    corner = torch.rand(2, 2, generator=random) * 10
    box = torch.cat([corner, corner + 20 + 10 * torch.rand(2, 2, generator=random)], dim=1)
    return Views(torch.zeros(2, 3, 8, 8), box, torch.tensor([False, True]))


def features(rows: int, cols: int, seed: int) -> Tensor:
    return torch.randn(2, 5, rows, cols, generator=torch.Generator().manual_seed(seed), requires_grad=True)


QUERY, KEY = features(ROWS, COLS, 1), features(KEY_ROWS, KEY_COLS, 2)
QUERY_VIEWS, KEY_VIEWS = views(1), views(2)
SIMILARITY = feature_similarity(QUERY, KEY).detach()
DISTANCES = cell_distances(QUERY_VIEWS, KEY_VIEWS, ROWS, COLS, (KEY_ROWS, KEY_COLS))

BY_FEATURES, MUTUAL = match_by_features(SIMILARITY), match_mutually(SIMILARITY)
BY_GEOMETRY = match_by_geometry(DISTANCES, RADIUS)


@pytest.mark.parametrize("top_k", [1.0, 0.3])
@pytest.mark.parametrize(
    ("matching", "expected"),
    [
        ("features", [(BY_FEATURES, SIMILARITY)]),
        ("mutual", [(MUTUAL, SIMILARITY)]),
        ("geometry", [(BY_GEOMETRY, -DISTANCES)]),
        ("both", [(BY_FEATURES, SIMILARITY), (BY_GEOMETRY, -DISTANCES)]),
    ],
)
def test_positives_and_valid_pairs(matching: Matching, expected: list, top_k: float) -> None:
    matcher = Matcher(matching=matching, radius=RADIUS, top_k=top_k)
    found = matcher(QUERY, KEY, QUERY_VIEWS, KEY_VIEWS).matches
    assert len(found) == len(expected)
    for one, (match, similarity) in zip(found, expected, strict=True):
        best = keep_best(match, similarity, top_k)
        assert torch.equal(one.index, best.index) and torch.equal(one.valid, best.valid)
        assert one.valid.sum(dim=1).max() <= (12 if top_k == 1 else 4)


@pytest.mark.parametrize("radius", [0.3, 0.7, 1.5])
def test_cells_that_show_the_same_place_are_not_negatives(radius: float) -> None:
    found = Matcher(radius=radius)(QUERY, KEY, QUERY_VIEWS, KEY_VIEWS)
    assert torch.equal(found.not_negative, radius >= DISTANCES)
    own = cell_distances(QUERY_VIEWS, QUERY_VIEWS, ROWS, COLS)
    assert torch.equal(found.not_negative_query, own <= radius)
    assert found.not_negative_query.diagonal(dim1=1, dim2=2).all()
    assert not found.not_negative.all()


def test_no_cell_of_the_image_is_a_negative_if_only_other_images_have_them() -> None:
    found = Matcher(own_image=False)(QUERY, KEY, QUERY_VIEWS, KEY_VIEWS)
    assert found.not_negative.shape == (2, 12, 4) and found.not_negative.all()
    assert found.not_negative_query.shape == (2, 12, 12) and found.not_negative_query.all()


def test_no_gradient_flows_through_a_decision() -> None:
    found = Matcher(matching="both", top_k=0.5)(QUERY, KEY, QUERY_VIEWS, KEY_VIEWS)
    assert not any(tensor.requires_grad for match in found.matches for tensor in match)
