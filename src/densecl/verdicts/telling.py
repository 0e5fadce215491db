"""Which verdicts are news to the user while a run goes on."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path

from densecl.verdicts.record import Record, numbers
from densecl.verdicts.table import VERDICTS, look_is_due, seen, verdicts
from densecl.verdicts.verdict import LEVELS, Level, worse

#: A line of train.log in which a verdict was told.
TOLD = re.compile(r"  Step \d+, (good|note|warning|fault): .* \[([a-z-]+)\]\n?$")


class Telling:
    """Tells each verdict once when it is first due, and again only if it has become worse.

    Args:
        record: of the run so far, if it goes on.
        told: what its log has said already, see `told_in`.
        say: gets the lines.
    """

    def __init__(self, record: Record, told: Mapping[str, Level], say: Callable[[str], None]) -> None:
        self._recipe = record.recipe
        self._metrics, self._watched = list(record.metrics), list(record.watched)
        self._looked_at = 0
        self._told = dict(told)
        self._say = say
        #: A short sign for the progress line: the worst that holds now, from a warning on; "" if nothing does.
        self.sign = ""

    def row(self, row: Mapping[str, float | int], *, look: bool = True) -> None:
        """A row was added to metrics.csv. Without `look` one of watched.csv will follow for the same step."""
        self._metrics += numbers([row])
        if look and look_is_due(len(self._metrics), self._looked_at):
            self._look()

    def watched_row(self, row: Mapping[str, float | int]) -> None:
        """A row was added to watched.csv."""
        self._watched += numbers([row])
        self._look()

    def _look(self) -> None:
        record = Record(self._recipe, self._metrics, self._watched)
        self._looked_at = len(self._metrics)
        now = {name: found for name, found in seen(record).items() if not VERDICTS[name].told_before}
        for name, found in now.items():
            if name not in self._told or LEVELS.index(found.level) > LEVELS.index(self._told[name]):
                self._told[name] = found.level
                self._say(f"Step {record.step}, {found.level}: {found.text} [{name}]")
        bad = [(LEVELS.index(found.level), name) for name, found in now.items() if found.level in ("warning", "fault")]
        self.sign = f"! {max(bad, key=lambda one: one[0])[1]}" if bad else ""


def told_in(log: Path) -> dict[str, Level]:
    """The verdicts that stand in a run's train.log, each with the worst level that was told."""
    told: dict[str, Level] = {}
    try:
        with log.open(encoding="utf-8", errors="replace") as file:
            for line in file:
                found = TOLD.search(line)
                if found is not None and found[2] in VERDICTS:
                    level: Level = found[1]  # pyright: ignore[reportAssignmentType]
                    told[found[2]] = worse(level, told.get(found[2], level))
    except OSError:
        pass
    return told


def at_the_end(record: Record) -> str | None:
    """A line for the end of a run: what still holds, from a warning on. What it means, its report says."""
    bad = [
        f"{verdict.level} {verdict.name} (since step {verdict.step})"
        for verdict in verdicts(record)
        if verdict.until is None and verdict.level in ("warning", "fault") and not VERDICTS[verdict.name].told_before
    ]
    return f"Still true at the end: {', '.join(bad)}. What each means, and what to do: in the report." if bad else None
