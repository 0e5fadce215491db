"""Signals that ask to stop."""

from __future__ import annotations

import queue
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from densecl.interrupts import STOPPING, Interrupts


@pytest.fixture(autouse=True)
def in_the_foreground() -> Iterator[None]:
    """A job in the background of a shell ignores Ctrl-C, and so would whatever these tests start."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("number", STOPPING, ids=lambda number: number.name)
def test_every_signal_that_asks_to_stop_is_noted(number: signal.Signals) -> None:
    before = {each: signal.getsignal(each) for each in STOPPING}
    interrupts = Interrupts()
    interrupts.listen()
    interrupts.listen()  # as a run does, once more after Lightning
    try:
        signal.raise_signal(number)
    finally:
        interrupts.ignore()
    assert interrupts.received == number
    assert {each: signal.getsignal(each) for each in STOPPING} == before


def test_which_there_are() -> None:
    assert {number.name for number in STOPPING} >= {"SIGINT", "SIGTERM"}
    assert {number.name for number in STOPPING} == {"SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2", "SIGXCPU"}


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGUSR1], ids=lambda number: number.name)
def test_what_is_ignored_or_the_callers_own_stays_so(number: signal.Signals) -> None:
    came = []
    for handler in (signal.SIG_IGN, lambda *_: came.append(number)):  # the first is nohup's doing
        before = signal.signal(number, handler)
        interrupts = Interrupts()
        interrupts.listen()
        try:
            signal.raise_signal(number)
        finally:
            interrupts.ignore()
            assert signal.signal(number, before) == handler
        assert interrupts.received is None
    assert came == [number]


def test_one_that_listens_within_another_takes_over() -> None:
    outer, inner = Interrupts(), Interrupts()
    outer.listen()
    inner.listen()
    signal.raise_signal(signal.SIGUSR1)
    inner.ignore()
    signal.raise_signal(signal.SIGHUP)
    outer.ignore()
    assert (outer.received, inner.received) == (signal.SIGHUP, signal.SIGUSR1)


def test_the_first_signal_is_told_at_once_and_only_once() -> None:
    told: queue.Queue[signal.Signals] = queue.Queue()
    interrupts = Interrupts(told.put)
    interrupts.listen()
    try:
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGTERM)
        assert told.get(timeout=10) == signal.SIGTERM
    finally:
        interrupts.ignore()
    assert told.empty()


#: A program whose first interrupt is lost: in a destructor, as of a library, or in a careless `except:`.
LOSING = """
import os, signal, sys, time
import densecl.cli, densecl.interrupts, densecl.__main__ as front
densecl.interrupts.INSIST = 0.5

class Destroyed:
    def __del__(self):
        os.kill(os.getpid(), signal.{number})
        time.sleep(0.1)

def main():
    if {destructor}:
        Destroyed()
    else:
        try:
            os.kill(os.getpid(), signal.{number})
            time.sleep(5)
        except:
            pass
    try:
        time.sleep(20)
        print("still here")
    finally:
        print("in order")
    return 0

densecl.cli.main = main
sys.exit(front.run())
"""


@pytest.mark.parametrize(("number", "destructor"), [("SIGINT", True), ("SIGINT", False), ("SIGTERM", True)])
def test_a_signal_that_a_library_swallows_still_ends_the_command(number: str, destructor: bool) -> None:
    program = LOSING.format(number=number, destructor=destructor)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=30)
    told = "densecl: interrupted\n" if number == "SIGINT" else ""
    assert (done.returncode, done.stdout, done.stderr) == (128 + signal.Signals[number], "in order\n", told)


#: `densecl`, which says when it has begun to listen.
TELLING = """
import densecl.interrupts, densecl.__main__ as front
listen = densecl.interrupts.Leaving.listen
densecl.interrupts.Leaving.listen = lambda self: (listen(self), print(1, flush=True))
raise SystemExit(front.run())
"""


@pytest.mark.parametrize("seconds", [0.0, 0.1])
def test_ctrl_c_at_the_start_is_quiet(seconds: float, tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "1.png")
    started = [sys.executable, "-c", TELLING, "check", "--data", str(tmp_path)]
    with subprocess.Popen(started, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "1\n"
        time.sleep(seconds)
        process.send_signal(signal.SIGINT)
        _, told = process.communicate(timeout=30)
    assert (process.returncode, told.splitlines()[-1]) == (130, "densecl: interrupted")
    assert "Traceback" not in told
