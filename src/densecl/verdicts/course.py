"""Verdicts on the course of a run: whether it still gains, and what it waits for."""

from __future__ import annotations

from densecl.verdicts.features import shown
from densecl.verdicts.record import Record
from densecl.verdicts.verdict import Found, percent

#: So many measurements, of about ten a run, without a gain.
FLAT = 3

#: Fraction of the run from which on it is too late to save much by stopping.
LATE = 0.9

#: Fraction of its time that a run waits for data: without the waiting it would be 1.4 times as fast.
WAITS = 0.3

#: Rows of metrics.csv over which the waiting is looked at. The first ones after a start are those of cold caches.
ROWS_OF_WAITING = 8


def flat(record: Record) -> Found | None:
    """What is watched had risen, and no longer rises."""
    for name, noise, values in record.headlines():
        earlier, late = values[:-FLAT], values[-FLAT:]
        if len(earlier) < 2:
            return None
        step, best = max(earlier, key=lambda pair: pair[1])
        if best - values[0][1] <= noise or max(value for _, value in late) > best + noise / 4:
            return None
        headline = "retrieval on the labeled images" if name == "probe" else "match accuracy"
        since = _since(record, step)
        seen = f"{headline.capitalize()} has been flat for {since} ({shown(name, best)} -> {shown(name, late[-1][1])})"
        if record.metrics and record.progress(record.metrics[-1]) >= LATE:
            return Found("note", f"{seen}: by this measure a shorter run would have done.")
        return Found("note", f"{seen}: by this measure, stopping now (Ctrl-C) loses little.")
    return None


def _since(record: Record, step: int) -> str:
    """How long ago a step was: in epochs, or in steps where there is less than one."""
    steps = record.step - step
    rows = [row for row in record.metrics if row.get("epoch")]
    epochs = steps * rows[-1]["epoch"] / rows[-1]["step"] if rows else 0.0
    return f"{epochs:.2g} epochs" if epochs >= 2 else f"{steps} steps"


def waits_for_data(record: Record) -> Found | None:
    """The device stands still while images are read."""
    waiting = record.recent("data_wait", ROWS_OF_WAITING)
    if not waiting >= WAITS:
        return None
    workers = record.recipe.get("workers")
    ways = [f"more --workers (now {workers}), if cores are free" if isinstance(workers, int) else "more --workers"]
    if not record.recipe.get("cache"):
        ways.append("--cache FOLDER, which keeps the decoded images")
    ways.append("smaller image files")
    faster = 1 / (1 - min(waiting, 0.99))
    return Found(
        "warning",
        f"The run waits for images {percent(waiting, 0)} of its time. Without that it would be {faster:.1f} times as"
        f" fast. Try {', or '.join(ways)}.",
    )
