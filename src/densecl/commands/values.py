"""Values on the command line that are more than a number or a word."""

from __future__ import annotations

import argparse

from densecl.evaluation.given import sides


def size(text: str) -> tuple[int, int]:
    """(width, height) from "640x480", or from one number for a square."""
    try:
        return sides(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected WIDTHxHEIGHT or one number, not '{text}'") from None
