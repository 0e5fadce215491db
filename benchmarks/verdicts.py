"""What the verdicts say of runs with a fault, and of runs without one.

    PYTHONPATH=. python benchmarks/verdicts.py faults --data UNLABELLED [--runs runs/verdicts]
    python benchmarks/verdicts.py healthy --data UNLABELLED [--runs runs/healthy]
    python benchmarks/verdicts.py runs RUNS [RUNS ...]
    python benchmarks/verdicts.py curves
    python benchmarks/verdicts.py

`faults` trains each fault of tests/faults.py on these images, and methods without a fault. `healthy` trains methods
with their own settings until each has begun to learn. `runs` looks at the runs in some folders; rows that were made of
the same run before stay. `curves` looks at the learning curves in docs/benchmarks.
All append rows to docs/benchmarks/verdicts.csv. Without a word it prints the tables of docs/benchmarks/verdicts.md.
"""

from __future__ import annotations

import argparse
import collections
import math
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from rows import append, read

from densecl.verdicts.record import Record, numbers, read_record
from densecl.verdicts.table import verdicts

DOCS = Path(__file__).parent.parent / "docs" / "benchmarks"
TABLE = DOCS / "verdicts.csv"
CURVES = ("learning-curves.csv", "learning-gpu-curves.csv", "recipe-search-curves.csv")

#: Of the tiny runs that faults.py is about, beside the settings of each.
TINY = {
    "backbone": "test_resnet", "image_size": 32, "output_stride": 8, "batch_size": 4, "dim": 16, "method": "moco",
    "queue_length": 16, "matching": "features", "dense_negatives": "pooled", "key_momentum": 0.99, "optimizer": "sgd",
    "learning_rate": 0.05, "warmup_epochs": 0.0, "precision": "32", "channels_last": False, "workers": 0,
    "loggers": (),
}  # fmt: skip

#: Of the runs that shall be silent: small enough for minutes on one core, long enough to learn. The rest is "auto".
HEALTHY = {
    "backbone": "resnet10t", "image_size": 64, "output_stride": 16, "batch_size": 32, "steps": 60, "log_every": 5,
    "workers": 0, "loggers": (),
}  # fmt: skip
HEALTHY_METHODS = ("moco", "simclr", "byol", "barlow", "vicreg", "dino")


class Row(NamedTuple):
    """What was said of a run."""

    kind: str  # "fault": it was made to have one; "run": a real one; "curves": losses and matches alone
    run: str
    method: str
    start: str  # "random" or "weights"
    steps: int
    verdict: str  # one of them; "" if there is none
    level: str
    step: int  # after which it was first said
    until: str  # the step after which it no longer held


def rows_of(kind: str, name: str, record: Record) -> list[Row]:
    """A row for each verdict on a run, or one without."""
    recipe = record.recipe
    start = "random" if recipe.get("init") is None else "weights"
    about = kind, name, str(recipe.get("method")), start, record.step
    found = [
        Row(*about, one.name, one.level, one.step, "" if one.until is None else str(one.until))
        for one in verdicts(record)
    ]
    return found or [Row(*about, "", "", 0, "")]


def look_at_runs(folders: list[Path], seen: set[str]) -> None:
    """Every run below these folders that has trained to its end."""
    for folder in folders:
        for path in sorted(folder.rglob("metrics.csv")):
            record = read_record(path.parent)
            steps = record.recipe.get("steps")
            if path.parent.name not in seen and len(record.watched) > 1 and steps and record.step == steps >= 40:
                append(TABLE, *rows_of("run", path.parent.name, record))


def look_at_curves(seen: set[str]) -> None:
    """The runs of learning.py, of which losses and match accuracy are kept."""
    for file in CURVES:
        runs: dict[tuple[str, ...], list[dict[str, str]]] = collections.defaultdict(list)
        for row in read(DOCS / file):
            runs[row["arm"], row["settings"], row["length"], row["seed"]].append(row)
        for key, rows in runs.items():
            name = f"{file.removesuffix('-curves.csv')}: {' '.join(filter(None, key))}"
            if name not in seen:
                append(TABLE, *rows_of("curves", name, _of_curves(key[0], rows)))


def _of_curves(arm: str, rows: list[dict[str, str]]) -> Record:
    """A record of what the curves have. A queue's length follows from its chance level."""
    metrics, watched = [], []
    for row in numbers(rows):
        if "fixed_match_accuracy" in row:
            watched.append({"step": row["step"], "match_accuracy": row["fixed_match_accuracy"] / 100, "pairs": 256.0})
        else:
            metrics.append(row | {"dense_weight": 0.5 if "dense_loss" in row else 0.0})
    recipe = {"steps": int(metrics[-1]["step"]), "warmup_epochs": 0, "init": None, "method": arm.split()[0]}
    if "moco" in arm or "paper" in arm:
        recipe |= {"queue_length": round(math.exp(metrics[-1]["global_chance_loss"])) - 1, "batch_size": 64}
    return Record(recipe, metrics, watched)


def make_faults(data: Path, runs: Path, seen: set[str]) -> None:
    """Trains each fault, and the same without one."""
    import torch

    from densecl.config.compose import make_recipe
    from densecl.errors import UserError
    from densecl.training.run import pretrain
    from tests.faults import COMMON, FAULTS, SIMCLR, Fault, constant_images

    torch.set_num_threads(1)
    arms = FAULTS | {"no fault": Fault("none", (), {}), "no fault, simclr": Fault("none", (), SIMCLR)}
    for name, fault in arms.items():
        if name in seen:
            continue
        settings = TINY | COMMON | fault.settings
        source = constant_images(runs / "constant-images") if fault.constant else data
        with fault.made():
            try:
                pretrain(make_recipe(data=str(source), **settings), runs / name.replace(" ", "-"))
            except UserError as error:  # what the run itself says
                print(error)
        append(TABLE, *rows_of("fault", name, read_record(runs / name.replace(" ", "-"))))


def make_healthy(data: Path, runs: Path, seen: set[str]) -> None:
    """Trains each method from scratch, as its own settings are."""
    import torch

    from densecl.config.compose import make_recipe
    from densecl.training.run import pretrain

    torch.set_num_threads(1)
    for method in HEALTHY_METHODS:
        name = f"healthy: {method} {HEALTHY['steps']} steps"
        if name not in seen:
            pretrain(make_recipe(data=str(data), method=method, **HEALTHY), runs / method)
            append(TABLE, *rows_of("run", name, read_record(runs / method)))


def tables() -> Iterator[str]:
    """Lines of Markdown."""
    from tests.faults import FAULTS

    by_run: dict[tuple[str, str], list[dict[str, str]]] = collections.defaultdict(list)
    for row in read(TABLE):
        by_run[row["kind"], row["run"]].append(row)
    yield "| made to have | verdict | level | at step, of |"
    yield "|---|---|---|---|"
    for (kind, name), rows in by_run.items():
        if kind == "fault":
            what = FAULTS[name].what if name in FAULTS else name
            bad = [row for row in rows if row["level"] in ("warning", "fault")] or [{**rows[0], "verdict": ""}]
            for row in bad:
                ended = "none: the run ends itself, collapsed" if int(row["steps"]) < 40 else "none"
                said = f"`{row['verdict']}` | {row['level']}" if row["verdict"] else f"{ended} |"
                yield f"| {what} | {said} | {row['step'] if row['verdict'] else ''}, {row['steps']} |"
    yield ""
    yield "| runs | method | start | how many | with a warning or fault | which |"
    yield "|---|---|---|---|---|---|"
    groups: dict[tuple[str, str, str], list[list[dict[str, str]]]] = collections.defaultdict(list)
    for (kind, _), rows in by_run.items():
        if kind != "fault":
            groups[kind, rows[0]["method"], rows[0]["start"]].append(rows)
    for (kind, method, start), runs in groups.items():
        bad = [(row["run"], row["verdict"]) for rows in runs for row in rows if row["level"] in ("warning", "fault")]
        which = "; ".join(f"{verdict}: {run}" for run, verdict in bad)
        yield f"| {kind} | {method} | {start} | {len(runs)} | {len({run for run, _ in bad})} | {which} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="?", choices=("faults", "healthy", "runs", "curves"))
    parser.add_argument("folders", nargs="*", type=Path)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--runs", type=Path, default=Path("runs/verdicts"))
    args = parser.parse_args()
    seen = {row["run"] for row in read(TABLE)}
    if args.what == "faults":
        make_faults(args.data, args.runs, seen)
    elif args.what == "healthy":
        make_healthy(args.data, args.runs, seen)
    elif args.what == "runs":
        look_at_runs(args.folders, seen)
    elif args.what == "curves":
        look_at_curves(seen)
    else:
        print(*tables(), sep="\n")


if __name__ == "__main__":
    main()
