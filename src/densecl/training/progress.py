"""What the user sees while a run goes on: a bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import time
from collections.abc import Mapping

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn

#: Seconds between lines where there is no terminal.
LINE_EVERY = 30.0


class Display:
    """Shows step, loss, images per second, the share of time spent waiting for data, and the time left.

    Args:
        console: where to.
        total_steps: of the run; None with a time limit.
        start_step: steps done before.
    """

    def __init__(self, console: Console, total_steps: int | None, start_step: int) -> None:
        self.console = console
        self.total_steps = total_steps
        self._bar: Progress | None = None
        self._task = TaskID(0)
        self._numbers = ""
        self._last_line = -LINE_EVERY
        if console.is_terminal or console.is_jupyter:
            columns = (BarColumn(bar_width=24), MofNCompleteColumn(), TextColumn("{task.description}"))
            self._bar = Progress(*columns, console=console, refresh_per_second=4)
            self._task = self._bar.add_task("starting", total=total_steps, completed=start_step)
            self._bar.start()

    def step(self, done: int, seconds_left: float | None) -> None:
        """A step is done. Of the estimate of what is left, only the bar shows every change."""
        if self._bar is not None:
            left = "" if seconds_left is None else f"  {duration(seconds_left)} left"
            self._bar.update(self._task, completed=done, description=f"{self._numbers}{left}")

    def row(self, row: Mapping[str, float | int], seconds_left: float | None) -> None:
        """There are new numbers."""
        self._numbers = (
            f"epoch {row['epoch']:.2f}  loss {row['loss']:.3f}  {row['images_per_second']:.0f} images/s"
            f"  waiting for data {row['data_wait']:.0%}"
        )
        now = time.monotonic()
        if self._bar is None and (now - self._last_line >= LINE_EVERY or row["step"] == self.total_steps):
            self._last_line = now
            of = f"/{self.total_steps}" if self.total_steps is not None else ""
            left = "" if seconds_left is None else f"  {duration(seconds_left)} left"
            self.console.print(f"step {row['step']}{of}  {self._numbers}{left}", highlight=False, soft_wrap=True)

    def close(self) -> None:
        """Leaves the terminal as a finished bar."""
        if self._bar is not None:
            self._bar.stop()


def duration(seconds: float | int) -> str:
    """Two leading units: "2 d 3 h", "4 h 5 min", "6 min 7 s", "8 s"."""
    seconds = round(seconds)
    for unit, (name, below) in {86400: ("d", ("h", 3600)), 3600: ("h", ("min", 60)), 60: ("min", ("s", 1))}.items():
        if seconds >= unit:
            return f"{seconds // unit} {name} {seconds % unit // below[1]} {below[0]}"
    return f"{seconds} s"
