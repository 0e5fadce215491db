"""A picture of what training changes: the same views of the same images, seen by several sets of weights side by side.

It has three rows: which cell of the other view each of some cells takes for the same place; the whole images in the
colors of their features; and where an image is similar to the cell in its middle.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int, UInt8
from PIL import Image, ImageDraw
from torch import Tensor
from torch.nn import functional

from densecl.pictures.drawing import INK, PAPER, SCALE, SOFT_INK, font, write
from densecl.pictures.feature_colors import principal_colors, similarity_to

VIEW = 176  # side of a drawn view in pixels
GAP = 8  # between the views of neighboring pairs
APART = 34  # between the two views of a pair, one above the other
GUTTER = 56  # between two sets of weights
MARGIN = 24
TOP = 84  # for the title and the score of a set of weights
CAPTION = 42  # above a row
FOOTER = 40
DISC = 10  # radius of a numbered cell
INSET = 58  # side of the small image on its colored features

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
    grid: tuple[int, int]  # rows and columns of a view's feature map
    match: Int[Tensor, "pairs cells"]  # each query cell's key cell
    right: Bool[Tensor, "pairs cells"]  # whether that is the same place
    whole: Float[Tensor, "pairs channels rows cols"]  # features of the whole images


def draw_comparison(
    query: UInt8[Tensor, "pairs 3 height width"],
    key: UInt8[Tensor, "pairs 3 height width"],
    images: UInt8[Tensor, "pairs 3 _ _"],
    shown: Bool[Tensor, "pairs cells"],
    seen: Sequence[Seen],
    footer: str,
) -> Image.Image:
    """Draw all sets of weights side by side.

    Which cells are drawn does not depend on the weights: of those that the other view shows, `LINES` in different
    columns (`spread_cells`).

    Args:
        query: pixels of the first view of each pair, RGB.
        key: those of the second.
        images: the whole images that the views were cut from.
        shown: query cells that the other view shows.
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
    for number, one in enumerate(seen):
        left = MARGIN + number * (block + GUTTER)
        write(pen, (left, 40), one.title, size=27, ink=INK)
        write(pen, (left, 68), one.score, size=19, ink=INK)
        colors = principal_colors(one.whole)
        for pair in range(pairs):
            x = left + pair * (VIEW + GAP)
            upper, lower = (x, rows[0]), (x, rows[0] + VIEW + APART)
            _paste(canvas, upper, query[pair])
            _paste(canvas, lower, key[pair])
            _join(pen, upper, lower, one, pair, spread_cells(shown[pair], one.grid))
            _paste(canvas, (x, rows[1]), colors[pair])
            corner = (x + 6, rows[1] + VIEW - INSET - 6)
            pen.rectangle([SCALE * (value - 2 + step) for step in (0, INSET + 3) for value in corner], fill=PAPER)
            _paste(canvas, corner, images[pair], INSET)
            _similar(canvas, pen, (x, rows[2]), images[pair], one.whole[pair])
    for top, text in zip(
        rows,
        (
            "Where is each spot of the upper view in the lower one?",
            "Whole images, colored by their features: what has the same color is the same to the network",
            "What is similar to the spot in the middle? Yellow: very, black: not at all",
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


def _paste(canvas: Image.Image, corner: tuple[int, int], picture: UInt8[Tensor, "3 _ _"], size: int = VIEW) -> None:
    """Paste an image, or a map whose cells stay squares, with round corners."""
    side = size * SCALE
    smooth = Image.Resampling.BICUBIC if picture.shape[1] >= 32 else Image.Resampling.NEAREST
    resized = Image.fromarray(picture.permute(1, 2, 0).contiguous().numpy()).resize((side, side), smooth)
    mask = Image.new("L", (side, side), 0)
    ImageDraw.Draw(mask).rounded_rectangle((0, 0, side - 1, side - 1), side // 22, fill=255)
    canvas.paste(resized, (corner[0] * SCALE, corner[1] * SCALE), mask)


def _join(
    pen: ImageDraw.ImageDraw,
    upper: tuple[int, int],
    lower: tuple[int, int],
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
        start, (x, y) = _center(upper, seen.grid, cell), _center(lower, seen.grid, match)
        end = (x + beside * 2.1 * DISC, y)
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
    image: UInt8[Tensor, "3 height width"],
    features: Float[Tensor, "channels rows cols"],
) -> None:
    """The image in gray, lit where it is similar to the cell in its middle, which has a ring."""
    rows, cols = features.shape[1:]
    similar = similarity_to(features, features[:, rows // 2, cols // 2])
    low, high = similar.min(), similar.max()
    heat = ((similar - low) / (high - low).clamp(min=1e-6))[None, None]
    lit = functional.interpolate(heat, image.shape[1:], mode="bicubic", align_corners=False)[0, 0].clamp(0, 1)
    warm = torch.stack([255 * (2 * lit).clamp(0, 1), 255 * (2 * lit - 0.7).clamp(0, 1), 90 * (1 - lit)])
    mixed = 0.35 * image.float().mean(dim=0) + 0.65 * warm * lit.sqrt()
    _paste(canvas, corner, mixed.round().clamp(0, 255).to(torch.uint8))
    x, y = _center(corner, (rows, cols), rows // 2 * cols + cols // 2)
    for radius, color, width in ((11, (0, 0, 0, 200), 5), (10, MARK, 3)):
        pen.circle((x * SCALE, y * SCALE), radius * SCALE, outline=color, width=width * SCALE)


def _center(corner: tuple[int, int], grid: tuple[int, int], cell: int) -> tuple[float, float]:
    row, col = divmod(cell, grid[1])
    return corner[0] + VIEW * (col + 0.5) / grid[1], corner[1] + VIEW * (row + 0.5) / grid[0]


def _legend(pen: ImageDraw.ImageDraw, right: tuple[int, int]) -> None:
    x = right[0]
    for color, text in ((WRONG, "wrong"), (RIGHT, "right")):
        write(pen, (x, right[1]), text, size=18, ink=color, anchor="rs")
        x -= round(pen.textlength(text, font(18)) / SCALE) + 18
