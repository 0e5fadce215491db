"""What a teacher, an anchor, earlier feature maps and softer losses cost beside the plain run: time and memory.

    python benchmarks/beside_plain.py --data FOLDER --init LITE0 --teacher LITE2 [--steps 12] [--rounds 3]

LITE0 and LITE2 are the weights of continued.py and hypotheses.py. Each arm is a run of `densecl pretrain` in a process
of its own, from ImageNet's EfficientNet-Lite0, 32 views of 128 px. Time is the median of its steps without the first
three, and of the rounds the least; the arms of a round follow each other, so that other work on the machine meets them
all. Memory is the highest resident memory of the process without those that load images. Appends to
docs/benchmarks/beside_plain.csv.
"""

from __future__ import annotations

import argparse
import datetime
import itertools
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

from machine import this_machine
from rich.console import Console
from rich.table import Table
from rows import append, read

TABLE = Path(__file__).parents[1] / "docs" / "benchmarks" / "beside_plain.csv"
PLAIN = "plain"
TEACHER = ["--teacher", "TEACHER", "--teacher-backbone", "tf_efficientnet_lite2"]
ARMS = {
    PLAIN: [],
    "anchor, gram": ["--anchor", "1"],
    "anchor, cells": ["--anchor", "1", "--anchor-form", "cells"],
    "teacher": [*TEACHER, "--teacher-weight", "0.5"],
    "teacher alone": TEACHER,
    "teacher alone, its maps kept": [*TEACHER, "--teacher-cache", "CACHE"],
    "two stages": ["--dense-stage", "-2", "-1"],
    "propagation": ["--dense-softening", "propagation"],
    "weighted negatives": ["--dense-softening", "weighted-negatives"],
}


class Row(NamedTuple):
    arm: str
    seconds_a_step: float
    peak_mib: float
    frozen_share: float  # of the time, in percent, by the run's own clock
    date: str
    machine: str


def run(flags: list[str], options: argparse.Namespace, folder: Path) -> tuple[float, float, float]:
    """Seconds a step, peak MiB, and the frozen networks' share in percent."""
    given = {"TEACHER": str(options.teacher), "CACHE": str(folder / "maps")}
    out = Path(tempfile.mkdtemp(dir=folder)) / "run"
    command = [sys.executable, "-m", "densecl", "pretrain", "--data", str(options.data), "--out", str(out)]
    command += ["--backbone", "tf_efficientnet_lite0", "--init", str(options.init), "--output-stride", "16"]
    command += ["--image-size", "128", "--batch-size", "32", "--log-every", "1", "--steps", str(options.steps)]
    command += [given.get(flag, flag) for flag in flags]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"failed: {' '.join(command)}")
    rows = read(out / "metrics.csv")
    times = [float(row["seconds"]) for row in rows]
    steps = [after - before for before, after in itertools.pairwise(times[2:])]
    unit = 2**20 if sys.platform == "darwin" else 2**10
    return statistics.median(steps), used.ru_maxrss / unit, 100 * float(rows[-1].get("frozen_share") or 0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="a folder of images")
    parser.add_argument("--init", type=Path, required=True, help="ImageNet's weights of EfficientNet-Lite0")
    parser.add_argument("--teacher", type=Path, required=True, help="those of EfficientNet-Lite2")
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    found: dict[str, list[tuple[float, float, float]]] = {arm: [] for arm in ARMS}
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(options.rounds):
            for arm, flags in ARMS.items():
                found[arm].append(run(flags, options, Path(folder)))
    table = Table("run", "seconds a step", "beside plain", "peak MiB", "frozen networks", title=this_machine())
    plain = min(found[PLAIN])[0]
    for arm, rounds in found.items():
        seconds, _, share = min(rounds)
        peak = statistics.median(one[1] for one in rounds)
        append(TABLE, Row(arm, seconds, peak, share, datetime.date.today().isoformat(), this_machine()))
        table.add_row(arm, f"{seconds:.2f}", f"{seconds / plain:.2f}", f"{peak:.0f}", f"{share:.0f} %")
    Console().print(table)


if __name__ == "__main__":
    main()
