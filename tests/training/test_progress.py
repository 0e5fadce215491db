from __future__ import annotations

import io

import pytest
from rich.console import Console

from densecl.training.progress import Display, duration

ROW = {"step": 1, "epoch": 0.1, "loss": 4.25, "images_per_second": 80.0, "data_wait": 0.07}


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
        display.row(ROW | {"step": step}, seconds_left=90.0)
        display.step(step, 90.0)
    display.close()
    lines = text.getvalue().splitlines()
    assert lines == [
        "step 1/50  epoch 0.10  loss 4.250  80 images/s  waiting for data 7%  1 min 30 s left",
        "step 50/50  epoch 0.10  loss 4.250  80 images/s  waiting for data 7%  1 min 30 s left",
    ]


def test_a_terminal_gets_a_bar_with_the_numbers() -> None:
    text = io.StringIO()
    display = Display(Console(file=text, force_terminal=True, width=140), total_steps=50, start_step=10)
    display.row(ROW, seconds_left=90.0)
    display.step(11, 90.0)
    display.close()
    assert "11/50" in text.getvalue()
    assert "loss 4.250  80 images/s  waiting for data 7%  1 min 30 s left" in text.getvalue()
