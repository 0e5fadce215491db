from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from densecl.pictures.correspondences import RIGHT, WRONG, MatchRow, draw_correspondences

GREY = torch.full((2, 3, 20, 20), 128, dtype=torch.uint8)


def row(match: list[list[int]], right: list[list[bool]], counted: list[list[bool]]) -> MatchRow:
    return MatchRow("weights", "caption", (2, 2), torch.tensor(match), torch.tensor(right), torch.tensor(counted))


def pixels(picture: Image.Image, color: tuple[int, int, int]) -> np.ndarray:
    """Places (x, y) of a color, without the legend's."""
    found = np.abs(np.asarray(picture, dtype=int) - color).max(axis=2) < 12
    return np.argwhere(found[: picture.height - 58])[:, ::-1]


def test_lines_run_from_a_cell_to_its_match() -> None:
    # Only cell 0 (top left) of the first pair counts: its match is cell 3 (bottom right), a right one.
    one = row(
        [[3, 0, 0, 0], [0, 0, 0, 0]],
        [[True, False, False, False], [False] * 4],
        [[True, False, False, False], [False] * 4],
    )
    picture = draw_correspondences(GREY, GREY, [one])
    green = pixels(picture, RIGHT)
    assert len(green) and not len(pixels(picture, WRONG))
    start, end = green[green[:, 0].argmin()], green[green[:, 0].argmax()]
    # A view is 216 px, so the cells' centers lie a quarter from its edges; the second view begins 226 px further.
    assert np.abs(end - start - (226 + 108, 108)).max() <= 8
    assert end[0] < picture.width / 2  # nothing in the second pair


def test_right_and_wrong_have_their_colors_in_every_row() -> None:
    counted = [[True] * 4, [True] * 4]
    good = row([[0, 1, 2, 3]] * 2, [[True] * 4] * 2, counted)
    bad = row([[3, 2, 1, 0]] * 2, [[False] * 4] * 2, counted)
    picture = draw_correspondences(GREY, GREY, [good, bad])
    green, red = pixels(picture, RIGHT), pixels(picture, WRONG)
    assert len(green) and len(red)
    assert green[:, 1].max() < red[:, 1].min()


def test_no_more_lines_than_asked_for() -> None:
    cells = torch.arange(4).expand(2, 4)
    yes = torch.ones(2, 4, dtype=torch.bool)
    everything = MatchRow("weights", "caption", (4, 1), cells, yes, yes)  # four level lines, none over another
    few, all_of_them = (pixels(draw_correspondences(GREY, GREY, [everything], lines=lines), RIGHT) for lines in (2, 9))
    assert len(few) / len(all_of_them) == pytest.approx(0.5, abs=0.02)
