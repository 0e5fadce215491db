"""A picture of matches: lines between the cells of two views that a backbone takes for the same place."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Int, UInt8
from PIL import Image, ImageDraw
from torch import Tensor

from densecl.pictures.drawing import INK, PAPER, SCALE, SOFT_INK, font, write

VIEW = 216  # side of a drawn view in pixels
GAP = 10  # between the two views of a pair
GUTTER = 34  # between pairs
MARGIN = 36
HEADER = 54  # above a row of pairs, for its title
FOOTER = 40  # for the legend

RIGHT = (0, 196, 140)
WRONG = (244, 63, 72)
HALO = (16, 18, 24, 190)


class MatchRow(NamedTuple):
    """The matches of one set of weights on all drawn pairs."""

    title: str
    caption: str  # at the right of the title, such as the match accuracy
    grid: tuple[int, int]  # rows and columns of the feature map
    match: Int[Tensor, "pairs cells"]  # each query cell's key cell
    right: Bool[Tensor, "pairs cells"]  # whether that is the right match
    counted: Bool[Tensor, "pairs cells"]  # whether the query cell has a right match


def draw_correspondences(
    query: UInt8[Tensor, "pairs 3 height width"],
    key: UInt8[Tensor, "pairs 3 height width"],
    rows: Sequence[MatchRow],
    *,
    lines: int = 12,
) -> Image.Image:
    """Draw a row for each set of weights: the views of each pair side by side, with lines from query cells to matches.

    Lines of right matches are green, of wrong ones red. Only query cells that have a right match are drawn. Of each
    pair there are at most `lines`, spread evenly. Rows with the same grid show the same query cells.
    """
    pairs = len(query)
    block = 2 * VIEW + GAP
    width = 2 * MARGIN + pairs * block + (pairs - 1) * GUTTER
    height = MARGIN + len(rows) * (HEADER + VIEW) + FOOTER + MARGIN // 2
    canvas = Image.new("RGB", (width * SCALE, height * SCALE), PAPER)
    pen = ImageDraw.Draw(canvas, "RGBA")
    for number, row in enumerate(rows):
        top = MARGIN // 2 + number * (HEADER + VIEW)
        write(pen, (MARGIN, top + HEADER - 15), row.title, size=22, ink=INK)
        write(pen, (width - MARGIN, top + HEADER - 15), row.caption, size=17, ink=SOFT_INK, anchor="rs")
        for pair in range(pairs):
            left = MARGIN + pair * (block + GUTTER)
            corners = [(left, top + HEADER), (left + VIEW + GAP, top + HEADER)]
            for corner, view in zip(corners, (query[pair], key[pair]), strict=True):
                _paste(canvas, corner, view)
            _join(pen, corners, row, pair, lines)
    _legend(pen, height - FOOTER + 6)
    return canvas.resize((width, height), Image.Resampling.LANCZOS)


def _paste(canvas: Image.Image, corner: tuple[int, int], view: UInt8[Tensor, "3 height width"]) -> None:
    """Paste a view, with round corners."""
    side = VIEW * SCALE
    picture = Image.fromarray(view.permute(1, 2, 0).numpy()).resize((side, side), Image.Resampling.BICUBIC)
    mask = Image.new("L", (side, side), 0)
    ImageDraw.Draw(mask).rounded_rectangle((0, 0, side - 1, side - 1), 10 * SCALE, fill=255)
    canvas.paste(picture, (corner[0] * SCALE, corner[1] * SCALE), mask)


def _join(pen: ImageDraw.ImageDraw, corners: list[tuple[int, int]], row: MatchRow, pair: int, lines: int) -> None:
    cells = row.counted[pair].nonzero().flatten()
    if len(cells) > lines:
        cells = cells[torch.linspace(0, len(cells) - 1, lines).round().long()]
    # The right ones are drawn last, so that they lie on top.
    for cell in sorted(cells.tolist(), key=lambda cell: bool(row.right[pair, cell])):
        start = _center(corners[0], row.grid, cell)
        end = _center(corners[1], row.grid, int(row.match[pair, cell]))
        color = RIGHT if row.right[pair, cell] else WRONG
        thickness = 3 if row.right[pair, cell] else 2
        pen.line((start, end), fill=HALO, width=(thickness + 2) * SCALE)
        pen.line((start, end), fill=color, width=thickness * SCALE)
        for point in (start, end):
            pen.circle(point, 6 * SCALE, fill=HALO)
            pen.circle(point, 5 * SCALE, fill=(255, 255, 255))
            pen.circle(point, 3.5 * SCALE, fill=color)


def _center(corner: tuple[int, int], grid: tuple[int, int], cell: int) -> tuple[float, float]:
    row, col = divmod(cell, grid[1])
    x = corner[0] + VIEW * (col + 0.5) / grid[1]
    y = corner[1] + VIEW * (row + 0.5) / grid[0]
    return x * SCALE, y * SCALE


def _legend(pen: ImageDraw.ImageDraw, baseline: int) -> None:
    left = MARGIN
    for color, text in ((RIGHT, "the same place"), (WRONG, "another place")):
        pen.line(
            ((left * SCALE, (baseline - 5) * SCALE), ((left + 30) * SCALE, (baseline - 5) * SCALE)), color, 4 * SCALE
        )
        write(pen, (left + 40, baseline), text, size=15, ink=INK)
        left += 40 + round(pen.textlength(text, font(15)) / SCALE) + 28
    write(
        pen,
        (left, baseline),
        "cells of one view (left) and their most similar cells in the other",
        size=15,
        ink=SOFT_INK,
    )
