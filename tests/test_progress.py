from __future__ import annotations

import errno
import io
import os
import sys
from pathlib import Path

import pytest
from rich.console import Console

from densecl.progress import Display, ProgressLine, Screen, duration

NUMBERS = ("loss 4.250", "match 22.5 %", "102 images/s", "waiting for data 0 %", "epoch 0.10")
ALL = "loss 4.250  match 22.5 %  102 images/s  waiting for data 0 %  epoch 0.10"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(8.4, "8 s"), (67, "1 min 7 s"), (3600, "1 h 0 min"), (4 * 3600 + 320, "4 h 5 min"), (26.5 * 3600, "1 d 2 h")],
)
def test_duration(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_without_a_terminal_there_are_few_plain_lines() -> None:
    text = io.StringIO()
    display = Display(Console(file=text), total_steps=50, start_step=0)
    for step in range(1, 51):
        display.report(step, NUMBERS, seconds_left=90.0)
        display.step(step, step / 50, 90.0)
    display.close()
    lines = text.getvalue().splitlines()
    assert lines == [
        f"step 1/50  {ALL}  1 min 30 s left",
        f"step 50/50  {ALL}  1 min 30 s left",
    ]


def test_a_terminal_gets_a_bar_with_the_numbers() -> None:
    text = io.StringIO()
    display = Display(Console(file=text, force_terminal=True, width=140), total_steps=50, start_step=10)
    display.report(11, NUMBERS, seconds_left=90.0)
    display.step(11, 0.22, 90.0)
    display.close()
    assert "11/50" in text.getvalue()
    assert f"1 min 30 s left  {ALL}" in text.getvalue()


@pytest.mark.parametrize(
    ("width", "seen"),
    [
        (80, "102/5000  1 min 30 s left  loss 4.250  match 22.5 %  102 images/s"),
        (60, "102/5000  1 min 30 s left  loss 4.250"),
        (30, "102/5000"),
    ],
)
def test_a_narrow_terminal_leaves_out_the_last_numbers_and_never_breaks_the_line(width: int, seen: str) -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=width, color_system=None)
    line = ProgressLine(102, 5000, 0.02, "1 min 30 s left", NUMBERS)
    with console.capture() as captured:
        console.print(line)
    (shown,) = captured.get().splitlines()
    assert len(shown) <= width - 3
    assert shown.lstrip("━").strip() == seen and shown.count("━") >= 10


def test_a_note_stands_in_place_of_the_numbers_until_the_next_step() -> None:
    text = io.StringIO()
    log: list[str] = []
    display = Display(Console(file=text, force_terminal=True, width=80), total_steps=5, log=log.append)
    display.note("measuring, pair 1 of 64")
    display._line.numbers = ("loss 4.250",)
    assert "measuring, pair 1 of 64" in drawn(display) and "loss" not in drawn(display)
    display.step(1, 0.2, None)
    assert "measuring" not in drawn(display) and "loss 4.250" in drawn(display)
    display.report(5, NUMBERS, 0.0)
    display.close()
    assert log == [f"step 5/5  {ALL}  0 s left"]  # the log has lines where the terminal has a bar


def drawn(display: Display) -> str:
    with display.console.capture() as captured:
        display.console.print(display._line)
    return captured.get()


@pytest.mark.parametrize("terminal", [False, True])
def test_what_is_trained_stands_before_it(terminal: bool) -> None:
    text = io.StringIO()
    display = Display(Console(file=text, force_terminal=terminal, width=140), total_steps=2, title="runs/[a], seed 0")
    display.report(1, ("loss 1.000",), seconds_left=None)
    display.close()
    assert ("runs/[a], seed 0\n" if terminal else "runs/[a], seed 0: step 1/2  loss 1.000\n") in text.getvalue()


class Gone(io.TextIOWrapper):
    """A terminal that was closed."""

    def flush(self) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))


def test_a_terminal_that_was_closed_ends_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stream = Gone((tmp_path / "tty").open("wb"), encoding="utf-8", write_through=False)
    monkeypatch.setattr(sys, "stdout", stream)
    console = Console(file=Screen())
    display = Display(console, 10)
    display.report(10, ("numbers",), 0.0)
    console.print("all is well")
    assert os.path.samestat(os.fstat(stream.fileno()), os.stat(os.devnull))
    stream.buffer.close()


def test_what_a_terminal_cannot_show_comes_as_an_escape(monkeypatch: pytest.MonkeyPatch) -> None:
    for encoding, shown in (("utf-8", "[bold]a\\udcff → ü\n"), ("ascii", "[bold]a\\udcff \\u2192 \\xfc\n")):
        stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
        monkeypatch.setattr(sys, "stdout", stream)
        Console(file=Screen()).print("[bold]a\udcff → ü", markup=False)
        stream.seek(0)
        assert stream.read() == shown
