"""Tables of benchmarks, to which each run adds a row as soon as it is done, so that an interrupted one goes on."""

from __future__ import annotations

import csv
import math
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def read(table: Path) -> list[dict[str, str]]:
    """The rows that are there."""
    if not table.is_file():
        return []
    with table.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def append(table: Path, *rows: Any) -> None:
    """Adds rows, named tuples, to the table, which begins with their fields. At once, so that all are there or none."""
    table.parent.mkdir(parents=True, exist_ok=True)
    begin = not table.is_file()
    with table.open("a", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        if begin:
            writer.writerow(rows[0]._fields)
        for row in rows:
            writer.writerow([f"{value:.2f}" if isinstance(value, float) else value for value in row])


def mean_and_deviation(values: Sequence[float]) -> str:
    if any(math.isnan(value) for value in values):  # not measured
        return "-"
    deviation = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.1f}{deviation}"
