"""Draws the figures of docs/benchmarks.md and of docs/benchmarks/. Reads nothing but the committed CSV files.

python benchmarks/plots.py [--out docs/images]
"""

from __future__ import annotations

import argparse
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import matplotlib as mpl
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
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
    "the same, held-out video": ("test", "miou_apart"),
    "retrieval, mIoU": ("test", "retrieval"),
    "match accuracy, %": ("test", "match_accuracy"),
}
FINE_TUNED = {
    "segmentation, a tenth of the labels, mIoU": ("few", "miou"),
    "the same, held-out video": ("few", "miou_apart"),
    "detection, AP": ("detection", "ap"),
}
GLOBAL, DENSE, OTHER = "#d9822b", "#1f6fb2", "#8a8f98"


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
) -> None:
    """A line for each name, with its values without and with the dense loss. A gray band shows random weights."""
    if random:
        axes.axvspan(min(random) - 0.15, max(random) + 0.15, color=OTHER, alpha=0.3, linewidth=0)
    for place, name in enumerate(reversed(names)):
        found = [(color, find(name, dense)) for color, dense in ((GLOBAL, False), (DENSE, True))]
        found = [(color, values) for color, values in found if values]
        for aside, (color, values) in zip((-0.17, 0.17) if len(found) == 2 else (0,), found, strict=False):
            dots(axes, place + aside, values, color)
    axes.set_yticks(range(len(names)), reversed(names))
    axes.set_ylim(-0.5, len(names) - 0.5)
    axes.set_title(title, fontsize=10)
    axes.grid(axis="x", alpha=0.3)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(axis="y", length=0)


def legend(figure: Figure) -> None:
    handles: list[Artist] = [
        Line2D([], [], marker="o", linewidth=2, color=color, label=label)
        for color, label in ((GLOBAL, "global loss alone"), (DENSE, "with the dense loss"))
    ]
    handles.append(Patch(color=OTHER, alpha=0.3, label=RANDOM))
    figure.legend(handles=handles, loc="outside lower center", ncols=3, frameon=False, fontsize=9)


def methods(out: Path) -> None:
    """Drawn scenes: every method, three seeds."""
    rows = [row for row in read(TABLES / "methods.csv") if not row["settings"] and row["steps"] in ("0", "200")]
    names = list(dict.fromkeys(row["method"] for row in rows if row["method"] != RANDOM))
    figure = Figure(figsize=(9, 4.2), layout="constrained")
    measures = {"miou": "linear segmentation, mIoU", "match_accuracy": "match accuracy, %"}
    for axes, (measure, title) in zip(figure.subplots(1, 2, sharey=True), measures.items(), strict=True):

        def find(name: str, dense: bool, measure: str = measure) -> list[float]:
            return [
                float(row[measure])
                for row in rows
                if row["method"] == name and (float(row["dense_weight"]) > 0) == dense
            ]

        random = [float(row[measure]) for row in rows if row["method"] == RANDOM]
        compare(axes, names, find, random, title)
    legend(figure)
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
    for axes, (title, (judge, measure)) in zip(panels, measures.items(), strict=True):

        def values(runs: Runs, judge: str = judge, measure: str = measure) -> list[float]:
            who = {**runs._asdict(), "judge": judge}
            mine = [row for row in rows if all(row[key] == value for key, value in who.items())]
            return [value for row in mine if not math.isnan(value := float(row[measure]))]

        def find(name: str, dense: bool, values: Callable[[Runs], list[float]] = values) -> list[float]:
            runs = arms[name]
            return values(runs if dense else runs._replace(arm=f"{runs.arm} global"))

        compare(axes, list(arms), find, values(Runs(RANDOM, "", f"backbone={backbone}")), title)
    legend(figure)
    figure.savefig(out / file, dpi=110)


def curves(out: Path, length: str, names: Sequence[str], file: str) -> None:
    """Match accuracy and losses during the runs, a line for each seed."""
    points = [row for row in read(TABLES / "learning-curves.csv") if row["length"] == length and not row["settings"]]
    figure = Figure(figsize=(12, 3.6), layout="constrained")
    panels = figure.subplots(1, 3)
    names = [name for name in names if any(row["arm"] == name for row in points)]
    colors = dict(zip(names, (DENSE, GLOBAL, "#3c9d5a", "#9b59b6", OTHER), strict=False))
    for name, color in colors.items():
        seeds = sorted({row["seed"] for row in points if row["arm"] == name})
        for seed in seeds:
            mine = [row for row in points if row["arm"] == name and row["seed"] == seed and row["minutes"] != "nan"]
            minutes = [float(row["minutes"]) for row in mine]
            lines = (
                [float(row["match_accuracy"]) for row in mine],
                [float(row["global_loss"]) / float(row["global_chance_loss"]) for row in mine],
                [float(row["dense_loss"]) / float(row["dense_chance_loss"]) for row in mine],
            )
            for axes, line in zip(panels, lines, strict=True):
                axes.plot(minutes, line, color=color, linewidth=1, alpha=0.8, label=name if seed == seeds[0] else None)
    titles = ("match accuracy in the batch, %", "global loss / its chance level", "dense loss / its chance level")
    for axes, title in zip(panels, titles, strict=True):
        axes.set_title(title, fontsize=10)
        axes.set_xlabel("minutes")
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    figure.legend(
        *panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=5, frameon=False, fontsize=9
    )
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

        compare(axes, list(arms), find, (), title)
    figure.savefig(out / "matching.png", dpi=110)


def sweep(out: Path, arm: str, length: str, backbone: str) -> None:
    """Photographs: the dense weight, judged by the validation frames. Thin lines are seeds, the thick one the mean."""
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
    for axes, (measure, title) in zip(figure.subplots(1, 3), SEARCHED.items(), strict=True):
        lines = [[found[seed][weight][measure] for weight in weights] for seed in seeds]
        for line in lines:
            axes.plot(weights, line, color=DENSE, alpha=0.35, linewidth=1)
        axes.plot(weights, [statistics.mean(values) for values in zip(*lines, strict=True)], "o-", color=DENSE)
        axes.set_title(title, fontsize=10)
        axes.set_xlabel("dense weight")
        axes.set_xticks(weights, [f"{weight:g}" for weight in weights])
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
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
    curves(options.out, "8 min", ["auto", "auto global", "moco", "paper"], "learning-curves.png")
    curves(options.out, "60 min", ["auto", "auto global"], "learning-curves-60.png")
    sweep(options.out, "simclr", "200 steps", small)
    matching(options.out, "200 steps", small)


if __name__ == "__main__":
    main()
