"""Flags made from a class of settings: each field is one, under the heading of its group."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Sequence
from typing import Any, get_type_hints

from densecl.commands.values import size
from densecl.errors import flag
from densecl.evaluation.settings import meaning_of


def add_flags(parser: argparse.ArgumentParser, settings: type) -> None:
    """Add a flag for each field of a class of settings, whose fields were made by `setting`."""
    groups = {}
    kinds = get_type_hints(settings)
    for field in dataclasses.fields(settings):
        meaning = meaning_of(field)
        if meaning.group not in groups:
            groups[meaning.group] = parser.add_argument_group(meaning.group)
        how = _BY_TYPE[kinds[field.name]]
        if meaning.metavar is not None:
            how = {**how, "metavar": meaning.metavar}
        groups[meaning.group].add_argument(flag(field.name), help=meaning.help.replace("%", "%%"), **how)


#: What argparse needs to know about a setting, by its type.
_BY_TYPE: dict[Any, dict[str, Any]] = {
    bool: {"action": "store_true"},
    int: {"type": int},
    int | None: {"type": int},
    float: {"type": float},
    float | None: {"type": float},
    str: {},
    str | None: {},
    tuple[int, int] | None: {"type": size},
    float | Sequence[float]: {"nargs": "+", "type": float},
    Sequence[int]: {"nargs": "+", "type": int},
    Sequence[str]: {"nargs": "+"},
}
