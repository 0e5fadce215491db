from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from densecl.training.window import Window

SECONDS = st.floats(0.001, 100)


class Watch:
    """A clock that the test moves."""

    at = 0.0

    def __call__(self) -> float:
        return self.at


@given(st.lists(st.tuples(SECONDS, SECONDS, SECONDS), min_size=1, max_size=5), SECONDS, st.integers(1, 64))
def test_work_and_waiting_are_told_apart_and_what_follows_a_batch_is_neither(
    batches: list[tuple[float, float, float]], device: float, batch_size: int
) -> None:
    watch = Watch()
    window = Window(watch)
    waited = worked = 0.0
    for number, (wait, work, after) in enumerate(batches):
        watch.at += wait
        window.fetched()
        waited += wait if number > 0 else 0.0  # the first batch comes with the start of the workers
        watch.at += work
        window.worked()
        worked += work
        if number < len(batches) - 1:
            watch.at += after  # a checkpoint is saved
            window.batch_ended()
    watch.at += device  # a GPU is still at work
    total = waited + worked + device
    assert window.close(batch_size) == pytest.approx((len(batches) * batch_size / total, waited / total))


def test_each_window_measures_its_own_time() -> None:
    watch = Watch()
    window = Window(watch)
    for wait, work, expected in ((5.0, 2.0, (4.0, 0.0)), (3.0, 1.0, (2.0, 0.75)), (0.0, 0.5, (16.0, 0.0))):
        watch.at += wait
        window.fetched()
        watch.at += work
        window.worked()
        assert window.close(8) == pytest.approx(expected)
        window.batch_ended()
