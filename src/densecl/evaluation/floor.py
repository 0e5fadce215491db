"""What a score is worth that looks at nothing: every pixel painted with the most frequent class. Loads nothing."""

from __future__ import annotations

from collections.abc import Sequence


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
