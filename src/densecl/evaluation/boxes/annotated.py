"""What a reader of boxes returns, and how the readers check numbers from files of strangers."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from densecl.errors import UserError
from densecl.names import shown

#: Longer texts are not taken for numbers. Sign, point and exponent are included.
LONGEST_NUMBER = 40

#: No image has a longer side, in pixels.
LONGEST_SIDE = 10**7

#: Makes the error about an annotation. It is told what is wrong.
Fail = Callable[[str], UserError]

_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", re.ASCII)


class Object(NamedTuple):
    """An object as its annotation has it."""

    box: tuple[float, float, float, float]  # x0 y0 x1 y1 in pixels, or in fractions of the image's sides
    name: str  # of its class
    place: str  # of its annotation, for messages: "train.json, annotation 3"
    outline: object = None  # polygons or run lengths as the file has them; `outlines.read_outline` reads them


class Annotated(NamedTuple):
    """An image file and its objects."""

    path: Path
    objects: Sequence[Object]
    size: tuple[int, int] | None = None  # (width, height) of the image, as its annotation says; None: it does not
    relative: bool = False  # boxes are in fractions of the image's sides


class Contents(NamedTuple):
    """The annotations of a split."""

    items: list[Annotated]
    names: list[str]  # of all classes, in their order; a class may have no object


class Layout(NamedTuple):
    """A way to store boxes."""

    title: str
    files: str  # what is looked for, with SPLIT for the name of a split
    find: Callable[[Path], Mapping[str, Callable[[], Contents]]]  # the splits of a folder, each with its reader


def complaint(place: str, what: str) -> UserError:
    """The error that says where something is wrong, and what."""
    return UserError(f"{place}: {what}.")


def number(value: object) -> float | None:
    """The value of a finite number, or of a text that is one. None for anything else."""
    if isinstance(value, str):
        text = value.strip()
        value = float(text) if len(text) <= LONGEST_NUMBER and _NUMBER.fullmatch(text) else None
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        return float(value) if math.isfinite(value) else None
    except OverflowError:  # the int has hundreds of digits
        return None


def whole(value: object) -> int | None:
    """The value of a whole number from 0 on, or of a text that is one. None for anything else."""
    found = number(value)
    return int(found) if found is not None and found >= 0 and found == int(found) else None


def size(width: object, height: object, fail: Fail) -> tuple[int, int] | None:
    """The size of an image, as a file gives it. None if the file gives none, or 0, as some files do.

    Raises:
        UserError: it is no size. `fail` makes the error.
    """
    if width in (None, "", 0, "0") or height in (None, "", 0, "0"):
        return None
    sides = [whole(side) for side in (width, height)]
    if sides[0] is None or sides[1] is None or max(sides[0], sides[1]) > LONGEST_SIDE:
        raise fail(f"width and height of the image are {excerpt(width)} and {excerpt(height)}; give pixels, or neither")
    return sides[0], sides[1]


def excerpt(value: object) -> str:
    """A value of a file for a message: short, and not in Python's words, such as None."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return f"{value:g}" if isinstance(value, float) else (str(value) if abs(value) < 10**20 else "a huge number")
    if isinstance(value, str):
        return f"'{shown(value, 40)}'"
    if isinstance(value, list):
        simple = len(value) <= 8 and not any(isinstance(each, list | dict) for each in value)
        return f"[{', '.join(map(excerpt, value))}]" if simple else f"a list of {len(value)}"
    return "a mapping" if isinstance(value, dict) else "something else"
