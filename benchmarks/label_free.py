"""Which number that needs no labels, or only a few, follows frozen mIoU? For the runs of continued.py.

    python benchmarks/label_free.py --init LITE0 --domain street --labeled CAMVID [--ignore 11] [--size SIDE]
        [--runs runs/continued] [--also NAME=WEIGHTS ...]

Takes the rows of docs/benchmarks/continued.csv whose run folder is there, measures each of them, and appends a row to
docs/benchmarks/label_free.csv. Weights of other runs, those of --also, are judged as in continued.py first. Rows that
are there are skipped. Then, over all domains, it prints Kendall's tau of each measure with linear and with retrieval
mIoU on the validation images: the mean of the domains, and an interval of 90 % from 2000 draws of the runs with
replacement.
"""

from __future__ import annotations

import argparse
import math
import random
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from continued import AS_IT_IS, COMMON, RANDOM, TABLE, judge
from rich.console import Console
from rich.table import Table
from rows import append, read
from safetensors import safe_open
from scipy.stats import kendalltau

from densecl import evaluate
from densecl.evaluation import dense
from densecl.evaluation.labeled import open_labeled
from densecl.evaluation.tasks.retrieval import fit_retrieval
from densecl.evaluation.tasks.structure import Structure, dense_structure_estimates
from densecl.evaluation.weights import open_weights

OUT = TABLE.with_name("label_free.csv")
MEASURES = ("match_accuracy", "rank", "apart", "within", "dse", "few")
JUDGED = ("linear", "retrieval")

#: Labeled images of the probe: every other one is remembered, the rest are asked about.
FEW = 30


class Row(NamedTuple):
    """A run, its mIoU on the validation images, and what was measured on the training images, in percent."""

    domain: str
    arm: str
    settings: str
    steps: int
    seed: int
    linear: float
    retrieval: float
    match_accuracy: float = math.nan
    rank: float = math.nan
    apart: float = math.nan
    within: float = math.nan
    few: float = math.nan  # retrieval mIoU with 30 labeled images

    @property
    def run(self) -> tuple[str, ...]:
        return tuple(map(str, self[:5]))


def weights_of(row: dict[str, str], options: argparse.Namespace) -> Path | str:
    if row["arm"] == RANDOM:
        return "random"
    if row["arm"] == AS_IT_IS:
        return options.init
    name = "-".join([row["domain"], row["arm"], row["steps"], *row["settings"].split(), f"seed{row['seed']}"])
    return options.runs / name / "backbone.safetensors"


def measure(weights: Path | str, options: argparse.Namespace) -> dict[str, float]:
    results = evaluate(
        [weights],
        ("correspondence", "structure"),
        options.labeled,
        backbone=COMMON["backbone"],
        test_split="train",
        image_size=(128, 128),
        seeds=1,
        json=None,
    )
    scores = {result.task: result.scores for result in results}
    measured = {"match_accuracy": scores["correspondence"]["accuracy"]}
    measured |= {name: scores["structure"][name] for name in ("rank", "apart", "within")}

    files = open_labeled(options.labeled, "train")
    some = files.take([number * len(files) // FEW for number in range(FEW)])
    some = some.resized((options.size, options.size) if options.size else some.common_size())
    classes = max(label for label in files.survey() if label not in options.ignore and label != 255) + 1
    opened = open_weights([weights], COMMON["backbone"])[0]
    found = dense.judge(
        opened.backbone(16),
        some.take(range(0, FEW, 2)),
        some.take(range(1, FEW, 2)),
        {"few": fit_retrieval},
        classes=classes,
        normalization=opened.normalization,
        ignore=options.ignore,
    )
    return {**measured, "few": found["few"]["all"].miou}


def values(rows: Sequence[dict[str, str]], name: str) -> list[float]:
    if name == "dse":
        return dense_structure_estimates([Structure(*(float(row[part]) for part in Structure._fields)) for row in rows])
    return [float(row[name]) for row in rows]


def tau(rows: Sequence[dict[str, str]], measure: str, judged: str) -> float:
    """The mean over the domains, which cannot be compared with each other."""
    domains = {row["domain"] for row in rows}
    found = []
    for domain in domains:
        some = [row for row in rows if row["domain"] == domain]
        if len(some) > 3:
            found.append(kendalltau(values(some, measure), values(some, judged))[0])
    found = [one for one in found if not math.isnan(one)]
    return statistics.mean(found) if found else math.nan


def present(rows: list[dict[str, str]], console: Console) -> None:
    rows = [row for row in rows if row["arm"] != RANDOM]  # any measure tells these
    table = Table("measure", *JUDGED, title=f"Kendall's tau, {len(rows)} runs")
    draw = random.Random(0)
    draws = [draw.choices(rows, k=len(rows)) for _ in range(2000)]
    for measure_ in MEASURES:
        line = []
        for judged in JUDGED:
            drawn = sorted(one for some in draws if not math.isnan(one := tau(some, measure_, judged)))
            if not drawn:  # too few runs
                line.append("-")
                continue
            low, high = drawn[len(drawn) // 20], drawn[-len(drawn) // 20 - 1]
            line.append(f"{tau(rows, measure_, judged):+.2f} ({low:+.2f} to {high:+.2f})")
        table.add_row(measure_, *line)
    console.print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--init", type=Path, required=True, help="ImageNet's weights of EfficientNet-Lite0")
    parser.add_argument("--domain", required=True)
    parser.add_argument("--labeled", type=Path, required=True)
    parser.add_argument("--ignore", type=int, nargs="*", default=[])
    parser.add_argument("--size", type=int)
    parser.add_argument("--runs", type=Path, default=Path("runs/continued"))
    parser.add_argument("--also", nargs="*", default=[], metavar="NAME=WEIGHTS", help="of other runs, from --init")
    parser.add_argument("--table", type=Path, default=TABLE, help="rows of continued.py")
    parser.add_argument("--out", type=Path, default=OUT)
    options = parser.parse_args()
    done = {tuple(row[name] for name in Row._fields[:5]) for row in read(options.out)}
    for found in read(options.table):
        if found["domain"] != options.domain or found["judge"] != "val":
            continue
        scores = {name: float(found[name]) for name in JUDGED}
        row = Row(found["domain"], found["arm"], found["settings"], int(found["steps"]), int(found["seed"]), **scores)
        weights = weights_of(found, options)
        if row.run in done or (isinstance(weights, Path) and not weights.is_file()):
            continue
        append(options.out, row._replace(**measure(weights, options)))
    for name, _, weights in (one.partition("=") for one in options.also):
        row = Row(options.domain, name, "", steps=0, seed=0, linear=math.nan, retrieval=math.nan)
        with safe_open(weights, "pt") as file:
            row = row._replace(steps=int(file.metadata()["steps"]))
        if row.run not in done:
            row = row._replace(**judge(weights, options, "val", row.seed))
            append(options.out, row._replace(**measure(Path(weights), options)))
    present(read(options.out), Console(width=120))


if __name__ == "__main__":
    main()
