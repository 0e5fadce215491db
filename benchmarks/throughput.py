"""Images per second end to end: densecl, the peer (LightlySSL's DenseCL), and the bare encoders as the ceiling.

    python -m venv benchmarks/peer/.venv && benchmarks/peer/.venv/bin/pip install -r benchmarks/peer/requirements.txt
    python benchmarks/throughput.py --data FOLDER [--work NAME ...] [--peer PYTHON] [--rounds 3]

densecl chooses its precision, as it does for a user, unless `--precision` is given. The bare encoders get the same. On
a GPU both compile the encoders, unless `--no-compile` is given.

The contenders take turns on the same machine, and the median of the rounds counts. On another machine only the ratios
mean something. Peak memory is that of the training process; on a GPU, what torch allocated there. Every round is a row
of docs/benchmarks/throughput.csv. Rounds of today on this machine are not run again: remove their rows after a change.
"""

from __future__ import annotations

import argparse
import csv
import datetime
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import torch
from machine import this_machine
from rich.console import Console
from rich.table import Table
from rows import read

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
    """The work of one comparison, and its number of steps."""

    backbone: str
    image_size: int
    batch_size: int
    queue_length: int
    warm_up: int
    steps: int


WORKS = {
    "resnet18-128-q65536": Work("resnet18", 128, 64, 65536, 3, 10),
    "resnet18-128-q4096": Work("resnet18", 128, 64, 4096, 3, 10),
    "resnet50-224-q65536": Work("resnet50", 224, 32, 65536, 2, 4),
}
#: For a GPU only: too large for a CPU.
GPU_WORKS = {"resnet50-224-b256-q65536": Work("resnet50", 224, 256, 65536, 10, 50)}
ON_GPU = torch.cuda.is_available()


def race(contender: str, work: Work, options: argparse.Namespace) -> dict[str, Any]:
    """Runs one round of one contender, in a process of its own."""
    command = [options.peer, HERE / "peer" / "densecl.py"]
    if contender != "peer":
        command = [sys.executable, HERE / "contenders.py", contender, "--precision", options.precision]
        command += ["--compile"] * options.compile
    for name, value in work._asdict().items():
        command += ["--" + name.replace("_", "-"), value]
    command += ["--data", options.data, "--workers", options.workers]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise SystemExit(f"{contender} failed:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def measure(name: str, work: Work, contenders: list[str], options: argparse.Namespace) -> None:
    """Runs the rounds of today that are missing, with each contender once a round, and prints the medians."""
    today = datetime.date.today().isoformat()
    found = {
        (row["contender"], int(row["round"])): row
        for row in read(TABLE)
        if (row["work"], row["machine"], row["date"]) == (name, this_machine(), today)
    }
    for number in range(options.rounds):
        for contender in contenders:
            if (contender, number) not in found:
                if options.precision == "auto" and contender == "bare":
                    ours = next(found[one, number] for one in ("densecl", "auto") if (one, number) in found)
                    chosen = argparse.Namespace(**{**vars(options), "precision": ours["precision"]})
                else:
                    chosen = options
                result = race(contender, work, chosen)
                row = {
                    "work": name,
                    "contender": contender,
                    "round": number,
                    "images_per_second": f"{result['images_per_second']:.2f}",
                    "waiting": f"{result['waiting']:.3f}" if "waiting" in result else "",
                    "peak_mib": f"{result['peak_mib']:.0f}",
                    "precision": result.get("precision", "32" if contender == "peer" else chosen.precision),
                    "date": today,
                    "machine": this_machine(),
                }
                append(row)
                found[contender, number] = row
    show(f"{name}; {today}, {this_machine()}; the peer with {peer_versions(options.peer)}", list(found.values()))


def peer_versions(python: Path) -> str:
    program = "from importlib.metadata import version as v; print('lightly', v('lightly'), 'torch', v('torch'), end='')"
    return subprocess.run([python, "-c", program], capture_output=True, text=True, check=True).stdout


def append(row: dict[str, Any]) -> None:
    TABLE.parent.mkdir(parents=True, exist_ok=True)
    begin = not TABLE.is_file()
    with TABLE.open("a", newline="") as file:
        writer = csv.DictWriter(file, FIELDS, lineterminator="\n")
        if begin:
            writer.writeheader()
        writer.writerow(row)


def show(title: str, rows: list[dict[str, Any]]) -> None:
    contenders = dict.fromkeys(row["contender"] for row in rows)

    def medians(measure: str) -> dict[str, float]:
        """Medians of a measure, of the contenders that have it."""
        values = {one: [row[measure] for row in rows if row["contender"] == one] for one in contenders}
        return {one: statistics.median(map(float, found)) for one, found in values.items() if all(found)}

    rates, peaks, waits = map(medians, ("images_per_second", "peak_mib", "waiting"))
    table = Table(title=title, title_justify="left")
    columns = ("contender", "precision", "images/s", "rounds", "of the peer", "of bare encoders", "waiting", "peak MiB")
    for column in columns:
        table.add_column(column, justify="left" if column == "contender" else "right")
    for one, rate in rates.items():
        mine = [row for row in rows if row["contender"] == one]
        rounds = [float(row["images_per_second"]) for row in mine]
        table.add_row(
            one,
            ", ".join(dict.fromkeys(row["precision"] for row in mine)),
            f"{rate:.1f}",
            f"{min(rounds):.1f} to {max(rounds):.1f}",
            *(f"{rate / rates[other]:.2f}" if other in rates else "" for other in ("peer", "bare")),
            f"{waits[one]:.1%}" if one in waits else "",
            f"{peaks[one]:.0f}",
        )
    Console(width=None if sys.stdout.isatty() else 120).print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="a folder of JPEG files")
    parser.add_argument("--work", nargs="+", choices=WORKS | GPU_WORKS, default=list(GPU_WORKS if ON_GPU else WORKS))
    parser.add_argument("--contenders", nargs="+", default=["peer", "densecl", "bare"], help="bare after densecl")
    parser.add_argument("--peer", type=Path, default=HERE / "peer" / ".venv" / "bin" / "python")
    parser.add_argument(
        "--precision", default="auto", choices=["auto", "32", "bf16"], help="of all but the peer, which always has 32"
    )
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction, default=ON_GPU, help="not the peer")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=min(16 if ON_GPU else 2, os.cpu_count() or 1))
    options = parser.parse_args()
    for name in options.work:
        said = name if options.compile == ON_GPU else f"{name}, {'' if options.compile else 'not '}compiled"
        measure(said, (WORKS | GPU_WORKS)[name], options.contenders, options)


if __name__ == "__main__":
    main()
