"""Which file of a run's folder has what was watched of it. Version 0.1.0 gave it another name, and fewer columns."""

from __future__ import annotations

from pathlib import Path

WATCHED, FORMER_WATCHED = "watched.csv", "match_accuracy.csv"


def watched_file(run: Path) -> Path:
    """The file that this run has: the one of today, unless only the former one is there."""
    now, former = run / WATCHED, run / FORMER_WATCHED
    return former if former.is_file() and not now.is_file() else now
