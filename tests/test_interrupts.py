"""Signals that ask to stop."""

from __future__ import annotations

import queue
import signal

import pytest

from densecl.interrupts import STOPPING, Interrupts


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
