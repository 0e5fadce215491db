"""Which curves a report has, and their points. The page draws them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from densecl.reporting.run_files import Row, RunFiles


class Line(NamedTuple):
    """A column of a table, as a line."""

    column: str
    name: str
    level: bool = False  # a level to compare with, such as chance: drawn broken, and in a quiet color


class Chart(NamedTuple):
    """Lines that share an axis."""

    title: str
    note: str  # how to read it
    lines: Sequence[Line]
    table: str = "metrics"  # or "watched"
    scale: float = 1.0  # of the values
    unit: str = ""
    unless: str = ""  # left out if this column has values


class Group(NamedTuple):
    """Charts that belong together."""

    title: str
    charts: Sequence[Chart]


GROUPS = (
    Group(
        "What it learns",
        (
            Chart(
                "Probe on your labels",
                "Segmentation of your labeled images by the nearest cells, nothing trained. Higher is better.",
                (Line("probe", "mIoU"),),
                "watched",
                unit=" %",
            ),
            Chart(
                "Match accuracy",
                "How often a cell of one view finds its place in the other, on views that stay the same.",
                (Line("match_accuracy", "accuracy"), Line("match_chance", "chance level", True)),
                "watched",
                scale=100,
                unit=" %",
            ),
            Chart(
                "Effective rank",
                "How many directions the cells' vectors fill. A fall means that cells become alike.",
                (Line("effective_rank", "effective rank"),),
                "watched",
            ),
            Chart(
                "Spread",
                "How far vectors lie apart, from 0 (all the same) to 1.",
                (Line("cell_spread", "cells of an image"), Line("image_spread", "images")),
                "watched",
            ),
            Chart(
                "Spread",
                "How far vectors lie apart, from 0 (all the same) to 1.",
                (Line("cell_spread", "cells of an image"), Line("image_spread", "images of a batch")),
                unless="cell_spread",
            ),
            Chart(
                "Clusters of cells",
                "How far clusters of cells lie apart, and how wide they are.",
                (Line("apart", "between clusters"), Line("within", "within a cluster")),
                "watched",
            ),
            Chart(
                "Moved from the start",
                "1 - mean cosine of a cell's vector with that of the starting weights.",
                (Line("moved", "moved"),),
                "watched",
            ),
        ),
    ),
    Group(
        "Losses",
        (
            Chart(
                "Dense loss",
                "Of cells. It may rise while a queue fills, or as negatives become harder.",
                (Line("dense_loss", "dense loss"), Line("dense_chance_loss", "chance level", True)),
            ),
            Chart(
                "Global loss",
                "Of whole images.",
                (Line("global_loss", "global loss"), Line("global_chance_loss", "chance level", True)),
            ),
            Chart("Loss", "The weighted sum, which is trained.", (Line("loss", "loss"),)),
            Chart(
                "Teacher and anchor",
                "How far the cells are from those of the frozen networks.",
                (Line("teacher_loss", "teacher"), Line("anchor_loss", "anchor")),
            ),
            Chart(
                "Similarity of cells",
                "Of a cell to its match, and to cells of other images.",
                (Line("dense_positive", "to its match"), Line("dense_negative", "to others")),
            ),
            Chart(
                "Similarity of images",
                "Of an image to its other view, and to other images.",
                (Line("global_positive", "to its other view"), Line("global_negative", "to others")),
            ),
            Chart(
                "Matches in training",
                "How often a cell finds its place, and how many cells are found at all. Near 0 all match the same one.",
                (
                    Line("match_accuracy", "right"),
                    Line("distinct_matches", "cells found"),
                    Line("match_chance", "chance level", True),
                ),
                scale=100,
                unit=" %",
            ),
        ),
    ),
    Group(
        "Schedule and machine",
        (
            Chart("Learning rate", "", (Line("learning_rate", "learning rate"),)),
            Chart("Images per second", "", (Line("images_per_second", "images/s"),)),
            Chart(
                "Waiting for data",
                "Near 100 % the machine has nothing to do: more workers or a cache would help.",
                (Line("data_wait", "waiting"),),
                scale=100,
                unit=" %",
            ),
        ),
    ),
)

#: Numbers of a point that the page gets; a pixel shows no more.
DIGITS = 5


def curves(runs: Sequence[RunFiles]) -> list[dict[str, Any]]:
    """The groups of charts for which any of the runs has points, as the page draws them.

    A line has the number of its run, its name, its points ``x`` (steps) and ``y``, and whether it is a ``level``.
    """
    found = []
    for group in GROUPS:
        charts = [chart for each in group.charts if (chart := _drawn(each, runs))]
        if charts:
            found.append({"title": group.title, "charts": charts})
    return found


def _drawn(chart: Chart, runs: Sequence[RunFiles]) -> dict[str, Any] | None:
    lines = []
    for number, run in enumerate(runs):
        rows = run.watched if chart.table == "watched" else run.metrics
        if chart.unless and any(chart.unless in row for row in run.watched):
            continue
        for line in chart.lines:
            x, y = points(rows, line.column)
            if x:
                y = [float(f"{chart.scale * value:.{DIGITS}g}") for value in y]
                lines.append({"run": number, "name": line.name, "level": line.level, "x": x, "y": y})
    if not any(not line["level"] for line in lines):
        return None
    return {
        "title": chart.title,
        "note": chart.note,
        "unit": chart.unit,
        "few": chart.table == "watched",
        "lines": lines,
    }


def points(rows: Sequence[Row], column: str) -> tuple[list[float], list[float]]:
    """Steps and values of the rows that have this column."""
    having: list[Mapping[str, float]] = [row for row in rows if column in row]
    return [row["step"] for row in having], [row[column] for row in having]
