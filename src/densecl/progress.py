"""What the user sees during training: a progress bar on a terminal, or a line every half minute elsewhere."""

from __future__ import annotations

import contextlib
import errno
import os
import sys
import time
from collections.abc import Iterator
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn

#: Seconds between lines where there is no terminal.
LINE_EVERY = 30.0


class Screen:
    """Standard output for a `Console`. Its errors never end a run.

    Once the terminal is closed, or the other end of a pipe is gone, nothing more is shown. A character that the
    terminal cannot show, such as a byte of a file name that is not UTF-8, becomes an escape.
    """

    def __init__(self) -> None:
        self._stream = sys.stdout

    def write(self, text: str) -> int:
        encoding = self._stream.encoding or "utf-8"
        with self._while_it_lasts():
            self._stream.write(text.encode(encoding, "backslashreplace").decode(encoding))
        return len(text)

    def flush(self) -> None:
        with self._while_it_lasts():
            self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    @contextlib.contextmanager
    def _while_it_lasts(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if error.errno not in (errno.EIO, errno.EPIPE):
                raise
            # Otherwise the rest of the buffer would fail again when Python ends, and change its exit code.
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self._stream.fileno())
            os.close(nowhere)


class Display:
    """Shows the steps or images done, some numbers, and the time left.

    Args:
        console: where it is shown.
        total_steps: of the run; None with a time limit.
        start_step: steps done before.
        title: names what is trained, if it is one of many. It stands before everything else, and the bar disappears at
            the end.
        unit: what is counted.
    """

    def __init__(
        self, console: Console, total_steps: int | None, start_step: int = 0, title: str = "", unit: str = "step"
    ) -> None:
        self.console = console
        self.total_steps = total_steps
        self._title = f"{title}: " if title else ""
        self._unit = unit
        self._bar: Progress | None = None
        self._task = TaskID(0)
        self._numbers = ""
        self._last_line = -LINE_EVERY
        if console.is_terminal or console.is_jupyter:
            columns = (BarColumn(bar_width=24), MofNCompleteColumn(), TextColumn("{task.description}", markup=False))
            if title:  # on its own line, because the bar needs the whole width of a narrow terminal
                console.print(title, highlight=False, markup=False, soft_wrap=True)
            self._bar = Progress(*columns, console=console, refresh_per_second=4, transient=bool(title))
            self._task = self._bar.add_task("starting", total=total_steps, completed=start_step)
            self._bar.start()

    def step(self, done: int, seconds_left: float | None) -> None:
        """A step is done. Only the bar shows the time left at every step."""
        if self._bar is not None:
            self._bar.update(self._task, completed=done, description=f"{self._numbers}{_left(seconds_left)}")

    def report(self, done: int, numbers: str, seconds_left: float | None) -> None:
        """Show new numbers."""
        self._numbers = numbers
        now = time.monotonic()
        if self._bar is None and (now - self._last_line >= LINE_EVERY or done == self.total_steps):
            self._last_line = now
            of = f"/{self.total_steps}" if self.total_steps is not None else ""
            line = f"{self._title}{self._unit} {done}{of}  {numbers}{_left(seconds_left)}"
            self.console.print(line, highlight=False, markup=False, soft_wrap=True)

    def close(self) -> None:
        """End the display. A bar without a title stays on the screen."""
        if self._bar is not None:
            self._bar.stop()


def _left(seconds: float | None) -> str:
    return "" if seconds is None else f"  {duration(seconds)} left"


def duration(seconds: float | int) -> str:
    """A time in its two largest units: "2 d 3 h", "4 h 5 min", "6 min 7 s", "8 s"."""
    seconds = round(seconds)
    for unit, (name, below) in {86400: ("d", ("h", 3600)), 3600: ("h", ("min", 60)), 60: ("min", ("s", 1))}.items():
        if seconds >= unit:
            return f"{seconds // unit} {name} {seconds % unit // below[1]} {below[0]}"
    return f"{seconds} s"
