"""Where images come from: a folder, a list of paths, a glob, one file, or a data set in Python.

Each becomes an `ImageSource`: numbered images that are read one at a time.
"""

from __future__ import annotations

import bisect
import hashlib
import itertools
import os
import warnings
from abc import ABC, abstractmethod
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Shaped
from torch import Tensor
from torch.utils.data import Dataset

from densecl.errors import UserError
from densecl.images.decode import MAX_PIXELS, BadImage, Region, decode, measure
from densecl.images.find import find
from densecl.images.items import check_data_set, check_items, image_of
from densecl.images.paths import Found
from densecl.images.presence import check_apart
from densecl.names import shown


class ImageSource(ABC):
    """A numbered collection of images."""

    channels: int  # of every image that is read

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def read(self, index: int) -> Shaped[Tensor, "channels height width"]:
        """The image, uint8 or uint16.

        Raises:
            BadImage: it cannot be used.
        """

    def sides(self, index: int) -> tuple[int, int]:
        """Height and width of the image itself, which may be read smaller.

        Raises:
            BadImage: they are not known.
        """
        return self.sides_after(index, self.read(index))

    def sides_after(self, index: int, pixels: Shaped[Tensor, "channels _ _"]) -> tuple[int, int]:
        """As `sides`, for an image that was just read."""
        height, width = pixels.shape[1:]
        return height, width

    @abstractmethod
    def name(self, index: int) -> str:
        """The image's name for the user. It is unique, and the same in every run."""

    def key(self, index: int) -> bytes | None:
        """Cache key: equal keys imply equal pixels. None if that cannot be guaranteed."""
        return None

    def notes(self) -> tuple[str, ...]:
        """Lines to show before the images are used: which files were left out, and why."""
        return ()

    def check(self) -> None:  # noqa: B027 (files are checked when they are found)
        """Look at a few items before a run, which would otherwise reject every one for the same reason.

        Raises:
            UserError: what the items are, and what is needed instead.
        """

    @abstractmethod
    def fingerprint(self) -> str:
        """Equal for the same images in the same order, wherever their folder lies. It covers names, not contents."""


def open_source(
    data: str | Path | Dataset | Sequence[Any] | np.ndarray | Tensor,
    *,
    channels: int = 3,
    tile: int | None = None,
    least_side: int | None = None,
    max_pixels: int = MAX_PIXELS,
) -> ImageSource:
    """The images of `data`.

    Args:
        data: one of these, or a tuple of several paths. A folder. A text file with a path on each line, relative to the
            file's own folder; empty lines and lines that begin with # are skipped. A glob, in which ** stands for any
            folders. One image file. A map-style data set whose items are images, tuples that begin with one, or
            mappings with one under "image". Such an image is Pillow's, a numpy array "height width channels" or a
            tensor "channels height width", of uint8, uint16 or floats in 0 to 1.
        channels: of every image that is read.
        tile: read square tiles with this side in pixels instead of whole images. The tiles cover the image. The last
            one of a row or column is moved inwards, so that all have full size. Where an image is smaller than a tile,
            the tile is as long as the image. Opening the source then reads the header of every file.
        least_side: images may be read smaller, as long as the shorter side keeps this many pixels (`decode`).
        max_pixels: larger images are refused (`decode`).

    Raises:
        UserError: there is nothing there, or nothing that could be an image.
    """
    if isinstance(data, tuple) and data and all(isinstance(each, str | Path) for each in data):
        sources = [
            open_source(each, channels=channels, tile=tile, least_side=least_side, max_pixels=max_pixels)
            for each in data
        ]
        check_apart(data)
        return sources[0] if len(sources) == 1 else JoinedSource(sources)
    if not isinstance(data, str | Path):
        if tile is not None:
            raise UserError("--tile needs image files; it cannot be used with a data set in Python")
        return DatasetSource(data, channels)
    files = FileSource(find(data), channels, least_side, max_pixels)
    return files if tile is None else TileSource(files, tile)


# --- the kinds of sources -----------------------------------------------------------------------------------------


class FileSource(ImageSource):
    """Each file is an image."""

    def __init__(
        self, found: Found, channels: int, least_side: int | None = None, max_pixels: int = MAX_PIXELS
    ) -> None:
        self.paths = found.paths
        self._notes = found.notes
        self.channels = channels
        self.least_side = least_side
        self.max_pixels = max_pixels

    def __len__(self) -> int:
        return len(self.paths)

    def read(self, index: int) -> Shaped[Tensor, "channels height width"]:
        return decode(self.paths[index], self.channels, self.max_pixels, least_side=self.least_side)

    def sides(self, index: int) -> tuple[int, int]:
        return measure(self.paths[index], self.channels)

    def sides_after(self, index: int, pixels: Shaped[Tensor, "channels _ _"]) -> tuple[int, int]:
        whole = self.least_side is None or min(pixels.shape[1:]) < self.least_side
        return super().sides_after(index, pixels) if whole else self.sides(index)

    def name(self, index: int) -> str:
        return self.paths[index]

    def key(self, index: int) -> bytes | None:
        path = self.paths[index]
        try:
            status = os.stat(path)
        except OSError:
            return None
        size, time_ns = status.st_size, status.st_mtime_ns
        return os.fsencode(path) + f"\0{size} {time_ns} {self.channels} {self.least_side}".encode()

    def notes(self) -> tuple[str, ...]:
        return self._notes

    def fingerprint(self) -> str:
        return self.paths.fingerprint()


class TileSource(ImageSource):
    """Each tile of a file is an image, named ``PATH#xywh=LEFT,TOP,WIDTH,HEIGHT`` (W3C media fragments)."""

    def __init__(self, files: FileSource, tile: int) -> None:
        if tile < 1:
            raise UserError(f"--tile {tile}: a tile has at least one pixel")
        self.files = files
        self.channels = files.channels
        self.tile = tile
        # Threads, because a network file system is slow.
        with warnings.catch_warnings(), ThreadPoolExecutor(16) as pool:
            warnings.simplefilter("ignore")
            sizes = np.fromiter(
                itertools.chain.from_iterable(pool.map(self._size, range(len(files)), chunksize=64)), np.int64
            )
        self.sizes = sizes.reshape(-1, 2)  # height, width; 0 where the header could not be read
        self.grids = np.maximum(-(-self.sizes // tile), 1)  # rows, columns of tiles
        self.ends = np.cumsum(self.grids.prod(axis=1))  # one past the last tile of each file

    def _size(self, index: int) -> tuple[int, int]:
        try:
            return measure(self.files.paths[index], self.files.channels)
        except BadImage:
            return 0, 0  # it counts as one tile, so that reading it reports the reason

    def __len__(self) -> int:
        return int(self.ends[-1])

    def _locate(self, index: int) -> tuple[int, Region | None]:
        file = int(np.searchsorted(self.ends, index, side="right"))
        rows, columns = self.grids[file].tolist()
        row, column = divmod(index - int(self.ends[file]) + rows * columns, columns)
        height, width = self.sizes[file].tolist()
        if height == 0:
            return file, None
        top, left = max(0, min(row * self.tile, height - self.tile)), max(0, min(column * self.tile, width - self.tile))
        return file, Region(top, left, min(top + self.tile, height), min(left + self.tile, width))

    def read(self, index: int) -> Shaped[Tensor, "channels height width"]:
        file, region = self._locate(index)
        return decode(self.files.paths[file], self.channels, self.files.max_pixels, region=region)

    def sides(self, index: int) -> tuple[int, int]:
        file, region = self._locate(index)
        if region is None:
            return self.files.sides(file)
        return region.bottom - region.top, region.right - region.left

    def name(self, index: int) -> str:
        file, region = self._locate(index)
        if region is None:
            return self.files.name(file)
        top, left, bottom, right = region
        return f"{self.files.name(file)}#xywh={left},{top},{right - left},{bottom - top}"

    def key(self, index: int) -> bytes | None:
        file, region = self._locate(index)
        key = self.files.key(file)
        return None if key is None else key + f" {region}".encode()

    def notes(self) -> tuple[str, ...]:
        return self.files.notes()

    def fingerprint(self) -> str:
        digest = hashlib.sha256(self.files.fingerprint().encode())
        digest.update(np.ascontiguousarray(self.sizes).data)
        return digest.hexdigest()


class DatasetSource(ImageSource):
    """Each item of a map-style data set, or of an array or list, is an image."""

    def __init__(self, dataset: Any, channels: int) -> None:
        check_data_set(dataset)
        self.dataset = dataset
        self.channels = channels

    def __len__(self) -> int:
        return len(self.dataset)

    def read(self, index: int) -> Shaped[Tensor, "channels height width"]:
        try:
            item = self.dataset[index]
        except Exception as error:  # the user's data set may raise anything
            raise BadImage(f"{type(error).__name__}: {shown(error)}") from error
        return image_of(item, self.channels)

    def check(self) -> None:
        check_items(self.dataset, self.channels)

    def name(self, index: int) -> str:
        return f"item {index}"

    def fingerprint(self) -> str:
        return f"{type(self.dataset).__qualname__} of {len(self)}"  # its items have no names


class JoinedSource(ImageSource):
    """The images of several sources, one source after the other.

    Args:
        sources: at least one, all with the same number of channels.
    """

    def __init__(self, sources: Sequence[ImageSource]) -> None:
        self.sources = tuple(sources)
        self.channels = self.sources[0].channels
        self.ends = list(itertools.accumulate(map(len, self.sources)))

    def __len__(self) -> int:
        return self.ends[-1]

    def _at(self, index: int) -> tuple[ImageSource, int]:
        if not 0 <= index < len(self):
            raise IndexError(f"image {index} of {len(self)}")
        number = bisect.bisect_right(self.ends, index)
        return self.sources[number], index - (self.ends[number - 1] if number else 0)

    def read(self, index: int) -> Shaped[Tensor, "channels height width"]:
        source, own = self._at(index)
        return source.read(own)

    def sides(self, index: int) -> tuple[int, int]:
        source, own = self._at(index)
        return source.sides(own)

    def sides_after(self, index: int, pixels: Shaped[Tensor, "channels _ _"]) -> tuple[int, int]:
        source, own = self._at(index)
        return source.sides_after(own, pixels)  # which knows whether it reads images smaller

    def name(self, index: int) -> str:
        source, own = self._at(index)
        return source.name(own)

    def key(self, index: int) -> bytes | None:
        source, own = self._at(index)
        return source.key(own)

    def notes(self) -> tuple[str, ...]:
        return tuple(note for source in self.sources for note in source.notes())

    def check(self) -> None:
        for source in self.sources:
            source.check()

    def fingerprint(self) -> str:
        return hashlib.sha256("\n".join(source.fingerprint() for source in self.sources).encode()).hexdigest()
