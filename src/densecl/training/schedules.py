"""What changes during a run: the learning rate, the dense weight, the key momentum, the temperature.

Everything is a function of the step and of the share of the run that is behind it. That share is
step / steps, or with a time limit elapsed / limit. No schedule has a state, so none has to be saved,
and a run that is extended simply follows the schedule of its new length from where it stands.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from typing import NamedTuple


class Settings(NamedTuple):
    """The scheduled settings of one step."""

    learning_rate: float
    dense_weight: float
    key_momentum: float | None
    temperature: float | None
    teacher_temperature: float | None


def cosine(start: float, end: float, progress: float) -> float:
    """Half a cosine wave from `start` at progress 0 to `end` at progress 1 [Loshchilov & Hutter 2017]."""
    return end + (start - end) * (1 + math.cos(math.pi * min(progress, 1.0))) / 2


def ramp(step: int | float, steps: float) -> float:
    """Rises linearly from 0 at step 0 to 1 at step `steps`, and stays there. (Or in shares of the run.)"""
    return min(1.0, step / steps) if steps > 0 else 1.0


def swing(lowest: float, highest: float, period: float, progress: float) -> float:
    """A full cosine wave a `period`, beginning at `highest` [Kukleva et al. 2023].

    A high temperature spreads instances evenly, a low one groups them; the swing alternates between the two.
    """
    return lowest + (highest - lowest) * (1 + math.cos(2 * math.pi * progress / period)) / 2


@dataclass(frozen=True, kw_only=True)
class Schedules:
    """All schedules of a run.

    Args:
        learning_rate: its peak. It follows a cosine over the whole run down to 0, multiplied by the warm-up.
        warmup_steps: steps over which the warm-up rises linearly, from one share in the first to 1 in the last; 0: no
            warm-up.
        warmup_share: share of the run by which the warm-up is over even if it has not had its steps.
        steps_per_epoch: given, the cosine of the learning rate moves with the first step that begins in a new epoch
            only [paper].
        dense_weight: share of the dense loss, once it has joined.
        dense_warmup_steps: steps at dense weight 0 before that.
        key_momentum: at the start, and always if there is no `key_momentum_end`. What a method does not have is None.
        key_momentum_end: at the end of a cosine [Grill et al. 2020].
        temperature: of the softmax over similarities; with `temperature_max`, the lower end of the swing.
        temperature_max: the upper end, where the swing begins.
        temperature_period: length of one swing as a share of the run.
        teacher_temperature: at the start, and after a warm-up that rises linearly [Caron et al. 2021].
        teacher_warmup: length of that warm-up as a share of the run.
    """

    learning_rate: float
    warmup_steps: float = 0.0
    warmup_share: float = math.inf
    steps_per_epoch: Fraction | int | None = None
    dense_weight: float
    dense_warmup_steps: int = 0
    key_momentum: float | None
    key_momentum_end: float | None = None
    temperature: float | None
    temperature_max: float | None = None
    temperature_period: float = 1.0
    teacher_temperature: tuple[float, float] | None = None
    teacher_warmup: float = 0.1

    def at(self, step: int, progress: float) -> Settings:
        """The settings of the step with this number (from 0), before which `progress` (0-1) of the run has passed."""
        warm = max(ramp(step + 1, self.warmup_steps), ramp(progress, self.warmup_share))
        learning_progress = progress
        if self.steps_per_epoch is not None and step > 0:
            learning_progress *= float((step // self.steps_per_epoch) * self.steps_per_epoch / step)
        momentum = self.key_momentum
        if momentum is not None and self.key_momentum_end is not None:
            momentum = cosine(momentum, self.key_momentum_end, progress)
        temperature = self.temperature
        if temperature is not None and self.temperature_max is not None:
            temperature = swing(temperature, self.temperature_max, self.temperature_period, progress)
        teacher_temperature = None
        if self.teacher_temperature is not None:
            start, end = self.teacher_temperature
            teacher_temperature = start + (end - start) * ramp(progress, self.teacher_warmup)
        return Settings(
            learning_rate=cosine(self.learning_rate, 0.0, learning_progress) * warm,
            dense_weight=self.dense_weight if step >= self.dense_warmup_steps else 0.0,
            key_momentum=momentum,
            temperature=temperature,
            teacher_temperature=teacher_temperature,
        )
