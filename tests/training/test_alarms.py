from __future__ import annotations

import math

import pytest

from densecl.errors import UserError
from densecl.training.alarms import PATIENCE, CollapseAlarm


def healthy(**changes: float) -> dict[str, float]:
    return {"image_spread": 0.3, "cell_spread": 0.3, "dense_weight": 0.5} | changes


@pytest.mark.parametrize("name", ["image_spread", "cell_spread"])
def test_the_alarm_needs_patience(name: str) -> None:
    alarm = CollapseAlarm()
    for step in range(PATIENCE - 1):
        alarm.check(step, healthy(**{name: 1e-6}))
    alarm.check(PATIENCE, healthy())  # it recovered
    for step in range(PATIENCE - 1):
        alarm.check(step, healthy(**{name: 1e-6}))
    with pytest.raises(UserError, match=rf"Step 77: collapsed.*{name}.*base_learning_rate"):
        alarm.check(77, healthy(**{name: 1e-6}))


def test_cells_do_not_alarm_while_they_are_not_trained() -> None:
    alarm = CollapseAlarm()
    for step in range(3 * PATIENCE):
        alarm.check(step, healthy(cell_spread=0.0, dense_weight=0.0))
        alarm.check(step, healthy(image_spread=math.nan))  # batch of one


@pytest.mark.parametrize(("dense_weight", "told"), [(0.0, True), (0.5, False)])
def test_the_global_loss_alone_is_told_of_the_dense_one(dense_weight: float, told: bool) -> None:
    alarm = CollapseAlarm()
    row = healthy(image_spread=0.0, dense_weight=dense_weight)
    for step in range(PATIENCE - 1):
        alarm.check(step, row)
    with pytest.raises(UserError) as raised:
        alarm.check(PATIENCE, row)
    assert ("dense_weight=0.5" in str(raised.value)) == told
