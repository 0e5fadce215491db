"""Ctrl-C and other signals that ask a run to stop. They are noted at once and obeyed between two steps."""

from __future__ import annotations

import os
import signal
import sys
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


#: Seconds that a command has to end after a signal. Then the signal counts as lost, and is given once more.
INSIST = 5.0


class Leaving(Interrupts):
    """Ends the program on a signal, wherever there is nothing to save: from its first line on, and between runs.

    It raises KeyboardInterrupt or SystemExit, so that unfinished files are removed on the way out. Such an exception is
    lost where a destructor, a callback from C or a careless `except:` of a library gets it, as they do while torch is
    loaded. So the signal is given again: at once where Python tells of a lost exception, else after `INSIST` seconds.

    Signals that are ignored (as of a job in the background) stay ignored.
    """

    def __init__(self) -> None:
        super().__init__()
        #: Whether there may be something to leave in order. Before that the process just ends.
        self.underway = False
        self._left = threading.Event()

    def listen(self) -> None:
        ignored = [number for number in STOPPING if signal.getsignal(number) == signal.SIG_IGN]
        super().listen()
        for number in ignored:
            signal.signal(number, signal.SIG_IGN)
            self._before.pop(number, None)
        self._told_before = sys.unraisablehook
        sys.unraisablehook = self._lost

    def left(self) -> None:
        """The command has ended. From here on a signal ends the process as the system does."""
        self._left.set()
        for number in self._before:
            signal.signal(number, signal.SIG_DFL)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if not self.underway:
            _quit(number)
        now = time.monotonic()
        if self.received is None:
            self.received = signal.Signals(number)
            threading.Thread(target=self._insist, args=(number,), daemon=True).start()
        elif number == self.received and now - self._at < 1:  # a terminal and a parent process may both send it
            return
        self._at = now
        raise KeyboardInterrupt if number == signal.SIGINT else SystemExit(128 + number)

    def _insist(self, number: int) -> None:
        while not self._left.wait(INSIST):
            _give(number)

    def _lost(self, told: sys.UnraisableHookArgs) -> None:
        ours = isinstance(told.exc_value, KeyboardInterrupt | SystemExit)
        if not ours or self.received is None or self._left.is_set():
            return self._told_before(told)
        # Once more, from another thread: within a destructor it would be lost again.
        self._at = 0.0
        threading.Timer(0.05, _give, args=(self.received,)).start()


def _give(number: int) -> None:
    """Give a signal to the main thread, and end what it waits for."""
    if hasattr(signal, "pthread_kill"):
        signal.pthread_kill(threading.main_thread().ident or 0, number)
    else:
        signal.raise_signal(number)


def _quit(number: int) -> None:
    if number == signal.SIGINT:
        os.write(2, b"densecl: interrupted\n")
    os._exit(128 + number)
