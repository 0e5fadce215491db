"""How `--help` is laid out."""

from __future__ import annotations

import argparse


class HelpInLines(argparse.HelpFormatter):
    """Keeps the line breaks of a help text, so that each choice can begin a line. Wrapped lines are indented."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=30)

    def _split_lines(self, text: str, width: int) -> list[str]:
        first, *choices = text.split("\n")
        lines = super()._split_lines(first, width)
        for choice in choices:
            wrapped = super()._split_lines(choice, width - 2)
            lines += [wrapped[0], *(f"  {line}" for line in wrapped[1:])]
        return lines
