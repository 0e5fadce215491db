"""Names of files as they are shown, written into tables, and found again.

A name may hold anything: newlines, the escapes that steer a terminal, marks that turn the direction of writing, bytes
that are no UTF-8. None of that reaches a terminal or a table as it is.
"""

from __future__ import annotations

import os
import re
import unicodedata
from typing import Final

#: A name is shown with at most this many characters: longer ones are cut in the middle.
LIMIT = 200

#: No system takes longer paths.
LONGEST_PATH = 4096

#: What a spreadsheet takes for the beginning of a formula, at the start of a cell or behind a semicolon, which also
#: separates cells in half of Europe.
FORMULA = re.compile(r"(^|;)(?=[=+\-@＝＋－＠])")

#: The forms of a name with accents: composed, decomposed.
FORMS: Final = ("NFC", "NFD")

_SHORT = {"\n": "\\n", "\r": "\\r", "\t": "\\t"}
_LONG = {"n": "\n", "r": "\r", "t": "\t"}
_ESCAPE = re.compile(r"\\(?:x([0-9a-f]{2})|u([0-9a-f]{4})|U([0-9a-f]{8})|(.))", re.DOTALL)


def shown(name: object, limit: int = LIMIT) -> str:
    """A name for a message: in one line, without anything that a terminal obeys, and not too long.

    Control characters and all others that are not printable become escapes such as ``\\n``, ``\\x1b`` or ``\\u202e``;
    a byte that is no UTF-8 becomes ``\\xff``.
    """
    text = str(name)
    if len(text) > limit:  # before anything else: it may be a whole file
        text = f"{text[: limit // 2 - 2]}...{text[-(limit - limit // 2 - 1) :]}"
    return text if text.isprintable() else "".join(map(_escaped, text))


def printable(text: str) -> str:
    """A whole message for the terminal: as `shown`, but of any length and with its own line breaks."""
    return "\n".join(shown(line, limit=len(line)) for line in text.split("\n"))


def to_cell(text: str) -> str:
    """Text for a cell of a CSV file, from which `from_cell` makes it again.

    As `shown`, of any length, with a backslash doubled, and one put before a character that a spreadsheet would take
    for the beginning of a formula.
    """
    text = text.replace("\\", "\\\\")
    return FORMULA.sub(r"\1\\", text if text.isprintable() else "".join(map(_escaped, text)))


def from_cell(cell: str) -> str:
    """What `to_cell` was given."""

    def original(match: re.Match[str]) -> str:
        byte, short, long, other = match.groups()
        if byte is not None:
            value = int(byte, 16)
            return chr(value if value < 0x80 else 0xDC00 + value)
        if other is not None:
            return _LONG.get(other, other)
        return chr(min(int(short or long, 16), 0x10FFFF))

    return _ESCAPE.sub(original, cell)


def _escaped(character: str) -> str:
    if character.isprintable():
        return character
    code = ord(character)
    if 0xDC80 <= code <= 0xDCFF:  # how Python carries a byte that is no UTF-8
        return f"\\x{code - 0xDC00:02x}"
    if code < 0x80:
        return _SHORT.get(character, f"\\x{code:02x}")
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def on_disk(path: str) -> str:
    """The path as the file system has it, where only the Unicode form of its names differs.

    An accented letter is one character or two: archives made on a Mac often hold the second form, lists and
    annotations the first. A path that is not there in either form is returned as it is.
    """
    if path.isascii() or len(path) > LONGEST_PATH or os.path.lexists(path):
        return path
    found = _in_either_form(path)
    return found if os.path.lexists(found) else path


def _in_either_form(path: str) -> str:
    """The path with each of its names in the first form that is there, or as it is."""
    found = ""
    for place, name in enumerate(path.split(os.sep)):
        before = found + os.sep if place else ""
        forms = [before + each for each in (name, *(unicodedata.normalize(form, name) for form in FORMS))]
        found = next(filter(os.path.lexists, forms), forms[0])
    return found
