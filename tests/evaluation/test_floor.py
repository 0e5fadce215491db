"""The score of one class everywhere is what the usual score says of such a prediction."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from densecl.evaluation.dense import score
from densecl.evaluation.floor import Floor, floor_of, one_class_miou


@given(st.lists(st.integers(0, 10**9), min_size=2, max_size=8).filter(any))
def test_it_is_the_score_of_one_class_everywhere(pixels: list[int]) -> None:
    confusion = torch.zeros(len(pixels), len(pixels), dtype=torch.int64)
    confusion[:, pixels.index(max(pixels))] = torch.tensor(pixels)
    assert one_class_miou(pixels) == pytest.approx(score(confusion).miou)


def test_by_hand() -> None:
    assert floor_of([14, 86]) == Floor(pytest.approx(43.0), 1)
    assert [floor_of([14, 86]).holds(score) for score in (20.0, 43.4, 43.6)] == [True, True, False]
    assert one_class_miou([86, 14]) == pytest.approx(43.0)
    assert one_class_miou([0, 30, 0, 30, 40]) == pytest.approx(40 / 3)  # classes that do not occur do not count
    assert one_class_miou([7]) == 100
    with pytest.raises(ValueError, match="no labeled pixel"):
        one_class_miou([0, 0])
