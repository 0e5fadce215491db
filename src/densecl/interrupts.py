"""Ctrl-C and other signals that ask a run to stop: noticed at once, obeyed between two steps."""

from __future__ import annotations

import signal
import threading
import time
from types import FrameType

#: What asks a run to stop: Ctrl-C, the end of a job, a terminal that is closed, and the notices that clusters send
#: before they end a job, or when its time of computing is used up. (Windows has the first two.)
STOPPING = tuple(
    signal.Signals[name]
    for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2", "SIGXCPU")
    if hasattr(signal, name)
)


class Interrupts:
    """Notes the signals that ask to stop between `listen` and `ignore`, instead of dying of them.

    Ctrl-C and SIGTERM always. The others not where they are ignored, as nohup has it for SIGHUP, or where whoever
    called us listens to them.

    A second Ctrl-C does what Ctrl-C usually does, for those who cannot wait for the step to end. (Within a
    second it is taken for the first one once more: a terminal and a parent process may both send it.)

    Attributes:
        received: the first signal that came, or None.
    """

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self._at = 0.0
        self._before: dict[signal.Signals, object] = {}

    def listen(self) -> None:
        """Installs the handlers; does nothing outside the main thread, where Python allows none."""
        if threading.current_thread() is threading.main_thread():
            for number in STOPPING:
                before = signal.getsignal(number)
                ours = number in self._before or isinstance(getattr(before, "__self__", None), Interrupts)
                if ours or before == signal.SIG_DFL or number in (signal.SIGINT, signal.SIGTERM):
                    signal.signal(number, self._note)
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
