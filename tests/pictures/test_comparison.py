from __future__ import annotations

import numpy as np
import torch
from PIL import Image

from densecl.pictures.comparison import (
    APART,
    CAPTION,
    GUTTER,
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
ALL = torch.ones(1, 16, dtype=torch.bool)
SECOND_ROW = TOP + 2 * CAPTION + 2 * VIEW + APART
THIRD_ROW = SECOND_ROW + VIEW + CAPTION


def seen(match: torch.Tensor, whole: torch.Tensor | None = None) -> Seen:
    """A cell's right match is the one of the same number."""
    right = (match == torch.arange(16))[None]
    return Seen("title", "score", (4, 4), match[None], right, torch.rand(1, 3, 4, 4) if whole is None else whole)


def near(picture: Image.Image, color: tuple[int, int, int]) -> np.ndarray:
    """Where a color is: rows and columns of pixels, without the legend's words."""
    found = np.abs(np.asarray(picture, dtype=int) - color).max(axis=2) < 12
    found[: TOP + CAPTION] = False
    return np.argwhere(found)


def test_arcs_lead_to_the_matches_and_have_the_color_of_right_and_wrong() -> None:
    good = seen(torch.arange(16))
    bad = seen(torch.full((16,), 12))  # all in the corner at the lower left
    picture = draw_comparison(GRAY, GRAY, GRAY, ALL, [good, bad], "footer")
    assert picture.width == 2 * MARGIN + 2 * VIEW + GUTTER
    half = picture.width // 2
    lower = TOP + CAPTION + VIEW + APART
    right, wrong = (found[found[:, 0] < SECOND_ROW - CAPTION] for found in (near(picture, RIGHT), near(picture, WRONG)))
    assert len(right) and right[:, 1].max() < half
    assert len(wrong) and wrong[:, 1].min() > half
    # Green arcs end in every column of the lower view; the red ones side by side at its lower left.
    ends = right[right[:, 0] > lower][:, 1]
    assert {int((x - MARGIN) * 4 / VIEW) for x in ends} == {0, 1, 2, 3}
    lowest = wrong[wrong[:, 0] > lower + 0.8 * VIEW][:, 1]
    assert len(lowest) and lowest.max() < picture.width - MARGIN - 0.4 * VIEW


def test_what_is_similar_to_the_middle_is_lit_and_what_is_alike_has_one_color() -> None:
    whole = torch.zeros(1, 16, 4, 4)
    whole[0, 0] = 1
    whole[0, :, :, :2] = 0
    whole[0, 1, :, :2] = 1  # the left half differs from the right one, in which the middle cell lies
    picture = draw_comparison(GRAY, GRAY, GRAY, ALL, [seen(torch.arange(16), whole)], "footer")
    pixels = np.asarray(picture, dtype=int)

    def at(top: int, x: float) -> np.ndarray:
        """The mean of a small piece near the top of a panel, at this fraction of its width."""
        left = MARGIN + round(VIEW * x)
        return pixels[top + 20 : top + 30, left - 5 : left + 5].mean(axis=(0, 1))

    assert at(THIRD_ROW, 0.9)[0] > at(THIRD_ROW, 0.1)[0] + 80
    colors = [at(SECOND_ROW, x) for x in (0.1, 0.35, 0.65, 0.9)]
    assert np.abs(colors[0] - colors[1]).max() < 2 and np.abs(colors[2] - colors[3]).max() < 2
    assert np.abs(colors[1] - colors[2]).max() > 80


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
    picture = draw_comparison(GRAY, GRAY, GRAY, ~ALL, [seen(torch.arange(16), torch.ones(1, 3, 4, 4))], "footer")
    assert len(near(picture, RIGHT)) == len(near(picture, WRONG)) == 0
