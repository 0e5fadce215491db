"""What changes during a run: learning rate, dense weight, key momentum and temperatures.

All of it follows from the step and from the fraction of the run that is done: step / steps, or elapsed / limit with a
time limit. A schedule has no state, so none has to be saved. A run that is extended follows the schedule of its new
length from where it stands.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from typing import NamedTuple

from densecl.model import Scheduled


class Settings(NamedTuple):
    """The scheduled settings of one step."""

    learning_rate: float
    method: Scheduled  # for `DenseCL.set_schedule`
    backbone_factor: float = 1.0  # of the backbone's learning rate; 0: it is frozen


def cosine(start: float, end: float, progress: float) -> float:
    """Half a cosine wave from `start` at progress 0 to `end` at progress 1 [Loshchilov & Hutter 2017]."""
    return end + (start - end) * (1 + math.cos(math.pi * min(progress, 1.0))) / 2


def ramp(step: int | float, steps: int | float) -> float:
    """Rises linearly from 0 at step 0 to 1 at step `steps`, then stays there. Both may be fractions of the run, too."""
    return min(1.0, step / steps) if steps > 0 else 1.0


def swing(lowest: float, highest: float, period: float, progress: float) -> float:
    """A full cosine wave per `period`, starting at `highest` [Kukleva et al. 2023].

    A high temperature spreads instances evenly, a low one groups them. The swing alternates between the two.
    """
    return lowest + (highest - lowest) * (1 + math.cos(2 * math.pi * progress / period)) / 2


@dataclass(frozen=True, kw_only=True)
class Schedules:
    """All schedules of a run.

    Args:
        start: the method's settings as the model was built with them, `DenseCL.scheduled`. They stay as they are where
            nothing below changes them.
        learning_rate: its peak. A cosine takes it to 0 over the run, multiplied by the warm-up.
        warmup_steps: length of the warm-up, which rises linearly to 1; 0: none.
        warmup_share: fraction of the run by which the warm-up is over, even if it has not had its steps.
        steps_per_epoch: given, the cosine of the learning rate moves only at the first step of an epoch [paper].
        freeze_backbone_steps: steps in which only the heads learn. Over as many more the backbone rises to their rate,
            which is its warm-up: the heads' may be over by then.
        dense_warmup_steps: steps at dense weight 0 before the dense loss joins.
        key_momentum_end: where a cosine takes the key momentum by the end of the run [Grill et al. 2020].
        temperature_max: upper end of a swing of the temperature, where it starts. The lower end is that of `start`.
        temperature_period: length of one swing as a fraction of the run.
        teacher_temperature_end: where a linear warm-up takes the teacher's temperature [Caron et al. 2021].
        teacher_warmup: length of that warm-up as a fraction of the run.
    """

    start: Scheduled
    learning_rate: float
    warmup_steps: float = 0.0
    warmup_share: float = math.inf
    steps_per_epoch: Fraction | int | None = None
    freeze_backbone_steps: int = 0
    dense_warmup_steps: int = 0
    key_momentum_end: float | None = None
    temperature_max: float | None = None
    temperature_period: float = 1.0
    teacher_temperature_end: float | None = None
    teacher_warmup: float = 0.1

    def at(self, step: int, progress: float) -> Settings:
        """The settings of a step.

        Args:
            step: its number, from 0.
            progress: fraction (0-1) of the run before it.
        """
        warm = max(ramp(step + 1, self.warmup_steps), ramp(progress, self.warmup_share))
        learning_progress = progress
        if self.steps_per_epoch is not None and step > 0:
            learning_progress *= float((step // self.steps_per_epoch) * self.steps_per_epoch / step)
        dense_weight, temperature, teacher_temperature, momentum = self.start
        if momentum is not None and self.key_momentum_end is not None:
            momentum = cosine(momentum, self.key_momentum_end, progress)
        if temperature is not None and self.temperature_max is not None:
            temperature = swing(temperature, self.temperature_max, self.temperature_period, progress)
        if teacher_temperature is not None and self.teacher_temperature_end is not None:
            rise = self.teacher_temperature_end - teacher_temperature
            teacher_temperature = teacher_temperature + rise * ramp(progress, self.teacher_warmup)
        return Settings(
            learning_rate=cosine(self.learning_rate, 0.0, learning_progress) * warm,
            backbone_factor=max(0.0, ramp(step + 1 - self.freeze_backbone_steps, self.freeze_backbone_steps)),
            method=Scheduled(
                dense_weight=dense_weight if step >= self.dense_warmup_steps else 0.0,
                temperature=temperature,
                teacher_temperature=teacher_temperature,
                key_momentum=momentum,
            ),
        )
