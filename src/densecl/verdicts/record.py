"""What a run has written down so far: its settings and its numbers."""

from __future__ import annotations

import csv
import dataclasses
import math
import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from densecl.watched_file import watched_file

#: Before this step nothing bad is said of what is learned: no run has learned anything by then.
EARLY = 40

#: Rows of metrics.csv whose median is taken: a single one is that of a batch, which is noise.
RECENT = 5

#: The match accuracy on one pair of views moves by about this much without learning, so that the mean over n pairs
#: moves by this over the square root of n. Twice that counts as a change.
MOVES = 0.16

#: The same for the probe's mIoU and one labeled image, in points. Drawing the images anew moves the difference of two
#: networks by this over the square root of their number: docs/watching.md.
PROBE_MOVES = 4.0

#: What the probe has to change by before it counts as a change: with 20 images, which are asked about of the 30 that
#: are enough.
PROBE_NOISE = 2 * PROBE_MOVES / math.sqrt(20)

#: A run is watched after each of so many parts of it, and before its first step.
PARTS = 10

#: A larger recipe or table of a run is not read.
MAX_RECIPE, MAX_TABLE = 1_000_000, 100_000_000

Numbers = dict[str, float]


@dataclasses.dataclass(frozen=True)
class Record:
    """What the verdicts see of a run. Whatever is missing in it is not judged.

    A column that is not in a row was not measured. Rows stand in the order of their steps.
    """

    recipe: Mapping[str, Any]  # recipe.yaml
    metrics: Sequence[Numbers]  # rows of metrics.csv
    watched: Sequence[Numbers]  # rows of watched.csv, or of an older run's match_accuracy.csv

    @property
    def step(self) -> int:
        """Of the last row; 0 without rows."""
        return int(max((rows[-1]["step"] for rows in (self.metrics, self.watched) if rows), default=0))

    def until(self, step: float | int) -> Record:
        """What was known after this step."""
        metrics, watched = ([row for row in rows if row["step"] <= step] for rows in (self.metrics, self.watched))
        return Record(self.recipe, metrics, watched)

    def recent(self, name: str, rows: int = RECENT) -> float:
        """The median of a column of metrics.csv over the last rows; nan unless each of them has it."""
        values = [row.get(name, math.nan) for row in self.metrics[-rows:]]
        return statistics.median(values) if len(values) == rows and not any(map(math.isnan, values)) else math.nan

    def column(self, name: str) -> list[tuple[int, float]]:
        """Step and value of a column of watched.csv, where it was measured."""
        return [(int(row["step"]), row[name]) for row in self.watched if name in row]

    def headlines(self) -> Iterator[tuple[str, float, list[tuple[int, float]]]]:
        """What says whether a run learns, the most telling first.

        Each is a column of watched.csv, what it has to change by, and its values. A column that the last row does not
        have says nothing of the run as it is.
        """
        for name, noise in (("probe", PROBE_NOISE), ("match_accuracy", self.noise)):
            if self.watched and name in self.watched[-1]:
                yield name, noise, self.column(name)

    def progress(self, row: Numbers) -> float:
        """The fraction of the run, 0 to 1, that is done after a row of metrics.csv; nan if the row does not say.

        With a time limit it is as many tenths as there are measurements.
        """
        for length, done in (("steps", "step"), ("epochs", "epoch")):
            if self.recipe.get(length):
                return row[done] / self.recipe[length] if done in row else math.nan
        measured = sum(one["step"] <= row["step"] for one in self.watched)
        return max(0, measured - 1) / PARTS

    @property
    def ended(self) -> bool:
        """Whether all of the run is done."""
        return bool(self.metrics) and self.progress(self.metrics[-1]) >= 0.999

    def warmed_up(self, row: Numbers) -> bool:
        """Whether the learning rate has been raised to its height by then."""
        return row.get("epoch", math.inf) >= (self.recipe.get("warmup_epochs") or 0)

    @property
    def noise(self) -> float:
        """What the match accuracy has to change by before it counts as a change."""
        pairs = [row["pairs"] for row in self.watched if row.get("pairs")]
        return 2 * MOVES / math.sqrt(pairs[-1] if pairs else 256)

    @property
    def taught_alone(self) -> bool:
        """Whether a teacher's loss is all that the run has (`config.teacher.distills_alone`)."""
        return self.recipe.get("teacher") is not None and self.recipe.get("teacher_weight") == 1

    @property
    def dense(self) -> bool:
        """Whether the run has a dense loss."""
        return bool(self.recipe.get("dense_weight")) and not self.taught_alone

    @property
    def keys_of_a_step(self) -> int:
        """How many keys a step puts into a queue."""
        return (self.recipe.get("batch_size") or 0) * (2 if self.recipe.get("symmetric") else 1)


def read_record(run: Path) -> Record:
    """What the files in a run's folder say. A file that is missing or damaged says nothing."""
    return Record(_recipe(run / "recipe.yaml"), _rows(run / "metrics.csv"), _rows(watched_file(run)))


#: No run has more steps. A table that says so is damaged.
MOST_STEPS = 10**12


def numbers(rows: Iterable[Mapping[str, Any]]) -> list[Numbers]:
    """The cells of some rows that are finite numbers; rows without a step that can be one are left out."""
    found = [{name: value for name, cell in row.items() if (value := _number(cell)) is not None} for row in rows]
    return [row for row in found if 0 <= row.get("step", -1) <= MOST_STEPS and row["step"].is_integer()]


def _number(cell: Any) -> float | None:
    try:
        value = float(cell)
    except (TypeError, ValueError):
        return None
    return value if math.isfinite(value) else None


def _rows(path: Path) -> list[Numbers]:
    try:
        if not path.is_file() or path.stat().st_size > MAX_TABLE:  # a pipe would never end
            return []
        with path.open(encoding="utf-8", errors="replace", newline="") as file:
            rows = csv.DictReader(line for line in file if line.endswith("\n"))
            return numbers(row for row in rows if None not in row and None not in row.values())  # else it is damaged
    except (OSError, csv.Error):
        return []


def _recipe(path: Path) -> Mapping[str, Any]:
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8")) if path.stat().st_size <= MAX_RECIPE else None
    except (OSError, ValueError, RecursionError, yaml.YAMLError):
        return {}
    return content if isinstance(content, dict) else {}
