"""Ctrl-C and SIGTERM: noticed at once, obeyed between two steps."""

from __future__ import annotations

import signal
import threading
import time
from types import FrameType


class Interrupts:
    """Notes SIGINT and SIGTERM between `listen` and `ignore`, instead of dying of them.

    A second Ctrl-C does what Ctrl-C usually does, for those who cannot wait for the step to end. (Within a
    second it is taken for the first one once more: a terminal and a parent process may both send it.)

    Attributes:
        received: the first signal that came, or None.
    """

    SIGNALS = (signal.SIGINT, signal.SIGTERM)

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self._at = 0.0
        self._before: dict[signal.Signals, object] = {}

    def listen(self) -> None:
        """Installs the handlers; does nothing outside the main thread, where Python allows none."""
        if threading.current_thread() is threading.main_thread():
            for number in self.SIGNALS:
                before = signal.signal(number, self._note)
                self._before.setdefault(number, before)

    def ignore(self) -> None:
        """Puts back the handlers that were there before."""
        for number, handler in self._before.items():
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)  # pyright: ignore[reportArgumentType]
        self._before.clear()

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.received is None:
            self.received, self._at = signal.Signals(number), time.monotonic()
        elif number == signal.SIGINT and time.monotonic() - self._at > 1:
            raise KeyboardInterrupt
