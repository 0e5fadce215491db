"""How far a run has come, in steps and in time, and when it ends."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable
from fractions import Fraction


@dataclasses.dataclass
class Timeline:
    """The length of a run, and where it stands.

    A run ends after `total_steps` or at its `time_limit`; it has one of the two. Only time spent training counts:
    the clock stands still between `seconds` of a checkpoint and the `start` of the run that goes on from it.

    The processes of a run have clocks of their own, but must agree on where they stand. So everything here follows
    from `seconds`, which the `Recorder` sets to the same value in all of them after each step. `read` is this
    process's own clock.

    Args:
        steps_per_epoch: images / batch size. The last step of an epoch may reach into the next one.
        total_steps: None with a time limit.
        time_limit: in seconds; None with a number of steps.
        start_step: steps done before.
        seconds: trained so far.
        now: a clock in seconds.
    """

    steps_per_epoch: Fraction
    total_steps: int | None = None
    time_limit: float | None = None
    start_step: int = 0
    seconds: float = 0.0
    now: Callable[[], float] = time.monotonic

    def __post_init__(self) -> None:
        if (self.total_steps is None) == (self.time_limit is None):
            raise ValueError("A run has a number of steps or a time limit, and not both.")
        self._started: tuple[float, float] | None = None  # the clock then, and the seconds trained until then

    @classmethod
    def plan(
        cls,
        images: int,
        batch_size: int,
        *,
        epochs: int | None = None,
        steps: int | None = None,
        time_limit: float | None = None,
    ) -> Timeline:
        """A new run of this length, of which exactly one is given. Epochs are rounded up to whole steps."""
        steps_per_epoch = Fraction(images, batch_size)
        if epochs is not None:
            if steps is not None:
                raise ValueError("A run has a number of epochs or of steps, and not both.")
            steps = math.ceil(epochs * steps_per_epoch)
        return cls(steps_per_epoch, steps, time_limit)

    def going_on(self, step: int, seconds: float) -> Timeline:
        """A run of the same length that has done this many steps in this time."""
        return dataclasses.replace(self, start_step=step, seconds=seconds)

    # --- steps ----------------------------------------------------------------------------------

    @property
    def total_epochs(self) -> float | None:
        """None with a time limit."""
        return None if self.total_steps is None else self.epoch(self.total_steps)

    def epoch(self, step: int) -> float:
        """The epochs that lie before a step, as a fraction."""
        return float(step / self.steps_per_epoch)

    def progress(self, step: int) -> float:
        """The fraction of the run (0-1) that lies before a step."""
        if self.time_limit is not None:
            return min(1.0, self.seconds / self.time_limit)
        assert self.total_steps is not None
        return step / self.total_steps

    def ended(self, done: int) -> bool:
        """Whether the run is at its end after so many steps."""
        if self.time_limit is not None:
            return self.seconds >= self.time_limit
        assert self.total_steps is not None
        return done >= self.total_steps

    @property
    def complete(self) -> bool:
        """Whether there is nothing left to do when the run starts."""
        return self.ended(self.start_step)

    # --- time -----------------------------------------------------------------------------------

    def start(self) -> None:
        """Lets the clock run."""
        self._started = self.now(), self.seconds

    def read(self) -> float:
        """The seconds trained by this process's own clock."""
        if self._started is None:
            return self.seconds
        at, before = self._started
        return before + self.now() - at

    def seconds_left(self, done: int, steps_per_second: float | None) -> float | None:
        """An estimate of the time to the end. None if the speed is needed and not known yet."""
        if self.time_limit is not None:
            return max(0.0, self.time_limit - self.seconds)
        if not steps_per_second:
            return None
        assert self.total_steps is not None
        return max(0, self.total_steps - done) / steps_per_second
