from __future__ import annotations

import numpy as np
import torch
from PIL import Image

from densecl.report.comparison import (
    APART,
    CAPTION,
    LINES,
    MARGIN,
    RIGHT,
    TOP,
    VIEW,
    WRONG,
    Seen,
    draw_comparison,
    spread_cells,
)

GRAY = torch.full((1, 3, 32, 32), 128, dtype=torch.uint8)
#: A cell shows the same place as the one of the same number.
PLACES = torch.eye(16, dtype=torch.bool)[None]
FIRST_ROW = TOP + CAPTION
THIRD_ROW = FIRST_ROW + 3 * VIEW + APART + 2 * CAPTION


def seen(match: torch.Tensor, query: torch.Tensor, key: torch.Tensor) -> Seen:
    return Seen("title", "score", query, key, match[None], (match == torch.arange(16))[None])


def near(picture: Image.Image, color: tuple[int, int, int]) -> np.ndarray:
    """Where a color is: rows and columns of pixels, without the legend's words."""
    found = np.abs(np.asarray(picture, dtype=int) - color).max(axis=2) < 12
    found[:FIRST_ROW] = False
    return np.argwhere(found)


def test_arcs_lead_to_the_matches_and_have_the_color_of_right_and_wrong() -> None:
    apart = torch.eye(16).reshape(1, 16, 4, 4)
    good = seen(torch.arange(16), apart, apart)
    bad = seen(torch.full((16,), 12), apart, apart)  # all in the corner at the lower left
    picture = draw_comparison(GRAY, GRAY, PLACES, [good, bad], "footer")
    assert picture.width == 2 * MARGIN + 2 * VIEW + 56
    half = picture.width // 2
    right, wrong = near(picture, RIGHT), near(picture, WRONG)
    assert len(right) and right[:, 1].max() < half
    assert len(wrong) and wrong[:, 1].min() > half
    lower = FIRST_ROW + VIEW + APART
    # Green arcs end in every column of the lower view; the red ones at its lower left.
    ends = right[right[:, 0] > lower][:, 1]
    assert {int((x - MARGIN) * 4 / VIEW) for x in ends} == {0, 1, 2, 3}
    lowest = wrong[wrong[:, 0] > lower + 0.8 * VIEW][:, 1]
    assert len(lowest) and lowest.max() < picture.width - MARGIN - VIEW / 2


def test_the_similar_cell_is_lit_and_the_ring_is_where_it_really_is() -> None:
    cell = spread_cells(torch.ones(16, dtype=torch.bool), (4, 4))[0]
    query = torch.zeros(1, 16, 4, 4)
    query[0, 0] = 1
    key = torch.zeros(1, 16, 4, 4)
    key[0, 1] = 1
    key[0, :, 0, 0] = query[0, :, 0, 0]  # the first cell alone is similar
    picture = draw_comparison(GRAY, GRAY, PLACES, [seen(torch.zeros(16, dtype=torch.int64), query, key)], "footer")
    below = np.asarray(picture, dtype=int)[THIRD_ROW : THIRD_ROW + VIEW, MARGIN : MARGIN + VIEW]
    part = VIEW // 4
    lit, dark = below[10 : part // 2, 10 : part // 2].mean(axis=(0, 1)), below[-part:, -part:].mean(axis=(0, 1))
    assert lit[0] > dark[0] + 80
    row, col = divmod(cell, 4)
    ring = np.argwhere(below[10:-10, 10:-10].min(axis=2) > 240) + 10  # without the round corners
    assert np.abs(ring.mean(axis=0) - [VIEW * (row + 0.5) / 4, VIEW * (col + 0.5) / 4]).max() < 3


def test_cells_to_draw_are_shown_by_the_other_view_and_in_different_columns() -> None:
    shown = torch.zeros(8, 8, dtype=torch.bool)
    shown[2:, 1:7] = True
    chosen = spread_cells(shown.flatten(), (8, 8))
    assert len(chosen) == LINES and len({cell % 8 for cell in chosen}) == LINES
    assert all(shown.flatten()[cell] for cell in chosen)
    assert {cell % 8 for cell in chosen} >= {1, 6}  # as far apart as can be
    assert chosen[0] % 8 in (3, 4)
    assert spread_cells(torch.zeros(16, dtype=torch.bool), (4, 4)) == []
    only = torch.zeros(16, dtype=torch.bool)
    only[5] = True
    assert spread_cells(only, (4, 4)) == [5]


def test_views_that_share_nothing_are_drawn_without_arcs() -> None:
    features = torch.rand(1, 3, 4, 4)
    nowhere = torch.zeros(1, 16, 16, dtype=torch.bool)
    picture = draw_comparison(GRAY, GRAY, nowhere, [seen(torch.arange(16), features, features)], "footer")
    assert len(near(picture, RIGHT)) == len(near(picture, WRONG)) == 0
