"""Several real processes, and how they end."""

from __future__ import annotations

import operator
import os
import re
import signal
import sys
import threading

import pytest

from densecl.errors import UserError
from densecl.training.launch import _how_it_died, launch


def test_how_processes_end() -> None:
    with pytest.raises(RuntimeError, match="ZeroDivisionError"):
        launch(operator.truediv, 2, 1, 0)
    with pytest.raises(SystemExit, match="143"):
        launch(sys.exit, 2, 143)
    with pytest.raises(UserError, match=r"was killed \(exit code -9\), most likely .* because memory ran out"):
        launch(signal.raise_signal, 2, signal.SIGKILL)
    with pytest.raises(UserError, match="Process [01] of 2 ended with exit code 1 before it could say why"):
        launch(os._exit, 2, 1)


@pytest.mark.parametrize(
    ("code", "told"),
    [
        (-9, "because memory ran out"),
        (137, "because memory ran out"),
        (-7, "because shared memory ran out"),
        (135, "because shared memory ran out"),
        (-11, "died of SIGSEGV"),
        (134, "died of SIGABRT"),
        (-15, "died of SIGTERM"),
        (0, "ended with exit code 0 before it could say why"),
        (1, "ended with exit code 1 .* if __name__"),
        (2, "ended with exit code 2 "),
        (127, "ended with exit code 127 "),
        (255, "ended with exit code 255 "),
    ],
)
def test_only_what_was_killed_is_said_to_have_run_out_of_memory(code: int, told: str) -> None:
    text = _how_it_died(code)
    assert re.search(told, text)
    assert ("memory" in text) == ("memory" in told)


def test_signals_before_the_processes_have_met(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(KeyboardInterrupt):
        launch(signal.raise_signal, 2, signal.SIGINT)
    with pytest.raises(SystemExit, match="143"):
        launch(signal.raise_signal, 2, signal.SIGTERM)
    monkeypatch.setattr("densecl.training.launch.GRACE", 0.2)
    with pytest.raises(KeyboardInterrupt):
        launch(interrupt_the_first_alone, 2)


def interrupt_the_first_alone() -> None:
    if os.environ["LOCAL_RANK"] == "0":
        signal.raise_signal(signal.SIGINT)
    threading.Event().wait()
