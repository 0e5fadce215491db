"""Images per second end to end: densecl, the peer (LightlySSL's DenseCL), and the bare encoders as the ceiling.

    python -m venv benchmarks/peer/.venv && benchmarks/peer/.venv/bin/pip install -r benchmarks/peer/requirements.txt
    python benchmarks/throughput.py --data FOLDER [--work NAME ...] [--peer PYTHON] [--rounds 3]

Contenders take turns in the same run on the same machine, and the median of the rounds counts; only ratios mean
something elsewhere. Peak memory is that of the training process. Rows are appended to docs/benchmarks/throughput.csv.
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
from typing import NamedTuple

import torch
from rich.console import Console
from rich.table import Table

HERE = Path(__file__).parent
TABLE = HERE.parent / "docs" / "benchmarks" / "throughput.csv"
FIELDS = ("work", "contender", "round", "images_per_second", "waiting", "peak_mib", "precision", "date", "machine")


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


def race(contender: str, work: Work, options: argparse.Namespace) -> dict[str, float]:
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="a folder of JPEG files")
    parser.add_argument("--work", nargs="+", choices=WORKS, default=list(WORKS))
    parser.add_argument("--contenders", nargs="+", default=["peer", "densecl", "auto", "bare"])
    parser.add_argument("--peer", type=Path, default=HERE / "peer" / ".venv" / "bin" / "python")
    parser.add_argument("--precision", default="bf16", choices=["32", "bf16"], help="of all but the peer, which has 32")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=min(2, os.cpu_count() or 1))
    options = parser.parse_args()
    machine = f"{platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}"
    if torch.cuda.is_available():
        machine += f", {torch.cuda.get_device_name()}"

    TABLE.parent.mkdir(parents=True, exist_ok=True)
    begin = not TABLE.is_file()
    for name in options.work:
        rates: dict[str, list[float]] = {contender: [] for contender in options.contenders}
        peaks: dict[str, list[float]] = {contender: [] for contender in options.contenders}
        for number in range(options.rounds):
            for contender in options.contenders:
                found = race(contender, WORKS[name], options)
                rates[contender].append(found["images_per_second"])
                peaks[contender].append(found["peak_mib"])
                with TABLE.open("a", newline="") as file:
                    writer = csv.writer(file, lineterminator="\n")
                    if begin:
                        writer.writerow(FIELDS)
                        begin = False
                    writer.writerow(
                        [
                            name,
                            contender,
                            number,
                            f"{found['images_per_second']:.2f}",
                            f"{found.get('waiting', float('nan')):.3f}",
                            f"{found['peak_mib']:.0f}",
                            "32" if contender == "peer" else options.precision,
                            datetime.date.today().isoformat(),
                            machine,
                        ]
                    )
        show(name, rates, peaks)


def show(name: str, rates: dict[str, list[float]], peaks: dict[str, list[float]]) -> None:
    medians = {contender: statistics.median(values) for contender, values in rates.items()}
    table = Table(title=name, title_justify="left")
    for column in ("contender", "images/s", "rounds", "of the peer", "of the bare encoders", "peak MiB"):
        table.add_column(column, justify="left" if column == "contender" else "right")
    for contender, median in medians.items():
        ratios = [f"{median / medians[other]:.2f}" if other in medians else "" for other in ("peer", "bare")]
        rounds = f"{min(rates[contender]):.1f} to {max(rates[contender]):.1f}"
        table.add_row(contender, f"{median:.1f}", rounds, *ratios, f"{statistics.median(peaks[contender]):.0f}")
    Console().print(table)


if __name__ == "__main__":
    main()
