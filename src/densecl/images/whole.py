"""Whole images, each once and in order, resized to one size: what is needed to look at all of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Int64, Shaped
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from densecl.images.crops import resize
from densecl.images.decode import BadImage
from densecl.images.sources import ImageSource


class Whole(NamedTuple):
    """One image. Without pixels, the reason why it cannot be used."""

    index: int  # in its source
    pixels: Shaped[Tensor, "channels height width"] | None
    sides: tuple[int, int]  # height and width of the image itself
    reason: str = ""


class WholeBatch(NamedTuple):
    """The images of a batch that can be used, in order, and those that cannot, with the reason."""

    pixels: Shaped[Tensor, "batch channels height width"]  # uint8 or uint16
    # Arrays, because workers would send each small tensor through shared memory of its own.
    index: Int64[np.ndarray, "batch"]  # in their source
    sides: Int64[np.ndarray, "batch 2"]  # height and width of the images themselves
    bad: tuple[tuple[int, str], ...]
    stop: int  # one past the last image that was asked for


class WholeImages(Dataset[Whole]):
    """Each image of a source as a whole, resized (bilinear, antialiased); its sides may change their ratio.

    Args:
        source: the images.
        size: (width, height) in pixels.
    """

    def __init__(self, source: ImageSource, size: tuple[int, int]) -> None:
        self.source = source
        self.size = size
        #: Called with an image's index before it is read, and with None afterwards.
        self.on_read: Callable[[int | None], None] = _ignore

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> Whole:
        width, height = self.size
        self.on_read(index)
        try:
            pixels = self.source.read(index)
            sides = self.source.sides_after(index, pixels)
        except BadImage as error:
            return Whole(index, None, (0, 0), str(error))
        finally:
            self.on_read(None)
        if tuple(pixels.shape[1:]) != (height, width):
            pixels = resize(pixels, height, width)
        return Whole(index, pixels, sides)


def _ignore(index: int | None) -> None:
    pass


class InOrder(Sampler[list[int]]):
    """Batches of the images `start` to `stop` - 1, in order."""

    def __init__(self, start: int, stop: int, batch_size: int) -> None:
        self.start, self.stop, self.batch_size = start, stop, batch_size

    def __len__(self) -> int:
        return -(-max(0, self.stop - self.start) // self.batch_size)

    def __iter__(self) -> Iterator[list[int]]:
        for start in range(self.start, self.stop, self.batch_size):
            yield list(range(start, min(start + self.batch_size, self.stop)))


def collate_whole(images: list[Whole]) -> WholeBatch:
    """One batch of the images. If any has sixteen bits, all get sixteen (255 becomes 65535)."""
    used = [image for image in images if image.pixels is not None]
    pixels = [image.pixels for image in used if image.pixels is not None]
    if len({one.dtype for one in pixels}) > 1:
        pixels = [one if one.dtype == torch.uint16 else (one.to(torch.int32) * 257).to(torch.uint16) for one in pixels]
    return WholeBatch(
        torch.stack(pixels) if pixels else torch.empty(0, 0, 0, 0, dtype=torch.uint8),
        np.array([image.index for image in used], np.int64),
        np.array([image.sides for image in used], np.int64).reshape(-1, 2),
        tuple((image.index, image.reason) for image in images if image.pixels is None),
        images[-1].index + 1,
    )
