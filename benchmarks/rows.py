"""CSV files of benchmarks. A run adds its row when it is done, so an interrupted benchmark goes on where it was."""

from __future__ import annotations

import csv
import math
import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar

R = TypeVar("R", bound=tuple[Any, ...])


def read(table: Path) -> list[dict[str, str]]:
    """The rows of a table; none if there is no file."""
    if not table.is_file():
        return []
    with table.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def append(table: Path, *rows: Any) -> None:
    """Adds named tuples as rows, all together. A new table begins with their field names."""
    table.parent.mkdir(parents=True, exist_ok=True)
    begin = not table.is_file()
    with table.open("a", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        if begin:
            writer.writerow(rows[0]._fields)
        writer.writerows(map(_written, rows))


def missing(table: Path, rows: Iterable[R], identity: int) -> list[R]:
    """The named tuples that no row of the table has. Their first `identity` fields say which run a row is of."""
    found = {tuple(row.values())[:identity] for row in read(table)}
    return [row for row in rows if tuple(_written(row)[:identity]) not in found]


def _written(row: Iterable[Any]) -> list[str]:
    return [f"{value:.2f}" if isinstance(value, float) else str(value) for value in row]


def mean_and_deviation(values: Sequence[float]) -> str:
    if any(math.isnan(value) for value in values):  # not measured
        return "-"
    deviation = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.1f}{deviation}"
