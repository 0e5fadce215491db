"""Where weights come from, in words and as metadata. What a file says may come from a stranger."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from densecl.names import shown

#: What each entry is called in a sentence, in the order in which they are told.
WORDS = {
    "method": "method",
    "steps": "steps",
    "images": "images",
    "data_fingerprint": "fingerprint of the data (of its names)",
    "init": "started from",
    "teacher": "teacher",
    "teacher_license": "license of the teacher's weights",
    "license": "license of the weights",
    "densecl_version": "densecl",
}

#: Longer texts are cut.
LONGEST = 120


def told(provenance: Mapping[str, str]) -> Iterator[str]:
    """A line for each thing that is known."""
    for key, word in WORDS.items():
        if key in provenance:
            yield f"{word[0].upper()}{word[1:]}: {safe(provenance[key])}"
    if "method" not in provenance:
        yield "Nothing is known of how it was trained."


def safe(text: str) -> str:
    """A text for a page: on one line, and nothing that Markdown or HTML would obey."""
    return "".join(f"\\{letter}" if letter in "\\`*_[]<>|#&" else letter for letter in shown(text, LONGEST))
