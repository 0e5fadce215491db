"""One setting: its default, its range, what it means, and how a resumed run treats it, all in one place."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeVar, dataclass_transform

from densecl.errors import UserError, flag

#: Stands for "auto" in the types of settings: in a `Recipe` it is `Auto`, in a `Resolved` nothing.
Open = TypeVar("Open")

Group = TypeVar("Group", bound=type)


class Range(NamedTuple):
    """Which values a setting takes."""

    holds: Callable[[Any], bool]
    demand: str  # what a complaint says, after the flag


FRACTION = Range(lambda value: 0 <= value <= 1, "must lie in 0..1")
FRACTION_ABOVE_0 = Range(lambda value: 0 < value <= 1, "must lie above 0 and up to 1")
COUNT = Range(lambda value: value >= 1, "must be at least 1")
POSITIVE = Range(lambda value: 0 < value < math.inf, "must be greater than 0")
NOT_NEGATIVE = Range(lambda value: 0 <= value < math.inf, "must be at least 0")
TEXT = Range(lambda text: bool(text.strip()), "must not be empty")
VIEW_SIZE = Range(lambda size: size >= 16, "must be at least 16 pixels")
AREA = Range(lambda scale: 0 < scale[0] <= scale[1] <= 1, "takes a smallest and a largest fraction in 0..1")
TIME = Range(lambda text: seconds_in(text) > 0, "must be longer than nothing")


class Meaning(NamedTuple):
    """What is known of a setting beside its type and default."""

    help: str
    range: Range | None
    choices: Mapping[str, str]  # what each word means, if the value is one of several words
    free: bool  # whether a resumed run may have another value
    before: Any  # its value in recipes that are older than the setting; None: no recipe is


def setting(
    default: Any = dataclasses.MISSING,
    help: str = "",
    range: Range | None = None,
    *,
    choices: Mapping[str, str] | None = None,
    free: bool = False,
    before: Any = None,
) -> Any:
    """A field of the settings; the arguments are those of `Meaning`."""
    meaning = Meaning(help, range, choices or {}, free, before)
    return dataclasses.field(default=default, metadata={"meaning": meaning})


def meaning_of(field: dataclasses.Field[Any]) -> Meaning:
    return field.metadata["meaning"]


@dataclass_transform(kw_only_default=True, frozen_default=True)
def settings(group: Group) -> Group:
    """Makes a class of settings a frozen dataclass."""
    return dataclasses.dataclass(frozen=True, kw_only=True)(group)


def seconds_in(text: str) -> float:
    """Seconds in "90s", "8m", "12h" or "2d".

    Raises:
        ValueError: anything else.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([smhd])", text.strip())
    if match is None:
        raise ValueError(text)
    return float(match[1]) * {"s": 1, "m": 60, "h": 3600, "d": 86400}[match[2]]


def check_range(field: dataclasses.Field[Any], value: Any) -> None:
    """
    Raises:
        UserError: if the value is out of the setting's range. "auto" and None have none.
    """
    allowed = meaning_of(field).range
    if allowed is None or value is None or value == "auto":
        return
    try:
        holds = allowed.holds(value)
    except ValueError as error:
        form = "a number and a unit, such as 90s, 8m, 12h or 2d"
        raise UserError(f"{flag(field.name)} takes {form}, not '{value}'.") from error
    if not holds:
        shown = " ".join(map(str, value)) if isinstance(value, tuple) else value
        raise UserError(f"{flag(field.name)} {allowed.demand}, not {shown}.")
