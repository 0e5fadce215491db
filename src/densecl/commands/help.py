"""How `--help` is laid out."""

from __future__ import annotations

import argparse
import textwrap


class HelpInLines(argparse.HelpFormatter):
    """Keeps the line breaks of a help text, so that each choice can begin a line. Flags are never broken."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=30)

    def _split_lines(self, text: str, width: int) -> list[str]:
        first, *choices = text.split("\n")
        lines = textwrap.wrap(first, width, break_on_hyphens=False)
        for choice in choices:
            lines += textwrap.wrap(choice, width, subsequent_indent="  ", break_on_hyphens=False)
        return lines
