from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from densecl.pictures import curve
from densecl.pictures.curve import COLORS, HEIGHT, LEFT, MARGIN, TOP, WIDTH, Line, Panel, draw_curves


def places(picture: Image.Image, color: tuple[int, int, int]) -> np.ndarray:
    """Places (x, y) of a color in the first panel's plot."""
    found = np.abs(np.asarray(picture, dtype=int) - color).max(axis=2) < 12
    found[MARGIN + TOP + HEIGHT + 6 :] = False  # the legend
    return np.argwhere(found)[:, ::-1]


def test_a_line_rises_with_the_scores() -> None:
    lines = [Line("better", {0.1: [20.0, 22.0], 1.0: [40.0]}), Line("worse", {0.1: [10.0, 10.0], 1.0: [30.0]})]
    picture = draw_curves([Panel("task: mIoU", lines)], "labels")
    for color, left_score, right_score in ((COLORS[0], 21, 40), (COLORS[1], 10, 30)):
        found = places(picture, color)
        first, last = found[found[:, 0].argmin()], found[found[:, 0].argmax()]
        # The ticks run from 10 to 40.
        for (x, y), score in ((first, left_score), (last, right_score)):
            assert MARGIN + LEFT <= x <= MARGIN + LEFT + WIDTH
            assert y == pytest.approx(MARGIN + TOP + HEIGHT * (40 - score) / 30, abs=5)


def test_fractions_are_spread_by_their_logarithm() -> None:
    points = {0.01: [10.0], 0.1: [10.0], 1.0: [10.0]}
    (at, score) = (10**-0.5, 10.0)  # halfway between the second and the third
    dot = draw_curves([Panel("t", [Line("w", {0.01: [math.nan], at: [score]})])], "a")
    assert len(places(dot, COLORS[0])) > 0
    picture = draw_curves([Panel("t", [Line("w", points), Line("nan", {0.1: [math.nan]})])], "a")
    found = places(picture, COLORS[0])
    assert found[:, 0].max() - found[:, 0].min() == pytest.approx(0.92 * WIDTH, abs=10)
    assert len(places(picture, COLORS[1])) == 0  # nan is not drawn


def test_each_panel_has_its_place_and_a_name_without_scores_is_said() -> None:
    lines = [Line("w" * 300, {0.1: [1.0], 0.2: [2.0]})]
    one, two = (draw_curves([Panel("t", lines)] * count, "labels") for count in (1, 2))
    assert two.width > one.width and two.height == one.height
    draw_curves([Panel("t", [Line("w", {}), Line("v", {0.5: [math.nan]})])], "labels")


@given(st.floats(0, 100), st.floats(0, 100))
def test_ticks_are_few_and_hold_all(one: float, other: float) -> None:
    low, high = sorted((one, other))
    ticks = curve._ticks(low, high)
    assert ticks[0] <= low + 1e-6 and high - 1e-6 <= ticks[-1] and 2 <= len(ticks) <= 8
    steps = {round(after - before, 6) for before, after in itertools.pairwise(ticks)}
    assert len(steps) == 1
