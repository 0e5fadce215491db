from __future__ import annotations

import csv
import math
from pathlib import Path

from densecl.training.table import Table

COLUMNS = ("step", "loss")


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_rows_are_readable_at_once_and_nan_stays_empty(tmp_path: Path) -> None:
    table = Table(tmp_path / "metrics.csv", COLUMNS)
    table.append({"step": 1, "loss": 0.5, "other": 3.0})
    table.append({"step": 2, "loss": math.nan})
    assert rows(tmp_path / "metrics.csv") == [{"step": "1", "loss": "0.5"}, {"step": "2", "loss": ""}]


def test_a_resumed_table_ends_with_the_checkpoints_step(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    table = Table(path, COLUMNS)
    for step in range(1, 8):
        table.append({"step": step, "loss": step / 2})
    with path.open("a") as file:
        file.write("8,3.")  # killed while writing
    Table(path, COLUMNS, last_step=5).append({"step": 6, "loss": 9.0})
    assert [row["step"] for row in rows(path)] == ["1", "2", "3", "4", "5", "6"]
    assert rows(path)[-1]["loss"] == "9"


def test_half_a_row_is_dropped_even_if_its_step_counts(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    path.write_text("step,loss\n4,1.25\n5,1.")
    Table(path, COLUMNS, last_step=10)
    assert rows(path) == [{"step": "4", "loss": "1.25"}]


def test_a_new_run_begins_an_empty_table(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    path.write_text("step,loss\n4,1.25\n")
    Table(path, COLUMNS)
    assert path.read_text() == "step,loss\n"
