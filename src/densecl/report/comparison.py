"""A picture of what training changes: the same views of the same images, seen by several sets of weights side by side.

It has three rows: which cell of the other view each of some cells takes for the same place; the colors of all cells'
features; and where the other view is similar to one marked cell.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int, UInt8
from PIL import Image, ImageDraw
from torch import Tensor

from densecl.report.drawing import INK, PAPER, SCALE, SOFT_INK, font, write
from densecl.report.feature_colors import principal_colors, similarity_to

VIEW = 176  # side of a drawn view in pixels
GAP = 8  # between the views of neighboring pairs
APART = 34  # between the two views of a pair, one above the other
GUTTER = 56  # between two sets of weights
MARGIN = 24
TOP = 84  # for the title and the score of a set of weights
CAPTION = 42  # above a row
FOOTER = 40
DISC = 10  # radius of a numbered cell

RIGHT = (0, 168, 120)
WRONG = (232, 58, 58)
HALO = (255, 255, 255, 230)
MARK = (255, 255, 255)

#: Cells whose matches are drawn in each pair. More lines would hide the views.
LINES = 5


class Seen(NamedTuple):
    """What one set of weights makes of all pairs of views."""

    title: str
    score: str  # stands below the title, such as "39 % of the cells are found again"
    query: Float[Tensor, "pairs channels rows cols"]  # features
    key: Float[Tensor, "pairs channels rows cols"]
    match: Int[Tensor, "pairs cells"]  # each query cell's key cell
    right: Bool[Tensor, "pairs cells"]  # whether that is the same place


def draw_comparison(
    query: UInt8[Tensor, "pairs 3 height width"],
    key: UInt8[Tensor, "pairs 3 height width"],
    places: Bool[Tensor, "pairs cells cells"],
    seen: Sequence[Seen],
    footer: str,
) -> Image.Image:
    """Draw all sets of weights side by side.

    Which cells are drawn does not depend on the weights: of those that the other view shows, `LINES` in different
    columns (`spread_cells`). The middle one is marked in the third row.

    Args:
        query: pixels of the first view of each pair, RGB. At most four pairs can be told apart.
        key: those of the second.
        places: key cells that show the same place as a query cell.
        seen: one or several sets of weights, with feature maps of the same size.
        footer: stands below, such as how the pairs were chosen.
    """
    pairs = len(query)
    block = pairs * VIEW + (pairs - 1) * GAP
    width = 2 * MARGIN + len(seen) * block + (len(seen) - 1) * GUTTER
    rows = [TOP + CAPTION]  # where each row's views begin
    rows += [rows[0] + 2 * VIEW + APART + CAPTION]
    rows += [rows[1] + VIEW + CAPTION]
    canvas = Image.new("RGB", (width * SCALE, (rows[2] + VIEW + FOOTER) * SCALE), PAPER)
    pen = ImageDraw.Draw(canvas, "RGBA")
    cells = [spread_cells(places[pair].any(dim=1), seen[0].query.shape[2:]) for pair in range(pairs)]
    for number, one in enumerate(seen):
        left = MARGIN + number * (block + GUTTER)
        write(pen, (left, 40), one.title, size=27, ink=INK)
        write(pen, (left, 68), one.score, size=19, ink=INK)
        grid = (one.query.shape[2], one.query.shape[3])
        colors = principal_colors(torch.cat([one.query, one.key]))
        for pair in range(pairs):
            corner = (left + pair * (VIEW + GAP), rows[0])
            other = (corner[0], rows[0] + VIEW + APART)
            _paste(canvas, corner, query[pair])
            _paste(canvas, other, key[pair])
            _join(pen, corner, other, grid, one, pair, cells[pair])
            _paste(canvas, (corner[0], rows[1]), colors[pair])
            _similar(canvas, pen, (corner[0], rows[2]), key[pair], one, pair, cells[pair], places[pair])
    for top, text in zip(
        rows,
        (
            "Where is each spot of the upper view in the lower one?",
            "The upper views, colored by their features: the same color means the same to the network",
            "How similar is the lower view to spot 1 of the upper one? Ring: where it really is",
        ),
        strict=True,
    ):
        write(pen, (MARGIN, top - 12), text, size=18, ink=INK)
    _legend(pen, (width - MARGIN, rows[0] - 12))
    write(pen, (MARGIN, rows[2] + VIEW + 26), footer, size=15, ink=SOFT_INK)
    return canvas.resize((width, canvas.height // SCALE), Image.Resampling.LANCZOS)


def spread_cells(shown: Bool[Tensor, "cells"], grid: Sequence[int], count: int = LINES) -> list[int]:
    """Cells to draw, of those that the other view shows: in columns as far apart as can be, high and low in turn.

    No two are in the same column, so no line begins on another. The first one is in the middle column.
    """
    columns = shown.reshape(grid[0], grid[1]).T
    usable = columns.any(dim=1).nonzero().flatten().tolist()
    if not usable:
        return []
    apart = (len(usable) - 1) / max(1, count - 1)
    chosen = sorted({usable[round(place * apart)] for place in range(count)})
    chosen.sort(key=lambda column: abs(column - (grid[1] - 1) / 2))
    found = []
    for number, column in enumerate(chosen):
        rows = columns[column].nonzero().flatten().tolist()
        row = rows[len(rows) // 2] if number == 0 else rows[len(rows) // 4 if number % 2 else -1 - len(rows) // 4]
        found.append(row * grid[1] + column)
    return found


def _paste(canvas: Image.Image, corner: tuple[int, int], picture: UInt8[Tensor, "3 _ _"]) -> None:
    """Paste a view, or a map whose cells stay squares, with round corners."""
    side = VIEW * SCALE
    smooth = Image.Resampling.BICUBIC if picture.shape[1] >= 32 else Image.Resampling.NEAREST
    resized = Image.fromarray(picture.permute(1, 2, 0).contiguous().numpy()).resize((side, side), smooth)
    mask = Image.new("L", (side, side), 0)
    ImageDraw.Draw(mask).rounded_rectangle((0, 0, side - 1, side - 1), 8 * SCALE, fill=255)
    canvas.paste(resized, (corner[0] * SCALE, corner[1] * SCALE), mask)


def _join(
    pen: ImageDraw.ImageDraw,
    corner: tuple[int, int],
    other: tuple[int, int],
    grid: tuple[int, int],
    seen: Seen,
    pair: int,
    cells: Sequence[int],
) -> None:
    """Arcs from cells of the upper view to their matches, numbered at both ends. Wrong ones are dashed, too."""
    ends: dict[int, int] = {}
    arcs = []
    for number, cell in enumerate(cells, 1):
        match = int(seen.match[pair, cell])
        beside = ends.get(match, 0)  # discs on the same cell lie beside each other
        ends[match] = beside + 1
        start, (x, y) = _center(corner, grid, cell), _center(other, grid, match)
        end = (x + beside * 1.3 * DISC, y)
        arcs.append((number, start, end, bool(seen.right[pair, cell])))
    for _, start, end, right in arcs:
        _arc(pen, start, end, RIGHT if right else WRONG, dashed=not right)
    for number, *points, right in arcs:
        for x, y in points:
            pen.circle((x * SCALE, y * SCALE), (DISC + 1.5) * SCALE, fill=HALO)
            pen.circle((x * SCALE, y * SCALE), DISC * SCALE, fill=RIGHT if right else WRONG)
            write(pen, (x, y), str(number), size=14, ink=MARK, anchor="mm")


def _arc(
    pen: ImageDraw.ImageDraw,
    start: tuple[float, float],
    end: tuple[float, float],
    color: tuple[int, int, int],
    *,
    dashed: bool,
) -> None:
    """An S-shaped curve that leaves its ends upright (a cubic Bezier curve)."""
    bend = 0.45 * (end[1] - start[1])
    control = (start, (start[0], start[1] + bend), (end[0], end[1] - bend), end)
    t = torch.linspace(0, 1, 61)
    weights = torch.stack([(1 - t) ** 3, 3 * t * (1 - t) ** 2, 3 * t * t * (1 - t), t**3], dim=1)
    curve = [(x, y) for x, y in (SCALE * (weights @ torch.tensor(control))).tolist()]
    pen.line(curve, fill=HALO, width=7 * SCALE, joint="curve")
    pieces = [curve[first : first + 4] for first in range(0, len(curve) - 1, 5)] if dashed else [curve]
    for piece in pieces:
        pen.line(piece, fill=color, width=4 * SCALE, joint="curve")


def _similar(
    canvas: Image.Image,
    pen: ImageDraw.ImageDraw,
    corner: tuple[int, int],
    key: UInt8[Tensor, "3 height width"],
    seen: Seen,
    pair: int,
    cells: Sequence[int],
    places: Bool[Tensor, "cells cells"],
) -> None:
    """The lower view in gray, lit where it is similar to the first of the cells; a ring where that cell really is."""
    grid = (seen.key.shape[2], seen.key.shape[3])
    if not cells:
        _paste(canvas, corner, key)
        return
    row, col = divmod(cells[0], grid[1])
    likeness = similarity_to(seen.key[pair], seen.query[pair, :, row, col])
    low, high = likeness.min(), likeness.max()
    heat = (likeness - low) / (high - low).clamp(min=1e-6)
    side = key.shape[1]
    lit = torch.nn.functional.interpolate(heat[None, None], (side, key.shape[2]), mode="bicubic", align_corners=False)
    lit = lit[0, 0].clamp(0, 1)
    gray = key.float().mean(dim=0)
    warm = torch.stack([255 * (2 * lit).clamp(0, 1), 255 * (2 * lit - 0.7).clamp(0, 1), 90 * (1 - lit)])
    mixed = (0.35 * gray * (1 - lit) + 0.3 * gray * lit)[None] + 0.7 * warm * lit.sqrt()[None]
    _paste(canvas, corner, mixed.round().clamp(0, 255).to(torch.uint8))
    where = places[cells[0]].nonzero().flatten().tolist()
    centers = [_center(corner, grid, cell) for cell in where]
    x, y = (sum(values) / len(values) for values in zip(*centers, strict=True))
    for radius, color in ((16, (0, 0, 0, 160)), (14.5, MARK), (11.5, (0, 0, 0, 160))):
        pen.circle((x * SCALE, y * SCALE), radius * SCALE, outline=color, width=3 * SCALE if color == MARK else SCALE)


def _center(corner: tuple[int, int], grid: tuple[int, int], cell: int) -> tuple[float, float]:
    row, col = divmod(cell, grid[1])
    return corner[0] + VIEW * (col + 0.5) / grid[1], corner[1] + VIEW * (row + 0.5) / grid[0]


def _legend(pen: ImageDraw.ImageDraw, right: tuple[int, int]) -> None:
    x = right[0]
    for color, text in ((WRONG, "wrong"), (RIGHT, "right")):
        write(pen, (x, right[1]), text, size=18, ink=color, anchor="rs")
        x -= round(pen.textlength(text, font(18)) / SCALE) + 18
