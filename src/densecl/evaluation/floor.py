"""What a score is worth that looks at nothing: every pixel painted with the most frequent class. Loads nothing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

#: Scores that are not further above it than this, in percent, are at the floor.
NEAR = 0.5


class Floor(NamedTuple):
    """What a score must beat to mean anything."""

    score: float  # percent
    label: int  # of the most frequent class

    def holds(self, score: float) -> bool:
        """Whether a score is at the floor or below."""
        return score <= self.score + NEAR


def floor_of(pixels: Sequence[int]) -> Floor:
    """The floor of the mIoU. The argument is that of `one_class_miou`, and so is the error."""
    return Floor(one_class_miou(pixels), max(range(len(pixels)), key=pixels.__getitem__))


def one_class_miou(pixels: Sequence[int]) -> float:
    """The mIoU of painting every pixel with the most frequent class, in percent.

    That class has its share of all pixels as its IoU. Every other class that occurs has 0. As in `dense.score`, the
    mean is over the classes that occur in the labels or the predictions, and classes that occur in neither do not
    count.

    Args:
        pixels: how many labeled pixels each class has, 0 for one that does not occur. Pixels that do not count in the
            score are left out.

    Raises:
        ValueError: there is no labeled pixel.
    """
    total = sum(pixels)
    if total == 0:
        raise ValueError("there is no labeled pixel")
    return 100 * max(pixels) / total / sum(count > 0 for count in pixels)
