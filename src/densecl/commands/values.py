"""Values on the command line that are more than a number or a word."""

from __future__ import annotations

import argparse


def size(text: str) -> tuple[int, int]:
    """(width, height) from "640x480", or from one number for a square."""
    sides = text.lower().split("x")
    if len(sides) > 2 or not all(side.isdecimal() for side in sides):
        raise argparse.ArgumentTypeError(f"expected WIDTHxHEIGHT or one number, not '{text}'")
    return int(sides[0]), int(sides[-1])
