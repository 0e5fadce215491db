"""The one number by which a run is judged while it goes on: which it is, when it was best, whether it still gains.

With labeled images (`--probe`) it is what retrieval on them gives, without them the match accuracy. All is read from
the rows of watched.csv, and by the digits that stand there. So a resumed run comes to the same as one that was never
interrupted.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from densecl.training.table import read_rows

#: Columns of watched.csv, of which the first that was measured is the headline.
HEADLINES = ("probe", "match_accuracy")

#: How a user calls them, and what their unit is.
CALLED = {"probe": "probe", "match_accuracy": "match accuracy"}


class Moment(NamedTuple):
    """What the headline was after a step."""

    step: int
    value: float  # in the unit of watched.csv: mIoU in percent, or a fraction


class Headline(NamedTuple):
    """The headline of a run so far."""

    name: str  # the column of watched.csv
    moments: tuple[Moment, ...]  # in the order of the steps; at least one

    @property
    def best(self) -> Moment:
        """The first of the highest values."""
        return max(self.moments, key=lambda moment: moment.value)

    @property
    def since_best(self) -> int:
        """How many measurements have been made since the best one."""
        return len(self.moments) - 1 - self.moments.index(self.best)

    def in_words(self, value: float) -> str:
        """A value as a user reads it: "34.0 mIoU", "41.0 %"."""
        return f"{value:.1f} mIoU" if self.name == "probe" else f"{100 * value:.1f} %"


def headline(rows: Sequence[Mapping[str, Any]]) -> Headline | None:
    """The headline of these rows of watched.csv; None if none of them has one.

    Which column it is follows from the last row: a run may be resumed with or without labeled images.
    """
    for name in HEADLINES:
        if rows and _number(rows[-1], name) is not None:
            values = ((int(row["step"]), _number(row, name)) for row in rows)
            return Headline(name, tuple(Moment(step, value) for step, value in values if value is not None))
    return None


def stalled(rows: Sequence[Mapping[str, Any]], patience: int | None) -> Headline | None:
    """The headline, if it has not risen above its best for so many measurements. None: it has, or nobody asked."""
    found = headline(rows)
    return found if patience is not None and found is not None and found.since_best >= patience else None


def rows_until(path: Path, step: int) -> list[dict[str, str]]:
    """The rows of a watched.csv up to and including a step."""
    return [row for row in read_rows(path) if int(row["step"]) <= step]


def _number(row: Mapping[str, Any], name: str) -> float | None:
    try:
        value = float(row.get(name) or math.nan)
    except ValueError:  # a damaged file
        return None
    return value if math.isfinite(value) else None
