"""A CSV file that grows with a run."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from pathlib import Path

from densecl.files import append, replacing
from densecl.training.checkpoints import writing


class Table:
    """A CSV file that gets one row at a time and can be cut back to a step.

    (Lightning's CSVLogger deletes an existing file, so a resumed run would lose its past.)

    Args:
        path: the file. Of the rows that it has, those up to and including `last_step` are kept.
        columns: their names; the first must be "step".
        last_step: the step to go on from; -1 keeps nothing.
        former: a file whose rows are taken where `path` is not there: an older version wrote that one.

    Raises:
        UserError: if it cannot be written.
    """

    def __init__(
        self, path: Path, columns: tuple[str, ...], last_step: int = -1, *, former: Path | None = None
    ) -> None:
        self.path = path
        self.columns = columns
        before = path if former is None or path.exists() else former
        kept = [row for row in read_rows(before) if int(row["step"]) <= last_step]
        with writing(path), replacing(path) as file:
            file.write(self._lines([dict(zip(columns, columns, strict=True)), *kept]).encode())

    def append(self, row: Mapping[str, float | int]) -> None:
        """Adds a row, which a reader sees at once. Columns with nan or without a value stay empty.

        Raises:
            OSError: if it cannot be written.
        """
        cells = {name: written(row[name]) for name in self.columns if name in row}
        append(self.path, self._lines([cells]).encode())

    def _lines(self, rows: list[dict[str, str]]) -> str:
        text = io.StringIO()
        csv.DictWriter(text, self.columns, extrasaction="ignore", lineterminator="\n").writerows(rows)
        return text.getvalue()


def read_rows(path: Path) -> list[dict[str, str]]:
    """The whole rows of such a file; none if there is no file."""
    if not path.is_file():
        return []
    with path.open(encoding="utf-8", errors="replace", newline="") as file:
        # A run that was killed may have left half a line at the end.
        whole = [line for line in file if line.endswith("\n")]
    rows = csv.DictReader(whole)
    return [row for row in rows if (row.get("step") or "").isdigit() and None not in row.values()]


def written(value: float | int) -> str:
    """A number as it stands in such a file: six digits; nothing for nan."""
    if value != value:
        return ""
    return str(value) if isinstance(value, int) else f"{value:.6g}"
