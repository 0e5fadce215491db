"""What was asked for, and what a run does: the settings before and after "auto" is resolved."""

from __future__ import annotations

import dataclasses
from typing import Any, Never

from densecl.choices import Auto
from densecl.config.checks import check
from densecl.config.settings import Settings


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recipe(Settings[Auto]):
    """What was asked for. "auto" stands for what the run shall choose; None ("none") for what is not wanted.

    `compose.make_recipe` makes one from a preset, files and settings.

    Raises:
        UserError: a value out of its range, or settings that contradict each other.
    """

    def __post_init__(self) -> None:
        check(self)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Resolved(Settings[Never]):
    """What a run does: every "auto" is resolved. None stands for what the method does not have.

    Raises:
        UserError: as `Recipe`.
    """

    def __post_init__(self) -> None:
        check(self)

    @property
    def images_at_once(self) -> int:
        """How many of a step's images a device computes together."""
        return self.batch_size // (self.processes * self.accumulate)


def settle(settings: Settings[Any], **chosen: Any) -> Settings[Any]:
    """The settings with values that the run chose itself, on record as such."""
    return dataclasses.replace(settings, **chosen, settled=tuple(sorted({*settings.settled, *chosen})))
