"""Peak memory of a training step: densecl and the peer (LightlySSL's DenseCL), on the same work in the same run.

    python benchmarks/memory.py --data FOLDER [--work NAME ...] [--peer PYTHON]

Each runs in a process of its own, for three steps. Counted is the highest resident memory of that process without its
data-loading workers; on a GPU, what torch allocated there. The column "libraries" is the same for a tiny network and
batch, so most of it is libraries. Replaces this machine's rows of docs/benchmarks/memory.csv.
"""

from __future__ import annotations

import argparse
import csv
import datetime
from pathlib import Path

from machine import this_machine
from rich.console import Console
from rich.table import Table
from rows import read
from throughput import HERE, WORKS, Work, peer_versions, race

TABLE = HERE.parent / "docs" / "benchmarks" / "memory.csv"
FIELDS: tuple[str, ...] = ("work", "contender", "precision", "peak_mib", "libraries_mib", "date", "machine")
SMALLEST = Work("resnet18", 64, 8, 1024, 1, 2)
CONTENDERS = (("peer", "32"), ("densecl", "32"), ("densecl", "bf16"), ("bare", "32"), ("bare", "bf16"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="a folder of JPEG files")
    parser.add_argument("--work", nargs="+", choices=WORKS, default=list(WORKS))
    parser.add_argument("--peer", type=Path, default=HERE / "peer" / ".venv" / "bin" / "python")
    parser.add_argument("--workers", type=int, default=1)
    options = parser.parse_args()
    table = Table("work", "contender", "precision", "peak MiB", "libraries MiB")
    table.title = f"{datetime.date.today()}, {this_machine()}; the peer with {peer_versions(options.peer)}"
    others = [row for row in read(TABLE) if row["machine"] != this_machine()]
    TABLE.parent.mkdir(parents=True, exist_ok=True)
    with TABLE.open("w", newline="") as file:
        writer = csv.DictWriter(file, FIELDS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(others)
        for contender, precision in CONTENDERS:
            options.precision = precision
            libraries = race(contender, SMALLEST, options)["peak_mib"]
            for name in options.work:
                peak = race(contender, WORKS[name]._replace(warm_up=1, steps=2), options)["peak_mib"]
                row = (name, contender, precision, f"{peak:.0f}", f"{libraries:.0f}")
                table.add_row(*row)
                made = (datetime.date.today().isoformat(), this_machine())
                writer.writerow(dict(zip(FIELDS, (*row, *made), strict=True)))
                file.flush()
    Console().print(table)


if __name__ == "__main__":
    main()
