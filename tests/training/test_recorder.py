from __future__ import annotations

from densecl.training.recorder import _shown


def test_what_a_row_shows() -> None:
    row = {"step": 1, "epoch": 0.1, "loss": 4.25, "images_per_second": 80.0, "data_wait": 0.07}
    assert _shown(row) == "epoch 0.10  loss 4.250  80 images/s  waiting for data 7%"
