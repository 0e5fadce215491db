"""File names: how they are shown, written into tables, and found on disk.

A name may hold anything: newlines, escape codes of a terminal, marks that reverse the direction of writing, bytes that
are not UTF-8. None of these may reach a terminal or a table unchanged.
"""

from __future__ import annotations

import csv
import io
import os
import re
import unicodedata
from collections.abc import Iterable, Sequence
from typing import Final

#: Longer names are shown with their middle cut out.
LIMIT = 200

#: No system accepts longer paths.
LONGEST_PATH = 4096

#: Where a spreadsheet would see the beginning of a formula: at the start of a cell, or behind a semicolon, which
#: separates cells in half of Europe.
FORMULA = re.compile(r"(^|;)(?=[=+\-@＝＋－＠])")

#: The Unicode forms of a name with accents: composed, decomposed.
FORMS: Final = ("NFC", "NFD")

_SHORT = {"\n": "\\n", "\r": "\\r", "\t": "\\t"}
_LONG = {"n": "\n", "r": "\r", "t": "\t"}
_ESCAPE = re.compile(r"\\(?:x([0-9a-f]{2})|u([0-9a-f]{4})|U([0-9a-f]{8})|(.))", re.DOTALL)


def shown(name: object, limit: int = LIMIT) -> str:
    """A name for a message: one line, nothing that a terminal would obey, and not too long.

    Characters that are not printable become escapes such as ``\\n``, ``\\x1b`` or ``\\u202e``. A byte that is not UTF-8
    becomes ``\\xff``.
    """
    text = str(name)
    if len(text) > limit:  # cut first, because it may be the text of a whole file
        text = f"{text[: limit // 2 - 2]}...{text[-(limit - limit // 2 - 1) :]}"
    return text if text.isprintable() else "".join(map(_escaped, text))


def printable(text: str) -> str:
    """A whole message for the terminal: as `shown`, but of any length, and line breaks stay."""
    return "\n".join(shown(line, limit=len(line)) for line in text.split("\n"))


def to_cell(text: str) -> str:
    """Text for a cell of a CSV file. `from_cell` reverses it.

    As `shown`, but of any length. A backslash is doubled, and one is put before a character that a spreadsheet would
    take for the beginning of a formula.
    """
    text = text.replace("\\", "\\\\")
    return FORMULA.sub(r"\1\\", text if text.isprintable() else "".join(map(_escaped, text)))


def from_cell(cell: str) -> str:
    """The text that `to_cell` was given."""

    def original(match: re.Match[str]) -> str:
        byte, short, long, other = match.groups()
        if byte is not None:
            value = int(byte, 16)
            return chr(value if value < 0x80 else 0xDC00 + value)
        if other is not None:
            return _LONG.get(other, other)
        return chr(min(int(short or long, 16), 0x10FFFF))

    return _ESCAPE.sub(original, cell)


def to_csv(rows: Iterable[Iterable[str]]) -> bytes:
    """Rows of a CSV file, each cell by `to_cell`."""
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator="\n").writerows(map(to_cell, row) for row in rows)
    return text.getvalue().encode()


def _escaped(character: str) -> str:
    if character.isprintable():
        return character
    code = ord(character)
    if 0xDC80 <= code <= 0xDCFF:  # how Python represents a byte that is not UTF-8
        return f"\\x{code - 0xDC00:02x}"
    if code < 0x80:
        return _SHORT.get(character, f"\\x{code:02x}")
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def on_disk(path: str) -> str:
    """The path as it is on disk, if it differs only in the Unicode form of its names.

    An accented letter may be one character or two. Archives made on a Mac often have two, lists and annotations one. A
    path that exists in neither form is returned unchanged.
    """
    if path.isascii() or len(path) > LONGEST_PATH or os.path.lexists(path):
        return path
    found = _in_either_form(path)
    return found if os.path.lexists(found) else path


def _in_either_form(path: str) -> str:
    """The path with each of its names in the first form that exists, or unchanged."""
    found = ""
    for place, name in enumerate(path.split(os.sep)):
        before = found + os.sep if place else ""
        forms = [before + each for each in (name, *(unicodedata.normalize(form, name) for form in FORMS))]
        found = next(filter(os.path.lexists, forms), forms[0])
    return found


def listing(words: Iterable[str], conjunction: str = "or") -> str:
    """Words in a sentence: "a, b or c"."""
    *first, last = words
    return f"{', '.join(first)} {conjunction} {last}" if first else last


def few(words: Sequence[str], most: int = 3) -> str:
    """Words in a sentence, of many only the first: "a, b and c", "a and 299 others"."""
    return listing(words, "and") if len(words) <= most else f"{words[0]} and {len(words) - 1} others"


def counted(number: int | str, one: str) -> str:
    """A number with its noun: "1 step", "2 steps", "3 classes"."""
    several = f"{one}es" if one.endswith("s") else f"{one}s"
    return f"{number} {one if str(number) == '1' else several}"
