"""Images per second end to end: densecl, the peer (LightlySSL's DenseCL), and the bare encoders as the ceiling.

    python -m venv benchmarks/peer/.venv && benchmarks/peer/.venv/bin/pip install -r benchmarks/peer/requirements.txt
    python benchmarks/throughput.py --data FOLDER [--work NAME ...] [--peer PYTHON] [--rounds 3]

Contenders take turns in the same run on the same machine, and the median of the rounds counts; only ratios mean
something elsewhere. Peak memory is that of the training process (on a GPU: what torch allocated there). Every round is
a row of docs/benchmarks/throughput.csv; those that are there already for this machine are not run again. Remove them
after a change.
"""

from __future__ import annotations

import argparse
import csv
import datetime
import json
import os
import platform
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import torch
from rich.console import Console
from rich.table import Table

HERE = Path(__file__).parent
TABLE = HERE.parent / "docs" / "benchmarks" / "throughput.csv"
FIELDS: tuple[str, ...] = (
    "work",
    "contender",
    "round",
    "images_per_second",
    "waiting",
    "peak_mib",
    "precision",
    "date",
    "machine",
)


class Work(NamedTuple):
    """What is raced, and how long."""

    backbone: str
    image_size: int
    batch_size: int
    queue_length: int
    warm_up: int
    steps: int


WORKS = {
    "resnet18-128-q65536": Work("resnet18", 128, 64, 65536, 5, 15),
    "resnet18-128-q4096": Work("resnet18", 128, 64, 4096, 5, 20),
    "resnet50-224-q65536": Work("resnet50", 224, 32, 65536, 2, 4),
}


def race(contender: str, work: Work, options: argparse.Namespace) -> dict[str, Any]:
    """One round of one contender, in a process of its own."""
    command = [options.peer, HERE / "peer" / "densecl.py"]
    if contender != "peer":
        command = [sys.executable, HERE / "contenders.py", contender, "--precision", options.precision]
    for name, value in work._asdict().items():
        command += ["--" + name.replace("_", "-"), value]
    command += ["--data", options.data, "--workers", options.workers]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise SystemExit(f"{contender} failed:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def measure(name: str, work: Work, contenders: list[str], options: argparse.Namespace) -> None:
    """Runs what is missing of `options.rounds` rounds, each contender once a round, and prints the medians."""
    machine = f"{platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}"
    if torch.cuda.is_available():
        machine += f", {torch.cuda.get_device_name()}"
    found = {(row["contender"], int(row["round"])): row for row in read(name, machine)}
    for number in range(options.rounds):
        for contender in contenders:
            if (contender, number) not in found:
                result = race(contender, work, options)
                row = {
                    "work": name,
                    "contender": contender,
                    "round": number,
                    "images_per_second": f"{result['images_per_second']:.2f}",
                    "waiting": f"{result['waiting']:.3f}" if "waiting" in result else "",
                    "peak_mib": f"{result['peak_mib']:.0f}",
                    "precision": result.get("precision", "32" if contender == "peer" else options.precision),
                    "date": datetime.date.today().isoformat(),
                    "machine": machine,
                }
                append(row)
                found[contender, number] = row
    show(name, [row for (contender, _), row in found.items() if contender in contenders])


def read(work: str, machine: str) -> list[dict[str, Any]]:
    if not TABLE.is_file():
        return []
    with TABLE.open(newline="") as file:
        return [row for row in csv.DictReader(file) if (row["work"], row["machine"]) == (work, machine)]


def append(row: dict[str, Any]) -> None:
    TABLE.parent.mkdir(parents=True, exist_ok=True)
    begin = not TABLE.is_file()
    with TABLE.open("a", newline="") as file:
        writer = csv.DictWriter(file, FIELDS, lineterminator="\n")
        if begin:
            writer.writeheader()
        writer.writerow(row)


def show(name: str, rows: list[dict[str, Any]]) -> None:
    rates: dict[str, list[float]] = {}
    peaks: dict[str, list[float]] = {}
    for row in rows:
        rates.setdefault(row["contender"], []).append(float(row["images_per_second"]))
        peaks.setdefault(row["contender"], []).append(float(row["peak_mib"]))
    medians = {contender: statistics.median(values) for contender, values in rates.items()}
    table = Table(title=name, title_justify="left")
    for column in ("contender", "images/s", "rounds", "of the peer", "of the bare encoders", "peak MiB"):
        table.add_column(column, justify="left" if column == "contender" else "right")
    for contender, median in medians.items():
        ratios = [f"{median / medians[other]:.2f}" if other in medians else "" for other in ("peer", "bare")]
        rounds = f"{min(rates[contender]):.1f} to {max(rates[contender]):.1f}"
        table.add_row(contender, f"{median:.1f}", rounds, *ratios, f"{statistics.median(peaks[contender]):.0f}")
    Console().print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="a folder of JPEG files")
    parser.add_argument("--work", nargs="+", choices=WORKS, default=list(WORKS))
    parser.add_argument("--contenders", nargs="+", default=["peer", "densecl", "bare"])
    parser.add_argument("--peer", type=Path, default=HERE / "peer" / ".venv" / "bin" / "python")
    parser.add_argument("--precision", default="bf16", choices=["32", "bf16"], help="of all but the peer, which has 32")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=min(2, os.cpu_count() or 1))
    options = parser.parse_args()
    for name in options.work:
        measure(name, WORKS[name], options.contenders, options)


if __name__ == "__main__":
    main()
