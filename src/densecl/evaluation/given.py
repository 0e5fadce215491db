"""What a caller in Python gives for a class of settings, brought to the settings' own types.

A flag takes one label or several, and `640x480` or one number for a square. So does a call: ``ignore=0``,
``image_size=96``. What is of another type is refused in a line, as on the command line.
"""

from __future__ import annotations

import dataclasses
import numbers
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar, get_type_hints

from densecl.errors import UserError, flag, nearest

Made = TypeVar("Made")


def make_settings(kind: type[Made], given: Mapping[str, Any]) -> Made:
    """An instance of a class of settings, whose fields were made by `setting`.

    Args:
        kind: the class.
        given: values by name. None is taken where the setting may be left out.

    Raises:
        UserError: there is no such setting, or a value of it is of another type or out of its range.
    """
    kinds = get_type_hints(kind)
    names = [each.name for each in dataclasses.fields(kind)]  # pyright: ignore[reportArgumentType]
    values = {}
    for name, value in given.items():
        if name not in names:
            raise UserError(f"There is no setting {flag(name)}.{nearest(name, names)}")
        form = _FORMS[kinds[name]]
        try:
            values[name] = None if value is None and form.optional else form.read(value)
        except (TypeError, ValueError):
            raise UserError(f"{flag(name)} takes {form.what}, not {value!r}.") from None
    return kind(**values)


def sides(text: str) -> tuple[int, int]:
    """(width, height) from "640x480", or from one number for a square.

    Raises:
        ValueError: it is neither.
    """
    found = text.lower().split("x")
    if len(found) > 2 or not all(side.isdecimal() for side in found):
        raise ValueError(text)
    return int(found[0]), int(found[-1])


def _whole(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise TypeError
    return int(value)


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError
    return float(value)


def _switch(value: Any) -> bool:
    if not isinstance(value, bool):
        raise TypeError
    return value


def _text(value: Any) -> str:
    if not isinstance(value, str | os.PathLike):
        raise TypeError
    return os.fspath(value)


def _size(value: Any) -> tuple[int, int]:
    if isinstance(value, str):
        return sides(value)
    if isinstance(value, numbers.Integral):
        return _whole(value), _whole(value)
    width, height = map(_whole, value)
    return width, height


def _several(one: Callable[[Any], Any]) -> Callable[[Any], tuple[Any, ...]]:
    """One value, or a sequence of them."""

    def read(value: Any) -> tuple[Any, ...]:
        alone = isinstance(value, str | os.PathLike | numbers.Number)
        return tuple(map(one, (value,) if alone else value))

    return read


@dataclasses.dataclass(frozen=True)
class _Form:
    """How a value of a type may be given."""

    read: Callable[[Any], Any]
    what: str  # in words
    optional: bool = False


#: A row for each type that a setting has.
_FORMS: dict[Any, _Form] = {
    bool: _Form(_switch, "True or False"),
    int: _Form(_whole, "a whole number"),
    int | None: _Form(_whole, "a whole number", optional=True),
    float: _Form(_number, "a number"),
    float | None: _Form(_number, "a number", optional=True),
    str: _Form(_text, "a text"),
    str | None: _Form(_text, "a text", optional=True),
    tuple[int, int] | None: _Form(_size, "WIDTHxHEIGHT or one number", optional=True),
    float | Sequence[float]: _Form(_several(_number), "numbers"),
    Sequence[int]: _Form(_several(_whole), "whole numbers"),
    Sequence[str]: _Form(_several(_text), "texts"),
}
