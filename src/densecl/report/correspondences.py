"""A picture of matches: two views of an image, and a line from each query cell to the key cell it is matched with."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from jaxtyping import Bool, Int, UInt8
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

RIGHT, WRONG = (64, 220, 110), (255, 82, 82)
PAPER, INK, FAINT = (250, 250, 248), (28, 30, 34), (110, 114, 120)

VIEW = 176  # side of a drawn view, in pixels of the picture
GAP, MARGIN, TITLE = 26, 24, 34
SCALE = 2  # everything is drawn larger and shrunk, for smooth lines


class MatchedPair(NamedTuple):
    """Two views of one image, and what was made of them."""

    first: UInt8[Tensor, "3 size size"]
    second: UInt8[Tensor, "3 size size"]
    grid: tuple[int, int]  # rows and cols of the feature map
    match: Int[Tensor, "cells"]  # for each query cell its key cell
    right: Bool[Tensor, "cells"]  # whether that key cell shows the same place
    common: Bool[Tensor, "cells"]  # whether the query cell shows anything that the other view has: others are not drawn


def draw_correspondences(sets: Mapping[str, Sequence[MatchedPair]], path: Path | str, *, lines: int = 24) -> None:
    """Writes a PNG with a row for each set of weights and the same pairs of views in each.

    Args:
        sets: by title, such as "random weights". Every row has the same number of pairs.
        path: written beside its place and moved into it.
        lines: at most so many a pair, spread evenly over the cells that the views have in common.
    """
    columns = max(len(pairs) for pairs in sets.values())
    width = 2 * MARGIN + columns * (2 * VIEW + GAP) + (columns - 1) * 2 * GAP
    height = MARGIN + len(sets) * (TITLE + VIEW + MARGIN) + TITLE
    canvas = Image.new("RGB", (SCALE * width, SCALE * height), PAPER)
    draw = ImageDraw.Draw(canvas)
    title_font, small_font = ImageFont.load_default(SCALE * 17), ImageFont.load_default(SCALE * 13)

    for number, (title, pairs) in enumerate(sets.items()):
        top = MARGIN + number * (TITLE + VIEW + MARGIN)
        hits = sum(int((pair.right & pair.common).sum()) for pair in pairs)
        share = hits / max(1, sum(int(pair.common.sum()) for pair in pairs))
        draw.text((SCALE * MARGIN, SCALE * top), title, INK, title_font)
        indent = draw.textlength(title + "  ", title_font)
        caption = f"{share:.0%} of these cells matched where they belong"
        draw.text((SCALE * MARGIN + indent, SCALE * (top + 4)), caption, FAINT, small_font)
        for column, pair in enumerate(pairs):
            left = MARGIN + column * (2 * VIEW + 3 * GAP)
            _draw_pair(canvas, draw, pair, SCALE * left, SCALE * (top + TITLE), lines)

    bottom = SCALE * (height - TITLE + 4)
    x = float(SCALE * MARGIN)
    for colour, word in ((RIGHT, "right: the same place in the image"), (WRONG, "wrong")):
        draw.line([(x, bottom + SCALE * 9), (x + SCALE * 24, bottom + SCALE * 9)], colour, SCALE * 3)
        draw.text((x + SCALE * 32, bottom), word, FAINT, small_font)
        x += SCALE * 60 + draw.textlength(word, small_font)

    path = Path(path)
    beside = path.with_name(path.name + ".part")
    canvas.resize((width, height), Image.Resampling.LANCZOS).save(beside, format="PNG")
    os.replace(beside, path)


def _draw_pair(
    canvas: Image.Image, draw: ImageDraw.ImageDraw, pair: MatchedPair, left: int, top: int, lines: int
) -> None:
    side, step = SCALE * VIEW, SCALE * (VIEW + GAP)
    for offset, view in ((0, pair.first), (step, pair.second)):
        image = Image.fromarray(view.permute(1, 2, 0).contiguous().numpy())
        canvas.paste(image.resize((side, side), Image.Resampling.BICUBIC), (left + offset, top))
    rows, cols = pair.grid
    common = pair.common.nonzero().squeeze(1)
    chosen = common[torch.linspace(0, len(common) - 1, min(lines, len(common))).long()].tolist() if len(common) else []
    # Wrong ones below, so that the eye finds the right ones.
    for cell in sorted(chosen, key=lambda cell: bool(pair.right[cell])):
        colour = RIGHT if pair.right[cell] else WRONG
        ends = [
            (left + offset + side * (index % cols + 0.5) / cols, top + side * (index // cols + 0.5) / rows)
            for offset, index in ((0, cell), (step, int(pair.match[cell])))
        ]
        draw.line(ends, colour, SCALE)
        for x, y in ends:
            radius = SCALE * 3
            draw.ellipse((x - radius, y - radius, x + radius, y + radius), colour, PAPER, SCALE)
