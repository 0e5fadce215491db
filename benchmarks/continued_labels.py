"""Whether weights that were continued on your images are a better start for training on few labels, or for a detector.

    python benchmarks/continued_labels.py --init WEIGHTS --domain street --task segmentation --labeled CAMVID
        --arm dense RUN0 RUN1 RUN2 [--arm global RUN0 ...] [--fraction 0.1] [--seeds 0 1 2] [--set KEY=VALUE ...]

The runs of an arm are those of `continued.py` or `hypotheses.py`, one a seed. Labels and order of the images of a row
follow from the seed, so rows of one seed and network are a pair. All layers train. Scores are those of the test images:
mIoU, or AP.

Appends a row for each training to docs/benchmarks/continued-labels.csv, skips rows that are there, and prints the
differences to the weights as they are, seed by seed.
"""

from __future__ import annotations

import argparse
import datetime
import math
import time
from pathlib import Path
from typing import NamedTuple

import yaml
from machine import this_machine
from rich.console import Console
from rich.table import Table
from rows import append, mean_and_deviation, missing, read

from densecl import evaluate

TABLE = Path(__file__).parents[1] / "docs" / "benchmarks" / "continued-labels.csv"
AS_IT_IS = "as it is"

#: Task -> its headline score.
SCORES = {"segmentation": "miou", "detection": "ap"}

#: So many fields of a row say which run it is of.
RUN = 6


class Row(NamedTuple):
    """What identifies a training on labels, and its score in percent."""

    domain: str
    task: str
    fraction: float  # of the training labels
    settings: str
    arm: str
    seed: int
    score: float = math.nan
    minutes: float = 0.0
    date: str = ""
    machine: str = ""


def present(rows: list[dict[str, str]], console: Console) -> None:
    keys = ("domain", "task", "fraction", "settings", "arm")
    table = Table(*keys, "seeds", "score", "above as it is, seed by seed")
    ground = {
        (*(row[key] for key in keys[:4]), row["seed"]): float(row["score"]) for row in rows if row["arm"] == AS_IT_IS
    }
    groups: dict[tuple[str, ...], list[dict[str, str]]] = {}
    for row in rows:
        groups.setdefault(tuple(row[key] for key in keys), []).append(row)
    for group, found in sorted(groups.items()):
        pairs = [(float(row["score"]), ground.get((*group[:4], row["seed"]))) for row in found]
        gains = " ".join(f"{score - other:+.1f}" for score, other in pairs if other is not None)
        table.add_row(*group, str(len(found)), mean_and_deviation([score for score, _ in pairs]), gains)
    console.print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--init", type=Path, help="weights to try as they are")
    parser.add_argument("--random", metavar="NAME", help="random weights, too; what to call them in the table")
    parser.add_argument("--backbone", default="tf_efficientnet_lite0", help="network of --init and --random")
    parser.add_argument("--domain", required=True, help="what to call it in the table")
    parser.add_argument("--task", choices=SCORES, required=True)
    parser.add_argument("--labeled", type=Path, required=True, help="labeled images, as `evaluate` takes them")
    parser.add_argument("--arm", nargs="+", action="append", default=[], metavar="NAME RUN", help="runs, one a seed")
    parser.add_argument("--fraction", type=float, default=0.1, help="of the training labels")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE", help="other settings of `evaluate`")
    parser.add_argument("--table", type=Path, default=TABLE)
    options = parser.parse_args()
    settings = {name: yaml.safe_load(value) for name, value in (one.split("=", 1) for one in options.set)}
    for seed in options.seeds:
        arms = {AS_IT_IS: str(options.init)} if options.init else {}
        arms |= {options.random: "random"} if options.random else {}
        arms |= {name: runs[seed] for name, *runs in options.arm if runs[seed:]}
        for arm, weights in arms.items():
            row = Row(options.domain, options.task, options.fraction, " ".join(options.set), arm, seed)
            if not missing(options.table, [row], RUN):
                continue
            start = time.monotonic()
            (result, *_) = evaluate(
                [weights],
                options.task,
                options.labeled,
                backbone=options.backbone,
                json=None,
                fine_tune=True,
                label_fraction=options.fraction,
                seeds=1,
                first_seed=seed,
                **settings,
            )
            score = result.scores[SCORES[options.task]]
            made = {"date": datetime.date.today().isoformat(), "machine": this_machine()}
            append(options.table, row._replace(score=score, minutes=(time.monotonic() - start) / 60, **made))
    present(read(options.table), Console(width=160))


if __name__ == "__main__":
    main()
