"""Where the images come from: a folder, a list of paths, a glob, one file, or a data set in Python.

Each becomes an `ImageSource`: numbered images that are read one at a time. The index of a million
files is two arrays, so that it costs tens of megabytes and forked workers share it.

What belongs to a folder: every file below it whose extension is one of `EXTENSIONS` (in any case),
hidden files and folders (leading dot) excepted. Links are followed; a folder that is reached twice is
listed once. A link that leads nowhere is kept, so that it is reported. The order is by folder and then by
name, in bytes, the same on every machine.
"""

from __future__ import annotations

import glob
import hashlib
import heapq
import itertools
import logging
import os
import re
import tempfile
import time
import warnings
from abc import ABC, abstractmethod
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence, Sized
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Shaped
from PIL import Image
from platformdirs import user_cache_path
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset

from densecl.errors import UserError, nearest
from densecl.images.decode import (
    EXTENSIONS,
    MAX_PIXELS,
    BadImage,
    Region,
    decode,
    from_array,
    from_pillow,
    measure,
)

#: Folders of fewer images are listed anew each time, which takes a fraction of a second.
CACHED_FROM = 10_000

#: A folder changed this recently may change again without its time stamp showing it, so it is not cached.
SETTLED_SECONDS = 2.0

#: Names held as Python objects at a time while a folder is listed.
CHUNK = 65_536

log = logging.getLogger(__name__)


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

    @abstractmethod
    def name(self, index: int) -> str:
        """What the user knows the image by: unique, and the same in every run."""

    def key(self, index: int) -> bytes | None:
        """All that the pixels of the image follow from: as long as it is the same, they are. None: nobody can tell."""
        return None

    @abstractmethod
    def fingerprint(self) -> str:
        """The same for the same images in the same order, wherever their folder lies; other images have another.

        Names are compared, not contents.
        """


def open_source(
    data: str | Path | Dataset,
    *,
    channels: int = 3,
    tile: int | None = None,
    least_side: int | None = None,
    max_pixels: int = MAX_PIXELS,
) -> ImageSource:
    """The images of `data`.

    Args:
        data: a folder; a text file with a path per line (relative to the file's own folder; empty lines
            and lines that begin with # are skipped); a glob, in which ** stands for any folders; one image
            file; or a map-style data set whose items are images (Pillow; numpy "height width channels";
            tensor "channels height width"; uint8, uint16 or floats in 0 to 1), or tuples that begin with
            one, or mappings with one under "image".
        channels: of every image that is read.
        tile: read square tiles of this many pixels instead of whole images. The tiles cover the image;
            the last of a row or column is moved inwards so that all have full size, and an image that is
            smaller along an axis has one tile there, as long as the image. Listing then reads every header.
        least_side: a large JPEG may be read smaller, as long as its shorter side keeps this many pixels (`decode`).
        max_pixels: files of larger images are refused (`decode`).

    Raises:
        UserError: there is nothing there, or nothing that could be an image.
    """
    if not isinstance(data, str | Path):
        if tile is not None:
            raise UserError("--tile needs image files; it cannot be used with a data set in Python")
        return DatasetSource(data, channels)
    files = FileSource(_find(Path(data).expanduser()), channels, least_side, max_pixels)
    return files if tile is None else TileSource(files, tile)


# --- the kinds of sources -----------------------------------------------------------------------------------------


class FileSource(ImageSource):
    """A file, an image."""

    def __init__(
        self, paths: PathIndex, channels: int, least_side: int | None = None, max_pixels: int = MAX_PIXELS
    ) -> None:
        self.paths = paths
        self.channels = channels
        self.least_side = least_side
        self.max_pixels = max_pixels

    def __len__(self) -> int:
        return len(self.paths)

    def read(self, index: int) -> Shaped[Tensor, "channels height width"]:
        return decode(self.paths[index], self.channels, self.max_pixels, least_side=self.least_side)

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

    def fingerprint(self) -> str:
        return self.paths.fingerprint()


class TileSource(ImageSource):
    """A tile of a file, an image. Named ``PATH#xywh=LEFT,TOP,WIDTH,HEIGHT`` (W3C media fragments)."""

    def __init__(self, files: FileSource, tile: int) -> None:
        if tile < 1:
            raise UserError(f"--tile {tile}: a tile has at least one pixel")
        self.files = files
        self.channels = files.channels
        self.tile = tile
        with warnings.catch_warnings(), ThreadPoolExecutor(16) as pool:  # threads: a network file system is slow
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
            return 0, 0  # one item, so that reading it says what is wrong

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

    def fingerprint(self) -> str:
        digest = hashlib.sha256(self.files.fingerprint().encode())
        digest.update(np.ascontiguousarray(self.sizes).data)
        return digest.hexdigest()


class DatasetSource(ImageSource):
    """An item of a map-style data set, an image."""

    def __init__(self, dataset: Dataset, channels: int) -> None:
        if not isinstance(dataset, Sized) or isinstance(dataset, IterableDataset):
            raise UserError(f"a data set needs a length and items by number; {type(dataset).__name__} has not")
        if len(dataset) == 0:
            raise UserError("the data set is empty")
        self.dataset = dataset
        self.channels = channels

    def __len__(self) -> int:
        return len(self.dataset)  # type: ignore[arg-type]

    def read(self, index: int) -> Shaped[Tensor, "channels height width"]:
        try:
            item = self.dataset[index]
        except Exception as error:  # whatever someone else's data set raises on a file that it cannot read
            raise BadImage(f"{type(error).__name__}: {error}") from error
        if isinstance(item, Mapping):
            item = item.get("image")
        elif isinstance(item, Sequence) and item:
            item = item[0]
        return _from_item(item, self.channels)

    def name(self, index: int) -> str:
        return f"item {index}"

    def fingerprint(self) -> str:
        return f"{type(self.dataset).__qualname__} of {len(self)}"  # its items have no names


def _from_item(item: Any, channels: int) -> Shaped[Tensor, "channels height width"]:
    if isinstance(item, Image.Image):
        try:
            return from_pillow(item, channels)
        except (OSError, SyntaxError, ValueError) as error:  # a lazily opened file
            raise BadImage(f"{type(error).__name__}: {error}") from error
    if isinstance(item, Tensor):
        return from_array(item.detach().cpu().numpy(), channels, channels_first=True)
    if isinstance(item, np.ndarray):
        return from_array(item, channels)
    raise BadImage(f"the item is no image but {type(item).__name__}")


# --- the index of files -------------------------------------------------------------------------------------------


class Strings(NamedTuple):
    """Many byte strings in two arrays."""

    text: np.ndarray  # uint8, all strings one after the other
    ends: np.ndarray  # int64, one past the last byte of each

    @classmethod
    def pack(cls, strings: Iterable[bytes]) -> Strings:
        """All strings in their order, never more than one of them held as an object."""
        text, ends = bytearray(), array("q")
        for string in strings:
            text += string
            ends.append(len(text))
        return cls(np.frombuffer(text, np.uint8), np.frombuffer(ends, np.int64))

    def get(self, index: int) -> bytes:
        """The string at this place."""
        return self.text[self.ends[index - 1] if index else 0 : self.ends[index]].tobytes()


class PathIndex:
    """The paths of many files, compact: one entry for a folder, one for a name.

    Names may be anything the file system allows, valid UTF-8 or not.
    """

    def __init__(self, folders: Strings, counts: np.ndarray, names: Strings) -> None:
        self.folders = folders
        self.counts = counts  # int64, images of each folder
        self.names = names
        self._ends = np.cumsum(counts)

    def __len__(self) -> int:
        return len(self.names.ends)

    def __getitem__(self, index: int) -> str:
        if not 0 <= index < len(self):
            raise IndexError(f"image {index} of {len(self)}")
        folder = self.folders.get(int(np.searchsorted(self._ends, index, side="right")))
        return os.fsdecode(os.path.join(folder, self.names.get(index)))

    def fingerprint(self) -> str:
        """Of the names and how they are shared out among the folders, whose own names do not count."""
        digest = hashlib.sha256()
        for part in (self.counts, self.names.ends, self.names.text):
            digest.update(np.ascontiguousarray(part).data)
        return digest.hexdigest()

    @classmethod
    def of(cls, folder: Path, names: Iterable[bytes]) -> PathIndex:
        """Names relative to one folder, in their order."""
        packed = Strings.pack(names)
        return cls(Strings.pack([_absolute(folder)]), np.array([len(packed.ends)]), packed)


def _absolute(path: Path) -> bytes:
    return os.fsencode(os.path.abspath(path))


def _find(data: Path) -> PathIndex:
    if data.is_dir():
        return list_folder(data)
    if data.is_file():
        if data.suffix.lower() in EXTENSIONS:
            return PathIndex.of(data.parent, [os.fsencode(data.name)])
        return _read_list(data)
    if glob.has_magic(str(data)):
        return _match(data)
    try:
        with os.scandir(data.parent) as entries:
            siblings = [entry.name for entry in itertools.islice(entries, 1000)]
    except OSError:
        siblings = []
    raise UserError(f"no such folder or file: {data}.{nearest(data.name, siblings)}")


def _read_list(file: Path) -> PathIndex:
    def lines() -> Iterator[bytes]:
        with file.open("rb") as stream:
            for number, line in enumerate(stream):
                if b"\0" in line:
                    raise UserError(f"{file} is neither a folder, nor an image, nor a text file of paths")
                line = (line.removeprefix(b"\xef\xbb\xbf") if number == 0 else line).strip()
                if line and not line.startswith(b"#"):
                    yield line

    paths = PathIndex.of(file.parent, lines())
    if len(paths) == 0:
        raise UserError(f"{file} lists no images; it needs a path per line")
    return paths


def _match(pattern: Path) -> PathIndex:
    def files() -> Iterator[bytes]:
        for path in glob.iglob(os.fsencode(pattern), recursive=True):
            if not os.path.isdir(path):
                yield path

    paths = PathIndex.of(Path(), _sorted(files()))
    if len(paths) == 0:
        raise UserError(f"no file matches {pattern} (a glob such as 'photos/**/*.jpg', in quotes)")
    return paths


# --- listing a folder ---------------------------------------------------------------------------------------------


def list_folder(root: Path) -> PathIndex:
    """Every image below a folder, from the cache if no folder below it has changed since.

    Raises:
        UserError: the folder cannot be read or holds no images.
    """
    cache = user_cache_path("densecl") / "listings" / f"{hashlib.sha256(_absolute(root)).hexdigest()}.npz"
    paths = _load_listing(cache)
    if paths is None:
        started = time.time()
        paths, stamps = _scan(root)
        settled = stamps[:, 1].max() < (started - SETTLED_SECONDS) * 1e9
        if len(paths) >= CACHED_FROM and settled:
            _save_listing(cache, paths, stamps)
    if len(paths) == 0:
        raise UserError(f"no images in {root}: looked for {', '.join(EXTENSIONS)} in it and in the folders below")
    return paths


def _scan(root: Path) -> tuple[PathIndex, np.ndarray]:
    """One walk over all folders below the root, and their stamps, (inode, time of change in ns) of each folder."""
    text, ends, counts, stamps = bytearray(), array("q"), array("q"), array("q")
    seen: set[tuple[int, int]] = set()

    def folders() -> Iterator[bytes]:
        pending = [_absolute(root)]
        while pending:
            folder = pending.pop()
            below: list[bytes] = []
            try:
                status = os.stat(folder)
                if (status.st_dev, status.st_ino) in seen:
                    continue
                seen.add((status.st_dev, status.st_ino))
                before = len(ends)
                for name in _sorted(_images(folder, below)):
                    text.extend(name)
                    ends.append(len(text))
            except OSError as error:
                if not stamps:
                    raise UserError(f"cannot read the folder {root}: {error.strerror}") from error
                log.warning("skipped a folder that cannot be read: %s (%s)", os.fsdecode(folder), error.strerror)
                continue
            pending.extend(sorted(below, reverse=True))
            counts.append(len(ends) - before)
            stamps.extend((status.st_ino & 0x7FFF_FFFF_FFFF_FFFF, status.st_mtime_ns))
            yield folder

    packed = Strings.pack(folders())
    names = Strings(np.frombuffer(text, np.uint8), np.frombuffer(ends, np.int64))
    return PathIndex(packed, np.frombuffer(counts, np.int64), names), np.frombuffer(stamps, np.int64).reshape(-1, 2)


def _images(folder: bytes, below: list[bytes]) -> Iterator[bytes]:
    """Names of the images in one folder; the paths of its subfolders are added to `below`."""
    with os.scandir(folder) as entries:
        for entry in entries:
            name = entry.name
            if name.startswith(b"."):
                continue
            try:
                folder_here = entry.is_dir()
            except OSError:  # a link to itself
                folder_here = False
            if folder_here:
                below.append(entry.path)
            elif name[name.rfind(b".") :].lower() in _ENDINGS and (entry.is_symlink() or entry.is_file()):
                yield name


_ENDINGS = frozenset(map(os.fsencode, EXTENSIONS))


def _sorted(names: Iterator[bytes]) -> Iterator[bytes]:
    """The names in order. A million Python objects would be 80 MB: sorted chunks are packed, then merged."""
    runs = []
    while chunk := sorted(itertools.islice(names, CHUNK)):
        runs.append(b"\0".join(chunk))
    if len(runs) == 1:
        return iter(runs[0].split(b"\0"))
    return heapq.merge(*(map(re.Match.group, re.finditer(rb"[^\0]+", run)) for run in runs))


def _load_listing(cache: Path) -> PathIndex | None:
    """The listing if it is there, whole, and every folder in it still has the inode and time of then."""
    try:
        with cache.open("rb") as file, np.load(file, allow_pickle=False) as saved:
            folders = Strings(saved["folder_text"], saved["folder_ends"])
            paths = PathIndex(folders, saved["counts"], Strings(saved["name_text"], saved["name_ends"]))
            for place, stamp in enumerate(saved["stamps"].tolist()):
                status = os.stat(folders.get(place))
                if [status.st_ino & 0x7FFF_FFFF_FFFF_FFFF, status.st_mtime_ns] != stamp:
                    return None
            return paths
    except Exception:  # missing, from an interrupted disk, a folder gone: listing anew is always right
        return None


def _save_listing(cache: Path, paths: PathIndex, stamps: np.ndarray) -> None:
    try:
        cache.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=cache.parent, suffix=".part", delete=False) as file:
            try:
                np.savez(
                    file,
                    folder_text=paths.folders.text,
                    folder_ends=paths.folders.ends,
                    counts=paths.counts,
                    name_text=paths.names.text,
                    name_ends=paths.names.ends,
                    stamps=stamps,
                )
                file.close()
                os.replace(file.name, cache)
            except BaseException:
                os.unlink(file.name)
                raise
    except OSError as error:  # a home that cannot be written: the next run lists again
        log.debug("the listing is not cached: %s", error)
