from __future__ import annotations

import math
from fractions import Fraction

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from densecl.model import Scheduled
from densecl.training.schedules import Schedules, cosine

PLAIN = Scheduled(dense_weight=0.5, key_momentum=0.999, temperature=0.2)


@given(st.integers(2, 300), st.floats(1e-3, 10))
def test_the_rate_is_torchs_cosine(steps: int, peak: float) -> None:
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=peak)
    reference = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=steps)
    schedules = Schedules(learning_rate=peak, start=PLAIN)
    for step in range(steps):
        assert schedules.at(step, step / steps).learning_rate == pytest.approx(
            reference.get_last_lr()[0], abs=1e-9 * peak
        )
        optimizer.step()
        reference.step()


@given(st.integers(1, 20), st.integers(1, 30), st.integers(1, 30))
def test_per_epoch_the_rate_keeps_the_value_of_the_epochs_start(epochs: int, images: int, batch_size: int) -> None:
    schedules = Schedules(learning_rate=0.3, steps_per_epoch=Fraction(images, batch_size), start=PLAIN)
    total = epochs * images / batch_size
    for step in range(math.ceil(total)):
        epoch = step * batch_size // images
        expected = 0.15 * (1 + math.cos(math.pi * epoch / epochs))  # mmcv's CosineAnnealing by epoch
        assert schedules.at(step, step / total).learning_rate == pytest.approx(expected)


def test_the_warm_up_rises_linearly_and_multiplies_the_cosine() -> None:
    warm, cold = Schedules(learning_rate=1.0, warmup_steps=10.0, start=PLAIN), Schedules(learning_rate=1.0, start=PLAIN)
    for step in range(40):
        rate, unwarmed = (schedules.at(step, step / 40).learning_rate for schedules in (warm, cold))
        assert rate == pytest.approx(min((step + 1) / 10, 1) * unwarmed)


@given(st.floats(0, 500), st.integers(1, 300), st.booleans())
def test_no_step_is_lost_to_the_warm_up(warmup: float, steps: int, per_epoch: bool) -> None:
    schedules = Schedules(
        learning_rate=1.0, warmup_steps=warmup, steps_per_epoch=Fraction(7, 2) if per_epoch else None, start=PLAIN
    )
    rates = [schedules.at(step, step / steps).learning_rate for step in range(steps)]
    assert all(rate > 0 for rate in rates)
    last = math.ceil(warmup) - 1  # of the warm-up
    if 0 <= last < steps:
        cold = Schedules(learning_rate=1.0, steps_per_epoch=schedules.steps_per_epoch, start=PLAIN)
        assert rates[last:] == [cold.at(step, step / steps).learning_rate for step in range(last, steps)]


def test_a_warm_up_is_over_by_its_share_of_the_run() -> None:
    schedules = Schedules(learning_rate=1.0, warmup_steps=1000.0, warmup_share=0.1, start=PLAIN)
    cold = Schedules(learning_rate=1.0, start=PLAIN)
    shares = [schedules.at(step, step / 50).learning_rate / cold.at(step, step / 50).learning_rate for step in range(8)]
    assert shares == pytest.approx([0.001, 0.2, 0.4, 0.6, 0.8, 1, 1, 1])


def test_the_key_momentum_follows_byol() -> None:
    schedules = Schedules(learning_rate=1.0, start=PLAIN, key_momentum_end=1.0)
    for step in range(101):
        expected = 1 - (1 - 0.999) * (math.cos(math.pi * step / 100) + 1) / 2  # Grill et al. 2020
        assert schedules.at(step, step / 100).method.key_momentum == pytest.approx(expected, abs=1e-12)
    assert Schedules(learning_rate=1.0, start=PLAIN).at(70, 0.7).method.key_momentum == 0.999


def test_the_teachers_temperature_rises_and_stays() -> None:
    schedules = Schedules(
        learning_rate=1.0,
        start=PLAIN._replace(teacher_temperature=0.04),
        teacher_temperature_end=0.07,
        teacher_warmup=0.5,
    )
    found = [schedules.at(0, progress / 4).method.teacher_temperature for progress in range(5)]
    assert found == pytest.approx([0.04, 0.055, 0.07, 0.07, 0.07])
    assert Schedules(learning_rate=1.0, start=PLAIN).at(3, 0.5).method.teacher_temperature is None


def test_what_a_method_does_not_have_is_not_scheduled() -> None:
    found = Schedules(learning_rate=1.0, start=Scheduled(0.5)).at(3, 0.5).method
    assert found.key_momentum is None and found.temperature is None


def test_the_temperature_swings_between_its_ends() -> None:
    schedules = Schedules(learning_rate=1.0, start=PLAIN, temperature_max=1.0, temperature_period=0.5)
    temperatures = [schedules.at(0, progress / 8).method.temperature for progress in range(9)]
    assert temperatures == pytest.approx([1.0, 0.6, 0.2, 0.6, 1.0, 0.6, 0.2, 0.6, 1.0])


def test_the_dense_loss_joins_after_its_warm_up() -> None:
    schedules = Schedules(learning_rate=1.0, dense_warmup_steps=3, start=PLAIN)
    assert [schedules.at(step, 0.0).method.dense_weight for step in range(5)] == [0, 0, 0, 0.5, 0.5]


@given(st.floats(0, 2), st.floats(0, 1), st.floats(0, 1))
def test_a_cosine_stays_between_its_ends(progress: float, start: float, end: float) -> None:
    assert min(start, end) - 1e-12 <= cosine(start, end, progress) <= max(start, end) + 1e-12


def test_the_backbone_joins_after_the_heads_and_then_rises_to_their_rate() -> None:
    schedules = Schedules(start=Scheduled(dense_weight=0.5), learning_rate=1.0, freeze_backbone_steps=4)
    factors = [schedules.at(step, 0.0).backbone_factor for step in range(10)]
    assert factors == [0.0] * 4 + [0.25, 0.5, 0.75] + [1.0] * 3
    assert Schedules(start=Scheduled(dense_weight=0.5), learning_rate=1.0).at(0, 0.0).backbone_factor == 1.0
