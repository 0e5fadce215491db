from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from densecl.model.correspondence import correspondence
from densecl.views import Views


def views(boxes: Sequence[Sequence[float]], flipped: list[bool]) -> Views:
    return Views(torch.zeros(len(boxes), 3, 8, 8), torch.tensor(boxes, dtype=torch.float32), torch.tensor(flipped))


def centers(box: list[float], flipped: bool, rows: int, cols: int) -> list[tuple[float, float]]:
    x0, y0, x1, y1 = box
    found = []
    for row in range(rows):
        for col in range(cols):
            across = (cols - 1 - col if flipped else col) + 0.5
            found.append((x0 + across * (x1 - x0) / cols, y0 + (row + 0.5) * (y1 - y0) / rows))
    return found


def diagonal(box: list[float], rows: int, cols: int) -> float:
    return math.hypot((box[2] - box[0]) / cols, (box[3] - box[1]) / rows)


boxes = st.tuples(st.integers(0, 60), st.integers(0, 60), st.integers(10, 60), st.integers(10, 60)).map(
    lambda sides: [float(sides[0]), float(sides[1]), float(sides[0] + sides[2]), float(sides[1] + sides[3])]
)


@given(
    st.lists(st.tuples(boxes, st.booleans(), boxes, st.booleans()), min_size=1, max_size=3),
    st.integers(2, 4),
    st.integers(2, 4),
    st.integers(0, 1000),
)
def test_against_brute_force(pairs: list, rows: int, cols: int, seed: int) -> None:
    query = views([pair[0] for pair in pairs], [pair[1] for pair in pairs])
    key = views([pair[2] for pair in pairs], [pair[3] for pair in pairs])
    generator = torch.Generator().manual_seed(seed)
    query_features, key_features = (
        torch.randn(len(pairs), 5, rows, cols, generator=generator, dtype=torch.float64) for _ in range(2)
    )
    hits = counted = mutual = 0
    guessed = entropy = 0.0
    for number, (query_box, query_flipped, key_box, key_flipped) in enumerate(pairs):
        unit = max(diagonal(query_box, rows, cols), diagonal(key_box, rows, cols))
        query_cells, key_cells = (features[number].flatten(1).T.tolist() for features in (query_features, key_features))
        cosines = [
            [float(np.dot(one, two)) / math.hypot(*one) / math.hypot(*two) for two in key_cells] for one in query_cells
        ]
        matches = [max(range(len(row)), key=row.__getitem__) for row in cosines]
        key_centers = centers(key_box, key_flipped, rows, cols)
        for cell, center in enumerate(centers(query_box, query_flipped, rows, cols)):
            distances = [math.dist(center, other) / unit for other in key_centers]
            if any(abs(distance - 0.7) < 1e-4 for distance in distances):
                return  # on the rim, rounding decides
            right = [distance <= 0.7 for distance in distances]
            counted += any(right)
            hits += right[matches[cell]]
            guessed += sum(right) / len(right)
            column = [row[matches[cell]] for row in cosines]
            mutual += max(range(len(column)), key=column.__getitem__) == cell
        shares = [matches.count(cell) / len(matches) for cell in range(len(matches))]
        entropy -= sum(share * math.log(share) for share in shares if share) / math.log(len(matches))
    found = correspondence(query_features, key_features, query, key)
    assert found.judged.sum() == counted
    assert found.mutual_rate.item() == pytest.approx(mutual / (len(pairs) * rows * cols))
    assert found.entropy.item() == pytest.approx(entropy / len(pairs))
    if counted:
        assert found.accuracy.item() == pytest.approx(hits / counted)
        assert found.chance.item() == pytest.approx(guessed / counted)
    else:
        assert math.isnan(found.accuracy) and math.isnan(found.chance)


def test_a_planted_half_right_map_scores_a_half() -> None:
    # The same box, the key view mirrored: query cell (row, col) shows what key cell (row, 3 - col) shows.
    query, key = views([[0, 0, 64, 64]], [False]), views([[0, 0, 64, 64]], [True])
    features = torch.eye(16).reshape(1, 16, 4, 4)
    right = features.flip(3)
    assert correspondence(features, right, query, key).accuracy == 1
    assert correspondence(features, right, query, key).chance == pytest.approx(1 / 16)
    # In the lower two rows each key cell is rolled by two: none of them is right there.
    half = torch.cat([right[:, :, :2], right[:, :, 2:].roll(2, dims=3)], dim=2)
    found = correspondence(features, half, query, key)
    assert found.accuracy == 0.5
    assert found.mutual_rate == 1 and found.entropy == pytest.approx(1) and found.judged.sum() == 16


def test_collapsed_features_have_no_entropy() -> None:
    same = views([[0, 0, 64, 64]], [False])
    found = correspondence(torch.ones(1, 3, 4, 4), torch.ones(1, 3, 4, 4), same, same)
    assert found.entropy == 0
    assert found.mutual_rate <= 1 / 16


def test_views_that_share_nothing_count_nothing() -> None:
    query = views([[0, 0, 10, 10], [0, 0, 9, 9]], [False, False])
    key = views([[50, 50, 60, 60], [0, 0, 9, 9]], [True, False])
    features = torch.eye(4).reshape(1, 4, 2, 2).repeat(2, 1, 1, 1)
    found = correspondence(features, features, query, key)
    assert found.judged.sum() == 4 and found.accuracy == 1
