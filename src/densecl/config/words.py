"""Values of settings as text, for help and messages."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any


def listing(words: Iterable[str], conjunction: str) -> str:
    """ "a, b or c"."""
    *first, last = words
    return f"{', '.join(first)} {conjunction} {last}" if first else last


def as_typed(value: Any) -> str:
    """A value as one types it on the command line."""
    if isinstance(value, bool):
        return "on" if value else "off"
    if value is None:
        return "none"
    return " ".join(map(str, value)) if isinstance(value, tuple) else str(value)
