from __future__ import annotations

import math

from densecl.model import Scheduled
from densecl.training.diagnosis import MEASURES
from densecl.training.metrics import COLUMNS, TIMINGS, in_brief, metrics_row
from densecl.training.schedules import Settings


def test_a_row_has_a_value_for_every_column() -> None:
    settings = Settings(0.1, Scheduled(dense_weight=0.5, key_momentum=0.99, temperature=0.2))
    row = metrics_row(12, 1.5, [float(number) for number in range(len(MEASURES))], settings, (80.0, 0.25, 9.0))
    assert set(row) == set(COLUMNS)
    assert len(COLUMNS) == len(set(COLUMNS))
    assert (row["step"], row["epoch"], row["loss"], row["feature_spread"]) == (12, 1.5, 0.0, len(MEASURES) - 1)
    assert (row["learning_rate"], row["dense_weight"], row["key_momentum"], row["temperature"]) == (0.1, 0.5, 0.99, 0.2)
    assert [row[name] for name in TIMINGS] == [80.0, 0.25, 9.0]


def test_what_a_method_does_not_have_is_nan() -> None:
    row = metrics_row(1, 0.0, [0.0] * len(MEASURES), Settings(0.1, Scheduled(dense_weight=0.5)), (1.0, 0.0, 1.0))
    assert math.isnan(row["key_momentum"]) and math.isnan(row["temperature"])


def test_what_a_row_shows() -> None:
    row = {"step": 1, "epoch": 0.1, "loss": 4.25, "images_per_second": 80.0, "data_wait": 0.07}
    watched = {"step": 1, "probe": 34.04, "match_accuracy": 0.2249, "effective_rank": 87.4, "apart": 40.0}
    brief = in_brief(row, watched, in_epochs=True)
    shown = ["loss 4.250", "probe 34.0 mIoU", "match 22.5 %", "rank 87", "80 images/s", "waiting for data 7 %"]
    assert brief == [*shown, "epoch 0.10"]
    slow = in_brief({**row, "images_per_second": 0.42}, {}, in_epochs=False)
    assert slow == ["loss 4.250", "0.4 images/s", "waiting for data 7 %"]


def test_a_resumed_run_has_no_speed_before_its_first_row() -> None:
    assert in_brief({"epoch": 1.5, "loss": 4.25}, {}, in_epochs=True) == ["loss 4.250", "epoch 1.50"]
