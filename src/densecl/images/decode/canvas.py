"""The image that is wanted, filled band by band: upright, with the wanted channels, and never in memory twice.

A reader hands over the rows of the image as they are stored, a band at a time. Each band is then turned upright, cut to
the region, and given the wanted number of channels.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Shaped
from torch import Tensor

from densecl.images.crops import flip
from densecl.images.decode.limits import MAX_PIXELS, BadImage
from densecl.images.decode.pixels import to_channels, to_tensor

#: How each orientation (EXIF tag 274) is undone: whether rows and columns are swapped, and which axes then mirrored.
ORIENTATIONS: dict[int, tuple[bool, tuple[int, ...]]] = {
    1: (False, ()),
    2: (False, (-1,)),
    3: (False, (-2, -1)),
    4: (False, (-2,)),
    5: (True, ()),
    6: (True, (-1,)),
    7: (True, (-2, -1)),
    8: (True, (-2,)),
}

#: Values that are converted at a time. So no copy has the size of a large image.
BAND = 2**23


class Region(NamedTuple):
    """A rectangle of an image, in pixels; the lower and right ends are exclusive."""

    top: int
    left: int
    bottom: int
    right: int


class Wanted(NamedTuple):
    """What a reader shall return."""

    channels: int
    max_pixels: int = MAX_PIXELS
    region: Region | None = None  # of the upright image; None: all of it
    least_side: int | None = None  # see `decode`


class Canvas:
    """The pixels that are wanted of one image.

    Args:
        height, width: of the image as it is stored.
        wanted: the channels, and the region if it is not the whole image.
        orientation: from EXIF, 1 to 8; anything else counts as 1.

    Raises:
        BadImage: the region does not lie within the image.
    """

    def __init__(self, height: int, width: int, wanted: Wanted, orientation: int = 1) -> None:
        self._swap, self._mirrored = ORIENTATIONS.get(orientation, ORIENTATIONS[1])
        self._channels = wanted.channels
        upright = (width, height) if self._swap else (height, width)
        region = wanted.region or Region(0, 0, *upright)
        if region.bottom > upright[0] or region.right > upright[1]:
            raise BadImage(f"is {upright[1]}x{upright[0]} now, smaller than when it was listed")
        self._size = region.bottom - region.top, region.right - region.left
        spans = [(region.top, region.bottom), (region.left, region.right)]
        for axis in self._mirrored:
            low, high = spans[axis]
            spans[axis] = upright[axis] - high, upright[axis] - low
        (top, bottom), (left, right) = reversed(spans) if self._swap else spans
        #: The part of the stored image that is needed. Only this part may be put.
        self.part = Region(top, left, bottom, right)
        self._pixels: Tensor | None = None
        self._rows = 0  # put so far

    def bands(self, per_pixel: int = 1, multiple: int = 1) -> list[tuple[int, int]]:
        """The part as bands, each given by its first row and the row after its last.

        Args:
            per_pixel: values of each pixel.
            multiple: bands begin at multiples of this many rows of the stored image.
        """
        rows = BAND // max(1, per_pixel * (self.part.right - self.part.left))
        rows = max(1, rows // multiple) * multiple
        starts = range(self.part.top // multiple * multiple, self.part.bottom, rows)
        return [(max(start, self.part.top), min(start + rows, self.part.bottom)) for start in starts]

    def put(
        self, band: Shaped[np.ndarray, "bands rows width"], *, alpha: bool = False, premultiplied: bool = False
    ) -> None:
        """Put the next rows of the part.

        Raises:
            BadImage: the values or the number of bands cannot be used (`pixels.to_tensor`, `pixels.to_channels`).
        """
        pixels = to_channels(to_tensor(band), self._channels, alpha=alpha, premultiplied=premultiplied)
        if self._swap:
            pixels = pixels.transpose(1, 2)
        if self._mirrored:
            pixels = flip(pixels, *self._mirrored)
        if pixels.shape[1:] == self._size:
            self._pixels = pixels
        else:
            if self._pixels is None:
                self._pixels = torch.empty((*self._size, self._channels), dtype=pixels.dtype).permute(2, 0, 1)
            along = -1 if self._swap else -2
            count = pixels.shape[along]
            start = self._size[along] - self._rows - count if along in self._mirrored else self._rows
            self._pixels.narrow(along, start, count).copy_(pixels)
        self._rows += band.shape[1]

    def tensor(self) -> Shaped[Tensor, "channels height width"]:
        """The image, once all rows are there. Its memory may be laid out channels last, which is faster to resize."""
        assert self._pixels is not None and self._rows == self.part.bottom - self.part.top
        return self._pixels
