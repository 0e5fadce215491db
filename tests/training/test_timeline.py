from __future__ import annotations

import math
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from densecl.training.timeline import Timeline

SIZES = st.integers(1, 10**6)
SECONDS = st.floats(0, 1e7)
LIMITS = st.floats(1e-3, 1e7)


class Watch:
    """A clock that the test moves."""

    def __init__(self) -> None:
        self.at = 1000.0

    def __call__(self) -> float:
        return self.at


@given(SIZES, SIZES, st.integers(1, 1000))
def test_a_run_of_whole_epochs_shows_every_image_at_least_so_often_and_no_step_more(
    images: int, batch_size: int, epochs: int
) -> None:
    total = Timeline.plan(images, batch_size, epochs=epochs).total_steps
    assert total is not None
    assert (total - 1) * batch_size < epochs * images <= total * batch_size


@given(SIZES, SIZES, st.integers(0, 10**6))
def test_the_epoch_is_the_fraction_of_images_seen(images: int, batch_size: int, step: int) -> None:
    assert Timeline.plan(images, batch_size, steps=1).epoch(step) == step * batch_size / images


@given(SIZES, SIZES, st.integers(1, 10**6))
def test_a_number_of_steps_is_kept_as_it_is_and_told_in_epochs(images: int, batch_size: int, steps: int) -> None:
    timeline = Timeline.plan(images, batch_size, steps=steps)
    assert (timeline.total_steps, timeline.time_limit) == (steps, None)
    assert timeline.total_epochs == pytest.approx(steps * batch_size / images)


def test_with_a_time_limit_the_length_in_steps_and_epochs_is_unknown() -> None:
    timeline = Timeline.plan(100, 10, time_limit=60.0)
    assert (timeline.total_steps, timeline.total_epochs, timeline.time_limit) == (None, None, 60.0)
    assert timeline.steps_per_epoch == 10


@pytest.mark.parametrize(
    "length", [{}, {"epochs": 1, "steps": 10}, {"epochs": 1, "time_limit": 9.0}, {"steps": 10, "time_limit": 9.0}]
)
def test_a_run_has_exactly_one_length(length: dict) -> None:
    with pytest.raises(ValueError, match="and not both"):
        Timeline.plan(100, 10, **length)


# --- by steps -----------------------------------------------------------------------------------------


@given(st.integers(1, 10**6), SECONDS)
def test_by_steps_the_clock_does_not_matter(total: int, seconds: float) -> None:
    timeline = Timeline(Fraction(1), total_steps=total, seconds=seconds)
    assert timeline.progress(0) == 0
    assert timeline.progress(total) == 1
    assert not timeline.ended(total - 1)
    assert timeline.ended(total)


@given(st.integers(1, 10**6), st.data())
def test_a_run_is_complete_if_it_starts_at_its_end(total: int, data: st.DataObject) -> None:
    start = data.draw(st.integers(0, 2 * total))
    timeline = Timeline(Fraction(1), total_steps=total).going_on(start, 9.0)
    assert timeline.complete == (start >= total)


@given(st.integers(1, 10**6), st.floats(0.01, 1000), st.data())
def test_by_steps_the_time_left_follows_from_the_speed(total: int, speed: float, data: st.DataObject) -> None:
    done = data.draw(st.integers(0, total))
    timeline = Timeline(Fraction(1), total_steps=total, seconds=1e9)
    assert timeline.seconds_left(done, speed) == pytest.approx((total - done) / speed)
    assert timeline.seconds_left(total, speed) == 0


@pytest.mark.parametrize("speed", [None, 0.0])
def test_by_steps_without_a_speed_there_is_no_estimate(speed: float | None) -> None:
    assert Timeline(Fraction(1), total_steps=5).seconds_left(1, speed) is None


# --- by the clock -------------------------------------------------------------------------------------


@given(LIMITS, SECONDS, st.integers(0, 10**6))
def test_by_the_clock_the_step_does_not_matter(limit: float, seconds: float, step: int) -> None:
    timeline = Timeline(Fraction(1), time_limit=limit, start_step=step, seconds=seconds)
    assert timeline.progress(step) == pytest.approx(min(1.0, seconds / limit))
    assert timeline.ended(step) == timeline.complete == (seconds >= limit)
    assert (timeline.progress(step) == 1) >= timeline.ended(step)
    left = timeline.seconds_left(step, None)
    assert left == max(0.0, limit - seconds)


@given(SECONDS, st.lists(st.floats(0, 1e5), max_size=5))
def test_the_clock_counts_from_the_start_of_training_and_goes_on_from_before(before: float, laps: list[float]) -> None:
    watch = Watch()
    timeline = Timeline(Fraction(1), time_limit=1.0, now=watch).going_on(3, before)
    watch.at += 50  # the time until training starts does not count
    assert timeline.read() == before
    timeline.start()
    for lap in laps:
        watch.at += lap
    assert timeline.read() == pytest.approx(before + math.fsum(laps))


def test_what_follows_from_the_time_follows_from_what_all_processes_agreed_upon() -> None:
    watch = Watch()
    timeline = Timeline(Fraction(1), time_limit=100.0, now=watch)
    timeline.start()
    watch.at += 99.0
    assert (timeline.progress(7), timeline.seconds_left(7, None)) == (0.0, 100.0)
    timeline.seconds = 100.5  # another process's clock is ahead
    assert timeline.ended(7)
    assert timeline.read() == 99.0  # this one's goes on as it was
