"""Mean and standard deviation of the channels of images: subtracted and divided by before a backbone sees them."""

from __future__ import annotations

from typing import NamedTuple


class Normalization(NamedTuple):
    """Mean and standard deviation of each channel, on the 0-1 scale. A backbone expects those it was trained with."""

    mean: tuple[float, ...]
    std: tuple[float, ...]


#: Of the images of ImageNet. Nearly all published weights for RGB images expect these.
IMAGENET = Normalization(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
