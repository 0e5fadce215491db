"""From a recipe and the facts to what the run does. Pure: no file, no torch, the same answer every time."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

from densecl.config.facts import Facts
from densecl.config.feasible import check_feasible, warnings
from densecl.config.recipe import Resolved
from densecl.config.rules import RULES, Choice
from densecl.config.settings import Settings
from densecl.errors import flag


class Resolution(NamedTuple):
    """What a run does, and what its user should know of it."""

    resolved: Resolved
    reasons: tuple[str, ...]  # a line for each choice that is worth one
    warnings: tuple[str, ...]


def resolve(asked: Settings[Any], facts: Facts) -> Resolution:
    """Chooses what was left at "auto", and checks that all of it goes together.

    Args:
        asked: devices and nodes given; a `Resolved`, as of a run that is resumed, comes back as it is.
        facts: of the images, the backbone, the starting weights and the machine.

    Raises:
        UserError: if the settings do not go with each other or with the facts.
    """
    values = {field.name: getattr(asked, field.name) for field in dataclasses.fields(asked)}
    settled, reasons = set(asked.settled), []
    for rule in RULES:
        if values[rule.settings[0]] != "auto":
            continue
        choice = rule.apply(values, facts)
        values |= choice.values
        settled |= choice.values.keys()
        if choice.because is not None:
            reasons.append(_line(choice))
    resolved = Resolved(**{**values, "settled": tuple(sorted(settled))})
    check_feasible(resolved, facts)
    return Resolution(resolved, tuple(reasons), tuple(warnings(resolved, facts)))


def _line(choice: Choice) -> str:
    """Such as "--batch-size 64 (for 1000 images on a CPU)"."""
    chosen = " ".join(_typed(name, value) for name, value in choice.values.items())
    return f"{chosen} ({choice.because})" if choice.because else chosen


def _typed(name: str, value: Any) -> str:
    if isinstance(value, bool):
        return flag(name) if value else flag(f"no-{name}")
    if isinstance(value, tuple):
        return f"{flag(name)} {' '.join(f'{number:.4g}' for number in value)}"
    return f"{flag(name)} {value:.4g}" if isinstance(value, float) else f"{flag(name)} {value}"
