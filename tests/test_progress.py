from __future__ import annotations

import io

import pytest
from rich.console import Console

from densecl.progress import Display, duration

NUMBERS = "epoch 0.10  loss 4.250"


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
        display.step(step, 90.0)
    display.close()
    lines = text.getvalue().splitlines()
    assert lines == [
        "step 1/50  epoch 0.10  loss 4.250  1 min 30 s left",
        "step 50/50  epoch 0.10  loss 4.250  1 min 30 s left",
    ]


def test_a_terminal_gets_a_bar_with_the_numbers() -> None:
    text = io.StringIO()
    display = Display(Console(file=text, force_terminal=True, width=140), total_steps=50, start_step=10)
    display.report(11, NUMBERS, seconds_left=90.0)
    display.step(11, 90.0)
    display.close()
    assert "11/50" in text.getvalue()
    assert "epoch 0.10  loss 4.250  1 min 30 s left" in text.getvalue()


@pytest.mark.parametrize("terminal", [False, True])
def test_what_is_trained_stands_before_it(terminal: bool) -> None:
    text = io.StringIO()
    display = Display(Console(file=text, force_terminal=terminal, width=140), total_steps=2, title="runs/[a], seed 0")
    display.report(1, "loss 1.000", seconds_left=None)
    display.close()
    assert ("runs/[a], seed 0\n" if terminal else "runs/[a], seed 0: step 1/2  loss 1.000\n") in text.getvalue()
