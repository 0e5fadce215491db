"""What the user sees during training: a progress bar on a terminal, or a line every half minute elsewhere."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions
from rich.live import Live
from rich.text import Text

#: Seconds between lines where there is no terminal.
LINE_EVERY = 30.0

#: Seconds between new numbers beside a bar.
NUMBERS_EVERY = 2.0

#: Characters of the bar: the most, and what it keeps before a number is left out.
WIDE_BAR, NARROW_BAR = 24, 10


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
        title: names what is done, if it is one of many. It stands before everything else, and the bar disappears at
            the end.
        what: is counted: "step", or "image".
        log: gets a line every half minute, where the terminal has a bar.
    """

    def __init__(
        self,
        console: Console,
        total_steps: int | None,
        start_step: int = 0,
        title: str = "",
        *,
        what: str = "step",
        log: Callable[[str], None] | None = None,
    ) -> None:
        self.console = console
        self._title = f"{title}: " if title else ""
        self._what = what
        self._log = log
        self._line = ProgressLine(start_step, total_steps)
        self._reported = self._told = -LINE_EVERY
        self._noted = False
        self._bar: Live | None = None
        if console.is_terminal or console.is_jupyter:
            if title:  # on its own line, because the bar needs the whole width of a narrow terminal
                console.print(title, highlight=False, markup=False, soft_wrap=True)
            self._bar = Live(self._line, console=console, refresh_per_second=4, transient=bool(title))
            self._bar.start()

    def step(self, done: int, fraction: float, seconds_left: float | None) -> None:
        """A step is done. Only the bar shows that at every step.

        Args:
            done: steps in all.
            fraction: of the run that is done, from 0 to 1.
            seconds_left: None: not known.
        """
        self._line.done, self._line.fraction, self._line.left = done, fraction, _left(seconds_left)
        self._line.note = ""

    @property
    def stale(self) -> bool:
        """Whether the numbers have been shown for so long that new ones should be, in seconds of a steady look."""
        return time.monotonic() - self._reported >= (NUMBERS_EVERY if self._bar is not None else LINE_EVERY)

    def report(self, done: int, numbers: Sequence[str], seconds_left: float | None) -> None:
        """Show new numbers, the most important one first. A narrow terminal leaves out the last ones."""
        self._reported = time.monotonic()
        self._line.numbers = tuple(numbers)
        if self._reported - self._told >= LINE_EVERY or done == self._line.total:
            self._told = self._reported
            of = f"/{self._line.total}" if self._line.total is not None else ""
            words = (f"{self._title}{self._what} {done}{of}", *numbers, _left(seconds_left))
            self._plainly("  ".join(filter(None, words)))

    def note(self, text: str) -> None:
        """Show what is done beside the steps, until the next step is. Without a bar only the first one is shown."""
        if self._bar is None and not self._noted:
            self._plainly(self._title + text)
        self._noted = True
        self._line.note = text

    def close(self) -> None:
        """End the display. A bar without a title stays on the screen."""
        if self._bar is not None:
            self._line.note = ""
            self._bar.stop()

    def _plainly(self, line: str) -> None:
        if self._bar is None:
            self.console.print(line, highlight=False, markup=False, soft_wrap=True)
        if self._log is not None:
            self._log(line)


@dataclasses.dataclass
class ProgressLine:
    """The bar of a `Display` and what stands behind it: one line, whatever the width of the terminal.

    What does not fit is left out, the last numbers first. A line that breaks would leave its first half behind
    whenever it is drawn anew.
    """

    done: int
    total: int | None
    fraction: float = 0.0
    left: str = ""
    numbers: tuple[str, ...] = ()
    note: str = ""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Text]:
        room = options.max_width - 3  # some terminals break a line that fills them, and Ctrl-C writes ^C behind it
        count = f"{self.done}" if self.total is None else f"{self.done}/{self.total}"
        words = [count]
        length = NARROW_BAR + 1 + cell_len(count)
        for word in (self.note,) if self.note else (self.left, *self.numbers):
            if word and length + 2 + cell_len(word) > room:
                break
            if word:
                words.append(word)
                length += 2 + cell_len(word)
        bar = max(0, min(WIDE_BAR, NARROW_BAR + room - length))
        full = round(bar * self.fraction)
        mark = "-" if options.ascii_only else "━"
        line = Text(no_wrap=True, overflow="crop", end="")
        line.append(mark * full, "bar.complete").append(mark * (bar - full), "bar.back")
        line.append(" " if bar else "").append(words[0], "progress.download")
        for word in words[1:]:
            line.append(f"  {word}")
        yield line


def _left(seconds: float | None) -> str:
    return "" if seconds is None else f"{duration(seconds)} left"


def duration(seconds: float | int) -> str:
    """A time in its two largest units: "2 d 3 h", "4 h 5 min", "6 min 7 s", "8 s"."""
    seconds = round(seconds)
    for unit, (name, below) in {86400: ("d", ("h", 3600)), 3600: ("h", ("min", 60)), 60: ("min", ("s", 1))}.items():
        if seconds >= unit:
            return f"{seconds // unit} {name} {seconds % unit // below[1]} {below[0]}"
    return f"{seconds} s"
