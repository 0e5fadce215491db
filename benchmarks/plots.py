"""Draws the figures of docs/benchmarks.md and of docs/benchmarks/. Reads nothing but the committed CSV files.

python benchmarks/plots.py [--out docs/images]

A dot is a seed everywhere. An axis begins at zero, or bears a mark where it is cut.
"""

from __future__ import annotations

import argparse
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import matplotlib as mpl
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator
from rows import read

mpl.use("agg")
TABLES = Path(__file__).parents[1] / "docs" / "benchmarks"
RANDOM = "random weights"
#: The measures by which settings are chosen, and their titles.
SEARCHED = {
    "miou": "linear segmentation, mIoU",
    "retrieval": "retrieval, mIoU",
    "match_accuracy": "match accuracy, %",
}
#: Title of each panel, with its judge and measure: features that stay frozen, and features that labels train, too.
FROZEN = {
    "linear segmentation, mIoU": ("test", "miou"),
    "held-out video, mIoU": ("test", "miou_apart"),
    "retrieval, mIoU": ("test", "retrieval"),
    "match accuracy, %": ("test", "match_accuracy"),
}
FINE_TUNED = {
    "segmentation, a tenth of the labels, mIoU": ("few", "miou"),
    "held-out video, a tenth of the labels, mIoU": ("few", "miou_apart"),
    "detection, AP": ("detection", "ap"),
}
GLOBAL, DENSE, OTHER = "#d9822b", "#1f6fb2", "#8a8f98"

#: An axis is cut if all its values lie above this fraction of the largest: from zero their differences would be lost.
CUT = 0.6
CUT_AXIS = Line2D([], [], linestyle="none", marker="$//$", markersize=9, color="black", label="axis is cut")
#: Points of time at which the mean over seeds is drawn, because no two seeds report at the same minute.
WINDOWS = 16


def scale(axes: Axes, values: Sequence[float], axis: Literal["x", "y"]) -> bool:
    """Begin an axis at zero, or mark its beginning with two strokes. Values are all that is drawn along it.

    Returns:
        Whether the axis is cut.
    """
    if min(values) < CUT * max(values):
        axes.set(**{f"{axis}lim": (0, 1.06 * max(values))})
        return False
    room = 0.12 * (max(values) - min(values))
    low, high = min(values) - 2 * room, max(values) + room
    axes.set(**{f"{axis}lim": (low, high)})
    mark = 0.04  # the fraction of the axis that the strokes take
    ticks = MaxNLocator(8, steps=[1, 2, 5, 10]).tick_values(low, high)
    axes.set(**{f"{axis}ticks": [tick for tick in ticks if low + 1.5 * mark * (high - low) < tick <= high]})
    along, across = (0.015, mark), (0, 0)
    ends = (along, across) if axis == "x" else (across, along)
    style = {"transform": axes.transAxes, "clip_on": False}
    axes.plot(*ends, color="white", linewidth=3, zorder=5, **style)
    stroke = [(-0.5, -1), (0.5, 1)] if axis == "x" else [(-1, -0.5), (1, 0.5)]
    axes.plot(*ends, linestyle="none", marker=stroke, markersize=12, markeredgecolor="black", zorder=6, **style)
    return True


def dots(axes: Axes, place: float, values: Sequence[float], color: str) -> None:
    """A dot for each seed, and a bar at their mean."""
    axes.plot(values, [place] * len(values), "o", color=color, alpha=0.55, markersize=5, markeredgewidth=0)
    mean = statistics.mean(values)
    axes.plot([mean, mean], [place - 0.16, place + 0.16], color=color, linewidth=2)


def compare(
    axes: Axes,
    names: Sequence[str],
    find: Callable[[str, bool], list[float]],
    random: Sequence[float],
    title: str,
) -> bool:
    """A line for each name, with its values without and with the dense loss. A gray band shows random weights.

    Returns:
        Whether the axis is cut.
    """
    drawn = list(random)
    if random:
        axes.axvspan(min(random) - 0.15, max(random) + 0.15, color=OTHER, alpha=0.3, linewidth=0)
    for place, name in enumerate(reversed(names)):
        found = [(color, find(name, dense)) for color, dense in ((GLOBAL, False), (DENSE, True))]
        found = [(color, values) for color, values in found if values]
        for aside, (color, values) in zip((-0.17, 0.17) if len(found) == 2 else (0,), found, strict=False):
            dots(axes, place + aside, values, color)
            drawn += values
    cut = scale(axes, drawn, "x")
    axes.set_yticks(range(len(names)), reversed(names))
    axes.set_ylim(-0.5, len(names) - 0.5)
    axes.set_title(title, fontsize=10)
    axes.grid(axis="x", alpha=0.3)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(axis="y", length=0)
    return cut


def legend(figure: Figure, *, random: bool, cut: bool) -> None:
    """Says what dots and bars are, and where there is one, what the gray band and the mark of a cut axis mean."""
    handles: list[Artist] = [
        Line2D([], [], marker="o", linestyle="none", color=color, label=f"{label}, a dot a seed")
        for color, label in ((GLOBAL, "global loss alone"), (DENSE, "with the dense loss"))
    ]
    handles.append(
        Line2D([], [], linestyle="none", marker="|", markersize=11, markeredgewidth=2, color="black", label="mean")
    )
    if random:
        handles.append(Patch(color=OTHER, alpha=0.3, label=RANDOM))
    if cut:
        handles.append(CUT_AXIS)
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), frameon=False, fontsize=9)


def methods(out: Path) -> None:
    """Drawn scenes: every method, three seeds."""
    rows = [row for row in read(TABLES / "methods.csv") if not row["settings"] and row["steps"] in ("0", "200")]
    names = list(dict.fromkeys(row["method"] for row in rows if row["method"] != RANDOM))
    figure = Figure(figsize=(9, 4.2), layout="constrained")
    measures = {"miou": "linear segmentation, mIoU", "match_accuracy": "match accuracy, %"}
    cuts = []
    for axes, (measure, title) in zip(figure.subplots(1, 2, sharey=True), measures.items(), strict=True):

        def find(name: str, dense: bool, measure: str = measure) -> list[float]:
            return [
                float(row[measure])
                for row in rows
                if row["method"] == name and (float(row["dense_weight"]) > 0) == dense
            ]

        random = [float(row[measure]) for row in rows if row["method"] == RANDOM]
        cuts.append(compare(axes, names, find, random, title))
    legend(figure, random=True, cut=any(cuts))
    figure.savefig(out / "methods.png", dpi=110)


class Runs(NamedTuple):
    """Picks the rows of a table that are one experiment, over all seeds."""

    arm: str
    length: str
    settings: str = ""


def learning(
    out: Path,
    arms: Mapping[str, Runs],
    backbone: str,
    measures: Mapping[str, tuple[str, str]],
    file: str,
    table: str = "learning.csv",
) -> None:
    """Photographs: a panel for each measure, a line for each arm."""
    rows = read(TABLES / table)
    figure = Figure(figsize=(12, 1.6 + 0.55 * len(arms)), layout="constrained")
    panels = figure.subplots(1, len(measures), sharey=True)
    cuts = []
    for axes, (title, (judge, measure)) in zip(panels, measures.items(), strict=True):

        def values(runs: Runs, judge: str = judge, measure: str = measure) -> list[float]:
            who = {**runs._asdict(), "judge": judge}
            mine = [row for row in rows if all(row[key] == value for key, value in who.items())]
            return [value for row in mine if not math.isnan(value := float(row[measure]))]

        def find(name: str, dense: bool, values: Callable[[Runs], list[float]] = values) -> list[float]:
            runs = arms[name]
            return values(runs if dense else runs._replace(arm=f"{runs.arm} global"))

        cuts.append(compare(axes, list(arms), find, values(Runs(RANDOM, "", f"backbone={backbone}")), title))
    legend(figure, random=True, cut=any(cuts))
    figure.savefig(out / file, dpi=110)


def curves(out: Path, length: str, names: Mapping[str, str], file: str) -> None:
    """Match accuracy and losses during the runs. A dot is a row of a seed, a line the mean of all rows of that time.

    Args:
        names: arm -> what the legend calls it.
    """
    points = [
        row
        for row in read(TABLES / "learning-curves.csv")
        if row["length"] == length and not row["settings"] and row["minutes"] != "nan"
    ]
    panels: dict[str, Callable[[Mapping[str, str]], float]] = {
        "match accuracy in the batch, %": lambda row: float(row["match_accuracy"]),
        "global loss / chance": lambda row: float(row["global_loss"]) / float(row["global_chance_loss"]),
        "dense loss / chance": lambda row: float(row["dense_loss"]) / float(row["dense_chance_loss"]),
    }
    figure = Figure(figsize=(12, 3.6), layout="constrained")
    longest = max(float(row["minutes"]) for row in points if row["arm"] in names)
    colors = (DENSE, GLOBAL, "#3c9d5a")
    cuts = []
    for axes, (title, measure) in zip(figure.subplots(1, len(panels)), panels.items(), strict=True):
        drawn: list[float] = []
        for (arm, label), color in zip(names.items(), colors, strict=False):
            found = [(float(row["minutes"]), measure(row)) for row in points if row["arm"] == arm]
            found = [point for point in found if not math.isnan(point[1])]
            if not found:
                continue  # an arm without the dense loss
            drawn += [value for _, value in found]
            axes.plot(*zip(*found, strict=True), "o", color=color, alpha=0.3, markersize=3, markeredgewidth=0)
            windows: dict[int, list[tuple[float, float]]] = {}
            for point in found:
                windows.setdefault(min(int(point[0] / longest * WINDOWS), WINDOWS - 1), []).append(point)
            means = [map(statistics.mean, zip(*windows[number], strict=True)) for number in sorted(windows)]
            axes.plot(*zip(*means, strict=True), color=color, linewidth=2, label=label)
        cuts.append(scale(axes, drawn, "y"))
        axes.set_title(title, fontsize=10)
        axes.set_xlabel("minutes")
        axes.set_xlim(left=0)
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    handles = [
        *figure.axes[0].get_legend_handles_labels()[0],
        Line2D([], [], linestyle="none", marker="o", markersize=4, alpha=0.5, color=OTHER, label="dots: single seeds"),
        *([CUT_AXIS] if any(cuts) else []),
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), frameon=False, fontsize=9)
    figure.savefig(out / file, dpi=110)


def matching(out: Path, length: str, backbone: str) -> None:
    """Photographs: how positives are found, judged by the validation frames."""
    rows = [row for row in read(TABLES / "recipe-search.csv") if row["judge"] == "choose"]
    plain = f"backbone={backbone}"
    arms = {
        "none: the global loss alone": ("simclr global", plain),
        "at random": ("auto matching at random", plain),
        "by the head": ("auto matching by the head", plain),
        "by the backbone, as in the paper": ("simclr", f"{plain} matching=features"),
        "by geometry": ("simclr", plain),
    }
    figure = Figure(figsize=(11, 3.2), layout="constrained")
    cuts = []
    for axes, (measure, title) in zip(figure.subplots(1, 3, sharey=True), SEARCHED.items(), strict=True):

        def find(name: str, dense: bool, measure: str = measure) -> list[float]:
            arm, settings = arms[name]
            return [
                float(row[measure])
                for row in rows
                if (row["arm"], row["settings"], row["length"]) == (arm, settings, length)
                and row["seed"] in ("0", "1")  # the seeds that all of them have
                and arm.endswith(" global") != dense
            ]

        cuts.append(compare(axes, list(arms), find, (), title))
    legend(figure, random=False, cut=any(cuts))
    figure.savefig(out / "matching.png", dpi=110)


def sweep(out: Path, arm: str, length: str, backbone: str) -> None:
    """Photographs: the dense weight, judged by the validation frames. Dots are seeds, the line is their mean."""
    found: dict[str, dict[float, dict[str, float]]] = {}
    rows = [row for row in read(TABLES / "recipe-search.csv") if row["length"] == length and row["judge"] == "choose"]
    for row in rows:
        other = row["settings"].removeprefix(f"backbone={backbone}").strip()
        weight = {arm: 0.5, f"{arm} global": 0.0}.get(row["arm"])
        if other.startswith("dense_weight=") and " " not in other and row["arm"] == arm:
            weight = float(other.removeprefix("dense_weight="))
        elif other:
            continue
        if weight is not None:
            found.setdefault(row["seed"], {})[weight] = {name: float(row[name]) for name in SEARCHED}
    weights = sorted(max(found.values(), key=len))
    seeds = [seed for seed, one in found.items() if set(weights) <= set(one)]
    figure = Figure(figsize=(10, 3.2), layout="constrained")
    cuts = []
    for axes, (measure, title) in zip(figure.subplots(1, 3), SEARCHED.items(), strict=True):
        lines = [[found[seed][weight][measure] for weight in weights] for seed in seeds]
        for line in lines:
            axes.plot(weights, line, "o", color=DENSE, alpha=0.45, markersize=5, markeredgewidth=0)
        axes.plot(weights, [statistics.mean(values) for values in zip(*lines, strict=True)], color=DENSE, linewidth=2)
        cuts.append(scale(axes, [value for line in lines for value in line], "y"))
        axes.set_title(title, fontsize=10)
        axes.set_xlabel("dense weight")
        axes.set_xticks(weights, [f"{weight:g}" for weight in weights])
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    handles = [
        Line2D([], [], linestyle="none", marker="o", markersize=5, alpha=0.45, color=DENSE, label="a seed"),
        Line2D([], [], linewidth=2, color=DENSE, label="mean of the seeds"),
        *([CUT_AXIS] if any(cuts) else []),
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), frameon=False, fontsize=9)
    figure.savefig(out / "dense-weight.png", dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=TABLES.parent / "images")
    options = parser.parse_args()
    methods(options.out)
    small = "resnet10t"
    large = "resnet18"
    short = {name: Runs(name, "200 steps", f"backbone={small}") for name in ("simclr", "moco", "barlow")}
    learning(options.out, short, small, FROZEN, "learning-200.png")
    eight = {"auto": Runs("auto", "8 min"), "moco": Runs("moco", "8 min"), "paper": Runs("paper", "651 steps")}
    learning(options.out, eight, large, FROZEN, "learning-8.png")
    hour = {"auto": Runs("auto", "60 min")}
    learning(options.out, hour, large, FROZEN, "learning-60.png")
    half = {"auto, half an hour": Runs("auto", "440 steps", "warmup_epochs=1")}
    learning(options.out, {"auto, an hour": hour["auto"], **half}, large, FINE_TUNED, "fine-tuned.png")
    shared = "backbone=resnet50 image_size=128 batch_size=256 workers=5"
    minute = {
        "auto": Runs("auto", "1 min", shared),
        "LightlySSL": Runs("peer", "1 min", shared),
        "LightlySSL, bf16": Runs("peer", "1 min", f"{shared} precision=bf16"),
    }
    learning(options.out, minute, "resnet50", FROZEN, "learning-gpu.png", "learning-gpu.csv")
    both = {"auto": "auto", "auto global": "auto, the global loss alone"}
    curves(options.out, "8 min", {**both, "moco": "moco"}, "learning-curves.png")
    curves(options.out, "60 min", both, "learning-curves-60.png")
    sweep(options.out, "simclr", "200 steps", small)
    matching(options.out, "200 steps", small)


if __name__ == "__main__":
    main()
