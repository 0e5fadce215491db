"""A picture of curves: how good each set of weights is with more and more labels."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from PIL import Image, ImageDraw

from densecl.pictures.drawing import INK, PAPER, SCALE, SOFT_INK, Place, write

WIDTH, HEIGHT = 420, 300  # of a panel's plot
LEFT, RIGHT = 58, 26  # beside it, for the numbers
TOP, BOTTOM = 46, 58  # above it for the title, below it for the numbers and the axis
LINE = 24  # height of a line of the legend
MARGIN = 16

GRID = (224, 223, 218)
#: Told apart by those who see few colors, too (Okabe and Ito). They repeat if there are more lines.
COLORS = (
    (0, 114, 178),
    (230, 159, 0),
    (0, 158, 115),
    (204, 121, 167),
    (86, 180, 233),
    (213, 94, 0),
    (118, 122, 132),
)

#: A tick for about every so many pixels of height.
TICK = 60

#: How far to the right of a line's dots those of the next line are.
ASIDE = 5

#: Numbers below the plot that are nearer than this would overlap.
APART = 40

#: Longer names in the legend lose their beginning, because the ends of paths differ.
LONGEST_NAME = 60


class Line(NamedTuple):
    """One set of weights: a fraction of the labels -> the scores at all seeds."""

    name: str
    points: Mapping[float, Sequence[float]]


class Panel(NamedTuple):
    """One task. All panels of a picture show the same lines."""

    title: str
    lines: Sequence[Line]


def draw_curves(panels: Sequence[Panel], axis: str) -> Image.Image:
    """Draw the panels side by side. Dots are seeds, lines join their means. Scores that are nan are left out.

    Args:
        panels: at least one.
        axis: what the fractions below the plots are of. They are spread by their logarithm.
    """
    names = [line.name for line in panels[0].lines]
    width = 2 * MARGIN + len(panels) * (LEFT + WIDTH + RIGHT)
    height = 2 * MARGIN + TOP + HEIGHT + BOTTOM + LINE * len(names)
    canvas = Image.new("RGB", (width * SCALE, height * SCALE), PAPER)
    pen = ImageDraw.Draw(canvas, "RGBA")
    for place, panel in enumerate(panels):
        _draw_panel(pen, panel, (MARGIN + place * (LEFT + WIDTH + RIGHT) + LEFT, MARGIN + TOP), axis)
    for place, name in enumerate(names):
        y = MARGIN + TOP + HEIGHT + BOTTOM + LINE * place + LINE // 2
        pen.line(_scaled((MARGIN + LEFT, y), (MARGIN + LEFT + 30, y)), COLORS[place % len(COLORS)], 3 * SCALE)
        short = name if len(name) <= LONGEST_NAME else f"...{name[3 - LONGEST_NAME :]}"
        write(pen, (MARGIN + LEFT + 40, y), short, size=15, ink=INK, anchor="lm")
    return canvas.resize((width, height), Image.Resampling.LANCZOS)


def _draw_panel(pen: ImageDraw.ImageDraw, panel: Panel, corner: tuple[int, int], axis: str) -> None:
    left, top = corner
    lines = [
        {
            fraction: kept
            for fraction, values in sorted(line.points.items())
            if (kept := [value for value in values if not math.isnan(value)])
        }
        for line in panel.lines
    ]
    fractions = sorted({fraction for points in lines for fraction in points})
    values = [value for points in lines for some in points.values() for value in some]
    write(pen, (left, top - 16), panel.title, size=18, ink=INK)
    if not values:
        write(pen, (left, top + 30), "no score", size=15, ink=SOFT_INK)
        return
    ticks = _ticks(min(values), max(values))

    def at(fraction: float, value: float) -> Place:
        widest = math.log(fractions[-1] / fractions[0])
        # Dots at the very edges would be cut in half.
        x = 0.5 if widest == 0 else 0.04 + 0.92 * math.log(fraction / fractions[0]) / widest
        return left + WIDTH * x, top + HEIGHT * (ticks[-1] - value) / (ticks[-1] - ticks[0])

    for tick in ticks:
        y = at(fractions[0], tick)[1]
        pen.line(_scaled((left, y), (left + WIDTH, y)), GRID, SCALE)
        write(pen, (left - 8, y), f"{tick:g}", size=14, ink=SOFT_INK, anchor="rm")
    written = -math.inf
    for fraction in fractions:
        x = at(fraction, ticks[0])[0]
        pen.line(_scaled((x, top + HEIGHT), (x, top + HEIGHT + 5)), SOFT_INK, SCALE)
        if x - written >= APART:
            write(pen, (x, top + HEIGHT + 8), f"{100 * fraction:g} %", size=14, ink=SOFT_INK, anchor="mt")
            written = x
    write(pen, (left + WIDTH / 2, top + HEIGHT + 32), axis, size=14, ink=SOFT_INK, anchor="mt")
    for place, points in enumerate(lines):
        color = COLORS[place % len(COLORS)]
        aside = ASIDE * (place - (len(lines) - 1) / 2)  # else the dots of one line would hide those of another

        def beside(fraction: float, value: float, aside: float = aside) -> Place:
            x, y = at(fraction, value)
            return x + aside, y

        means = [beside(fraction, statistics.fmean(some)) for fraction, some in points.items()]
        if len(means) > 1:
            pen.line(_scaled(*means), color, 3 * SCALE, joint="curve")
        for fraction, some in points.items():
            for value in some:
                x, y = beside(fraction, value)
                pen.circle((x * SCALE, y * SCALE), 3 * SCALE, fill=(*color, 110))
        for x, y in means:
            pen.circle((x * SCALE, y * SCALE), 4 * SCALE, fill=color, outline=PAPER, width=SCALE)


def _scaled(*places: Place) -> list[tuple[float, float]]:
    return [(float(x * SCALE), float(y * SCALE)) for x, y in places]


def _ticks(low: float, high: float) -> list[float]:
    """Round numbers, at least two, from below the lowest value to above the highest."""
    least = max(high - low, 0.1) / (HEIGHT / TICK)
    size = 10.0 ** math.floor(math.log10(least))
    step = next(factor * size for factor in (1, 2, 5, 10) if factor * size >= least)
    first, last = math.floor(low / step), math.ceil(high / step)
    return [round(number * step, 6) for number in range(first, max(last, first + 1) + 1)]
