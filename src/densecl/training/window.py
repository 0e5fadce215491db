"""How fast a run is, and how much of its time it waits for data."""

from __future__ import annotations

import time
from collections.abc import Callable


class Window:
    """Measures the time since the last row of metrics.csv: at work, and waiting for data.

    What happens between two steps, such as saving a checkpoint, counts as neither.

    Args:
        now: a clock in seconds.
    """

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._batches = 0
        self._waited = self._worked = 0.0
        self._mark: float | None = None

    def fetched(self) -> None:
        """The next batch is here. The wait for the very first one does not count: the workers were starting."""
        if self._mark is not None:
            self._waited += self._lap()
        self._mark = self._now()

    def worked(self) -> None:
        """The batch is done, as far as the host knows. A GPU may still be at work on it."""
        self._worked += self._lap()
        self._batches += 1

    def batch_ended(self) -> None:
        """What follows a batch is done, too. From here on the run waits for data."""
        self._mark = self._now()

    def rate(self, batch_size: int) -> float | None:
        """Images per second so far; None if no batch is done yet. The window goes on."""
        total = self._waited + self._worked
        return self._batches * batch_size / total if self._batches and total else None

    def close(self, batch_size: int) -> tuple[float, float]:
        """Images per second and the fraction of the time spent waiting. A new window begins.

        The time since the last batch was done counts as work. Call it when the device has finished.
        """
        self._worked += self._lap()
        total = self._waited + self._worked
        numbers = self._batches * batch_size / total, self._waited / total
        self._batches, self._waited, self._worked = 0, 0.0, 0.0
        return numbers

    def _lap(self) -> float:
        assert self._mark is not None
        now = self._now()
        passed, self._mark = now - self._mark, now
        return passed
