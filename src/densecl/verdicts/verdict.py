"""What a verdict is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, Literal, NamedTuple

from densecl.verdicts.record import Record

Level = Literal["good", "note", "warning", "fault"]

#: From the best to the worst. A verdict is told again when it has become worse.
LEVELS: Final[tuple[Level, ...]] = ("good", "note", "warning", "fault")


def worse(one: Level, other: Level) -> Level:
    """The worse of two levels."""
    return one if LEVELS.index(one) >= LEVELS.index(other) else other


class Found(NamedTuple):
    """What a judge sees in a record as it stands."""

    level: Level
    text: str  # a sentence or two: what is seen, what it means, what to do


Judge = Callable[[Record], Found | None]


def percent(fraction: float, digits: int = 1) -> str:
    """As a user reads it: "41.0 %"."""
    return f"{100 * fraction:.{digits}f} %"


class Row(NamedTuple):
    """A verdict in the table `VERDICTS`."""

    judge: Judge  # looks at a record as it stands; None: nothing to say, or not enough is known
    says: str  # what is wrong, or right, in a few words
    measure: str  # the columns that it reads
    threshold: str  # from which value on
    source: str  # where the threshold comes from
    told_before: bool = False  # the run has said so at its start, from its settings: only the report says it again


class Verdict(NamedTuple):
    """What the numbers of a run mean."""

    name: str  # of the row in `VERDICTS`
    level: Level  # the worst that it was
    step: int  # after which it was first due
    text: str  # as it was last seen
    measure: str
    threshold: str
    source: str
    until: int | None = None  # the step after which it no longer held; None: it holds at the end of the record
