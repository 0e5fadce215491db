"""When a row of metrics is due, and when a checkpoint."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple


class Due(NamedTuple):
    """What is to be done after a step."""

    row: bool  # of metrics.csv
    watch: bool  # measure what stands in watched.csv
    checkpoint: bool


@dataclass(frozen=True)
class Rhythm:
    """How often a run writes something down.

    Rows follow from the step alone, so that a repeated run has the same ones. Checkpoints also follow the clock: they
    change nothing of what the run computes. What stands in watched.csv is measured as often in a short run as in
    a long one.

    Args:
        log_every: steps between rows.
        checkpoint_every: steps between checkpoints.
        checkpoint_minutes: save a checkpoint after so many minutes, even if those steps are not done yet.
    """

    log_every: int
    checkpoint_every: int
    checkpoint_minutes: float

    def after(self, done: int, *, ended: bool, stopped: bool, minutes: float, new_part: bool) -> Due:
        """What is due after a step.

        Args:
            done: steps done in all.
            ended: the run is at its end.
            stopped: a signal ends it here.
            minutes: since the last checkpoint.
            new_part: whether this step has completed one of the parts of the run after which it is measured.
        """
        turn = ended or done % self.checkpoint_every == 0
        return Due(
            row=ended or done == 1 or done % self.log_every == 0,
            watch=ended or new_part,
            checkpoint=turn or stopped or minutes >= self.checkpoint_minutes,
        )
