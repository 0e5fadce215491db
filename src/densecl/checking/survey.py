"""Every image read once, in data-loading workers: what it is, and marks by which copies are found."""

from __future__ import annotations

import hashlib
import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Shaped, UInt64
from torch import Tensor
from torch.utils.data import Dataset

from densecl.errors import UserError
from densecl.images.crops import resize
from densecl.images.decode import BadImage
from densecl.images.formats import head_of, kind_of
from densecl.images.loader import make_loader
from densecl.images.sources import DatasetSource, ImageSource
from densecl.images.whole import InOrder

#: Images that a worker reads between two messages.
BATCH = 16

#: Bytes of the hash of the pixels. Two of a million images would share one by chance once in 10^26 times.
HASH_BYTES = 16

#: Images whose reason is kept of those that cannot be read.
REASONS = 1000


class Seen(NamedTuple):
    """What a worker tells of one image."""

    index: int
    kind: str  # of the file, such as "a JPEG image"; "" for an item of a data set in Python
    sides: tuple[int, int]  # height and width
    deep: bool  # sixteen bits
    gray: bool  # all channels are equal
    constant: bool  # all pixels are equal
    digest: bytes  # of the pixels
    look: int  # difference hash, 64 bits
    reason: str = ""  # why it cannot be used


class Survey(NamedTuple):
    """All images of a source."""

    kinds: Counter[str]
    sides: Shaped[np.ndarray, "images 2"]  # int32, height and width; 0 where it cannot be read
    deep: Shaped[np.ndarray, "images"]  # bool, as the others below
    gray: Shaped[np.ndarray, "images"]
    constant: Shaped[np.ndarray, "images"]
    digest: Shaped[np.ndarray, "images hash"]  # uint8
    look: UInt64[np.ndarray, "images"]
    bad: Sequence[tuple[int, str]]  # the first of those that cannot be read, and why
    readable: Shaped[np.ndarray, "images"]
    seconds: float

    @property
    def images(self) -> int:
        return len(self.readable)


class SurveyedImages(Dataset[Seen]):
    """What there is to say of each image of a source."""

    def __init__(self, source: ImageSource) -> None:
        self.source = source
        #: Called with an image's index before it is read, and with None afterwards.
        self.on_read: Callable[[int | None], None] = _ignore

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> Seen:
        self.on_read(index)
        try:
            pixels = self.source.read(index)
            sides = self.source.sides_after(index, pixels)
        except BadImage as error:
            return Seen(index, self._kind(index), (0, 0), False, False, False, bytes(HASH_BYTES), 0, str(error))
        finally:
            self.on_read(None)
        values = pixels.contiguous()
        return Seen(
            index,
            self._kind(index),
            sides,
            deep=pixels.dtype == torch.uint16,
            gray=len(pixels) > 1 and all(torch.equal(channel, values[0]) for channel in values[1:]),
            constant=bool((values.flatten(1) == values.flatten(1)[:, :1]).all()),
            digest=_digest(values),
            look=difference_hash(values),
        )

    def _kind(self, index: int) -> str:
        """What the file is by its first bytes. A tile's name goes on after its file's."""
        if isinstance(self.source, DatasetSource):
            return ""
        return kind_of(head_of(self.source.name(index).partition("#xywh=")[0])) or ""


def _ignore(index: int | None) -> None:
    pass


def _digest(pixels: Shaped[Tensor, "channels height width"]) -> bytes:
    """A hash of the pixels and of their shape. Copies with other metadata are found, too."""
    digest = hashlib.blake2b(str((tuple(pixels.shape), pixels.dtype)).encode(), digest_size=HASH_BYTES)
    digest.update(pixels.flatten().view(torch.uint8).numpy().data)
    return digest.digest()


def difference_hash(pixels: Shaped[Tensor, "channels height width"]) -> int:
    """64 bits: whether each of 8x8 areas is brighter than the area to its left ("dHash", N. Krawetz 2013).

    The same picture at another size, or saved anew, differs in few bits; another picture in about half of them.
    """
    small = resize(pixels, 8, 9).to(torch.float32).mean(dim=0)
    bits = (small[:, 1:] > small[:, :-1]).flatten().numpy()
    return int.from_bytes(np.packbits(bits).tobytes(), "big")


def survey(
    source: ImageSource, *, workers: int, read_timeout: float, progress: Callable[[int], None] = lambda done: None
) -> Survey:
    """Read every image once.

    Args:
        source: the images.
        workers: data-loading workers.
        read_timeout: seconds after which the reading of an image counts as stuck.
        progress: called with the number of images that are done.

    Raises:
        UserError: an image does not let itself be read for too long.
    """
    count = len(source)
    flags = {name: np.zeros(count, bool) for name in ("deep", "gray", "constant", "readable")}
    sides, look = np.zeros((count, 2), np.int32), np.zeros(count, np.uint64)
    digest = np.zeros((count, HASH_BYTES), np.uint8)
    kinds: Counter[str] = Counter()
    bad: list[tuple[int, str]] = []
    started = time.monotonic()
    loader = make_loader(
        SurveyedImages(source),
        InOrder(0, count, BATCH),
        collate=list,
        workers=workers,
        read_timeout=read_timeout,
        resumable=False,
    )
    done = 0
    for batch in loader:
        for one in batch:
            kinds[one.kind] += 1
            if one.reason:
                if len(bad) < REASONS:
                    bad.append((one.index, one.reason))
            else:
                sides[one.index], look[one.index] = one.sides, one.look
                digest[one.index] = np.frombuffer(one.digest, np.uint8)
                for name in ("deep", "gray", "constant"):
                    flags[name][one.index] = getattr(one, name)
                flags["readable"][one.index] = True
        done += len(batch)
        progress(done)
    if not flags["readable"].any():
        index, reason = bad[0]
        raise UserError(f"None of the {count} images can be read. The first: {source.name(index)}: {reason}")
    return Survey(kinds, sides, digest=digest, look=look, bad=bad, seconds=time.monotonic() - started, **flags)
