"""What a run tells its user: on the terminal, and with the time in ``train.log`` in the run's folder."""

from __future__ import annotations

import contextlib
import datetime
import textwrap
from collections.abc import Iterator
from pathlib import Path

from rich.console import Console

from densecl.errors import UserError
from densecl.files import append
from densecl.names import printable

#: The file, in the run's folder.
LOG_FILE = "train.log"


class Voice:
    """Says things to the user, and writes them down.

    A log that cannot be written never ends a run: the terminal has the same.

    Args:
        console: the terminal.
    """

    def __init__(self, console: Console) -> None:
        self.console = console
        self._path: Path | None = None
        self._waiting: list[str] = []  # lines from before the run's folder is there

    def open_log(self, out: Path) -> None:
        """From here on everything goes to the log in this folder, first what was said before."""
        self._path = out / LOG_FILE
        self._write("".join(self._waiting))
        self._waiting.clear()

    def say(self, text: str) -> None:
        """Shows a text, and writes it down. On a terminal it is broken between words."""
        wrapped = text
        if self.console.is_terminal:
            indent = len(text) - len(text.lstrip())
            wrapped = "\n".join(
                textwrap.wrap(
                    text.strip(),
                    self.console.width,
                    initial_indent=" " * indent,
                    subsequent_indent=" " * (indent + 2),
                    break_long_words=False,
                    break_on_hyphens=False,
                )
            )
        self._print(wrapped)
        self.log(text)

    def say_to_copy(self, text: str) -> None:
        """As `say`, for a command or a path: without line breaks of ours, so that it can be copied."""
        self._print(text)
        self.log(text)

    @contextlib.contextmanager
    def errors_logged(self) -> Iterator[None]:
        """Writes down what ends the run in this block; the terminal is told of it elsewhere."""
        try:
            yield
        except Exception as error:
            self.log(f"error: {error.args[0] if isinstance(error, UserError) else repr(error)}")
            raise

    def _print(self, text: str) -> None:
        self.console.print(text, highlight=False, soft_wrap=True, markup=False)

    def log(self, text: str) -> None:
        """Only writes it down."""
        now = datetime.datetime.now().astimezone().isoformat(sep=" ", timespec="seconds")
        lines = "".join(f"{now}  {line}\n" for line in printable(text).split("\n"))
        if self._path is None:
            self._waiting.append(lines)
        else:
            self._write(lines)

    def _write(self, lines: str) -> None:
        assert self._path is not None
        with contextlib.suppress(OSError):
            append(self._path, lines.encode("utf-8", "backslashreplace"))
