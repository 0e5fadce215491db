"""Ctrl-C and other signals that ask a run to stop. They are noted at once and obeyed between two steps."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable
from types import FrameType

#: Signals that ask a run to stop: Ctrl-C, the end of a job, a closed terminal, and what clusters send shortly before
#: they end a job or when its CPU time is used up. (Windows has only the first two.)
STOPPING = tuple(
    signal.Signals[name]
    for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2", "SIGXCPU")
    if hasattr(signal, name)
)


class Interrupts:
    """Notes signals that ask to stop, between `listen` and `ignore`, so that they do not end the process.

    Ctrl-C and SIGTERM are always noted. The others are not where they are ignored (nohup does so for SIGHUP), or where
    the caller has a handler of its own.

    A second Ctrl-C has its usual effect, for users who cannot wait for the step to end. If it comes within a second of
    the first, it counts as the same one: a terminal and a parent process may both send it.

    Args:
        heard: is called with the first signal, at once, in a thread of its own: within a signal nothing can be printed
            safely, and the step that it waits for may take a minute.

    Attributes:
        received: the first signal that came, or None.
    """

    def __init__(self, heard: Callable[[signal.Signals], None] | None = None) -> None:
        self.received: signal.Signals | None = None
        self._heard = heard
        self._at = 0.0
        self._before: dict[signal.Signals, object] = {}

    def listen(self) -> None:
        """Installs the handlers. Does nothing outside the main thread, where Python allows none."""
        if threading.current_thread() is threading.main_thread():
            for number in STOPPING:
                before = signal.getsignal(number)
                ours = number in self._before or isinstance(getattr(before, "__self__", None), Interrupts)
                if ours or before == signal.SIG_DFL or number in (signal.SIGINT, signal.SIGTERM):
                    signal.signal(number, self._note)
                    self._before.setdefault(number, before)

    def ignore(self) -> None:
        """Restores the handlers that were there before."""
        for number, handler in self._before.items():
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)  # pyright: ignore[reportArgumentType]
        self._before.clear()

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.received is None:
            self.received, self._at = signal.Signals(number), time.monotonic()
            if self._heard is not None:
                threading.Thread(target=self._heard, args=(self.received,), daemon=True).start()
        elif number == signal.SIGINT and time.monotonic() - self._at > 1:
            raise KeyboardInterrupt
