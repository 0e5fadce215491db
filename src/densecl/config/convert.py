"""From what was typed, read from YAML or given in Python to the type of the setting."""

from __future__ import annotations

import numbers
import os
import types
from collections.abc import Mapping
from typing import Any, Literal, Union, get_args, get_origin

from densecl.config.settings import setting_types
from densecl.errors import UserError, flag, nearest
from densecl.names import listing
from densecl.synonyms import meant


def convert_all(settings: Mapping[Any, Any], where: str) -> dict[str, Any]:
    """Checks the names of `settings` and brings the values to their types; `where` begins a complaint."""
    types_by_name = setting_types()
    converted = {}
    for given, value in settings.items():
        name = str(given).replace("-", "_")
        if name not in types_by_name:
            raise UserError(f"{where}unknown setting '{given}'.{meant(name, types_by_name)}")
        converted[name] = convert(name, value, where)
    return converted


def convert(name: str, value: object, where: str = "") -> Any:
    """Brings the value of a setting to its type.

    Strings are read as numbers where the type is one ("1e-4" is a string to YAML). Lists become tuples. "none" is
    None where the setting may be left out.

    Args:
        name: of the setting.
        value: as typed, as read from YAML, or as given in Python.
        where: what a complaint begins with, such as the name of the file.

    Raises:
        UserError: the value does not fit the type.
    """
    kind = setting_types()[name]
    try:
        return _as(kind, value)
    except (ValueError, TypeError, OverflowError):
        shown = " ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)
        shown = shown if len(shown) <= 80 else shown[:77] + "..."
        hint = nearest(shown, words_of(kind))
        message = f"{where}{flag(name)} takes {_describe(kind)}, not '{shown}'.{hint}"
        raise UserError(message) from None


def members(kind: Any) -> tuple[Any, ...]:
    """The types of a union; a type that is none is its only member."""
    return get_args(kind) if get_origin(kind) in (Union, types.UnionType) else (kind,)


def words_of(kind: Any) -> list[str]:
    """The words that `kind` takes, "auto" first, if it is or holds a Literal."""
    if get_origin(kind) is Literal:
        return list(get_args(kind))
    words = [word for member in get_args(kind) for word in words_of(member)]
    return sorted(words, key=lambda word: word != "auto")


def _as(kind: Any, value: Any) -> Any:
    """`value` as a `kind`, else ValueError or TypeError."""
    if len(members(kind)) > 1:
        return _as_any(members(kind), value)
    if get_origin(kind) is tuple:
        return _as_tuple(get_args(kind), value)
    if get_origin(kind) is Literal:
        text = str(_one(value))  # YAML reads an unquoted 32 as a number
        if isinstance(value, bool) or text not in get_args(kind):
            raise ValueError
        return text
    return _PLAIN[kind](value)


def _as_any(kinds: tuple[Any, ...], value: Any) -> Any:
    """None first, so that "none" is never taken for a text."""
    for kind in sorted(kinds, key=lambda kind: kind is not types.NoneType):
        try:
            return _as(kind, value)
        except (ValueError, TypeError):
            pass
    raise ValueError


def _as_tuple(kinds: tuple[Any, ...], value: Any) -> tuple[Any, ...]:
    if get_origin(kinds[0]) is Literal and value in ("none", ["none"]):
        return ()
    if kinds[-1] is ... and isinstance(value, (str, numbers.Real)):
        value = (value,)
    if not isinstance(value, (list, tuple)):
        raise TypeError
    of_each = kinds[:1] * len(value) if kinds[-1] is ... else kinds
    return tuple(_as(kind, item) for kind, item in zip(of_each, value, strict=True))


def _one(value: Any) -> Any:
    """A word for a setting of several values comes as a list of one."""
    return value[0] if isinstance(value, list) and len(value) == 1 else value


def _as_none(value: Any) -> None:
    if _one(value) not in (None, "none"):
        raise ValueError


def _as_bool(value: Any) -> bool:
    if not isinstance(value, bool):
        raise TypeError
    return value


def _as_int(value: Any) -> int:
    if isinstance(value, str):
        return int(value)
    if isinstance(value, bool) or not isinstance(value, numbers.Real) or not float(value).is_integer():
        raise TypeError
    return int(float(value))


def _as_float(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (str, numbers.Real)):
        raise TypeError
    return float(value)


def _as_text(value: Any) -> str:
    if not isinstance(value, (str, os.PathLike)):
        raise TypeError
    return os.fspath(value)


_PLAIN = {types.NoneType: _as_none, bool: _as_bool, int: _as_int, float: _as_float, str: _as_text}


def _describe(kind: Any) -> str:
    """`kind` in words, such as "a whole number or auto"."""
    kinds = members(kind)
    if len(kinds) > 1:
        if all(get_origin(member) is Literal for member in kinds):
            return listing(words_of(kind), "or")
        return " or ".join(map(_describe, kinds))
    arguments = get_args(kind)
    if get_origin(kind) is Literal:
        return listing(arguments, "or")
    if get_origin(kind) is tuple and get_origin(arguments[0]) is Literal:
        return f"some of {listing(get_args(arguments[0]), 'and')}"
    if get_origin(kind) is tuple:
        return "numbers" if arguments[-1] is ... else f"{len(arguments)} numbers"
    return {int: "a whole number", float: "a number", bool: "true or false", str: "text"}.get(kind, "none")
