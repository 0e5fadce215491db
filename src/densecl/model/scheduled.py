"""What a run may change of a method between two steps."""

from __future__ import annotations

from typing import NamedTuple


class Scheduled(NamedTuple):
    """The settings that may change from step to step. None: the method does not have it."""

    dense_weight: float
    temperature: float | None = None
    teacher_temperature: float | None = None
    key_momentum: float | None = None
