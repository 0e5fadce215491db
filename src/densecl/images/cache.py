"""A folder of decoded images: later epochs and later runs read them instead of decoding the files again.

It keeps exactly the pixels that the source gave, decoded and shrunk, so a run is the same with the cache and without.
Each image is a file of its own, named by a hash of its cache key. Files are written beside their place and moved into
it, so any number of processes and machines may share the folder, and find an image whole or not at all. There is no
second cache in memory, because the system already keeps files in free memory. (In /dev/shm they always stay there.)
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import shutil
import stat
import time
import uuid
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Shaped
from torch import Tensor

from densecl.errors import UserError
from densecl.files import replacing
from densecl.images.decode import MAX_PIXELS, BadImage
from densecl.images.sources import DatasetSource, ImageSource

#: Part of every file's name. Increase it whenever the form of the files, or the result of decoding, changes.
VERSION = 2

#: A cache leaves at least this much of its file system free: a fraction, and bytes.
FREE_FRACTION, FREE_BYTES = 0.05, 2**30

#: Bytes before the pixels: five numbers of 64 bits. Bytes of a value, channels, height, width, `_check` of the pixels.
HEADER = 40

#: Files that a killed process left unfinished are removed after this many seconds.
ABANDONED_SECONDS = 3600.0

log = logging.getLogger(__name__)


class CachedSource(ImageSource):
    """The images of another source, each decoded once.

    When the file system is nearly full, or a file cannot be written, the remaining images are decoded at each read.

    Args:
        source: the images, from files.
        folder: of the cache, made if missing. Several sources may share it, and it may be deleted at any time.
        max_pixels: of an image, as for the source.

    Raises:
        UserError: the folder cannot be written, or the images have no files.
    """

    def __init__(self, source: ImageSource, folder: Path | str, max_pixels: int = MAX_PIXELS) -> None:
        if isinstance(source, DatasetSource):
            raise UserError("--cache needs image files; it cannot be used with a data set in Python")
        self.source = source
        self.channels = source.channels
        self.max_pixels = max_pixels
        self.folder = Path(folder).expanduser().absolute()
        self._unfinished = self.folder / "unfinished"
        self._writable = True
        try:
            self._unfinished.mkdir(parents=True, exist_ok=True)
            trial = self._unfinished / uuid.uuid4().hex
            trial.touch()
            trial.unlink()
            left_over = list(self._unfinished.iterdir())
        except OSError as error:
            raise UserError(f"--cache {folder}: the folder cannot be written ({error.strerror})") from error
        for path in left_over:
            with contextlib.suppress(OSError):  # another process may have removed it
                if path.stat().st_mtime < time.time() - ABANDONED_SECONDS:
                    path.unlink()

    def __len__(self) -> int:
        return len(self.source)

    def read(self, index: int) -> Shaped[Tensor, "channels height width"]:
        path = self._path(index)
        pixels = None if path is None else _load(path, self.channels, self.max_pixels)
        if pixels is None:
            pixels = self.source.read(index)
            if path is not None and self._writable:
                self._save(path, pixels)
        return pixels

    def _path(self, index: int) -> Path | None:
        """Where the image's file in the cache is, or would be. None: the image cannot be cached."""
        key = self.source.key(index)
        if key is None:
            return None
        name = hashlib.blake2b(b"%d\0%s" % (VERSION, key), digest_size=20).hexdigest()
        return self.folder / name[:2] / name[2:]

    def sides(self, index: int) -> tuple[int, int]:
        return self.source.sides(index)

    def sides_after(self, index: int, pixels: Shaped[Tensor, "channels _ _"]) -> tuple[int, int]:
        return self.source.sides_after(index, pixels)

    def name(self, index: int) -> str:
        return self.source.name(index)

    def key(self, index: int) -> bytes | None:
        return self.source.key(index)

    def notes(self) -> tuple[str, ...]:
        return self.source.notes()

    def fingerprint(self) -> str:
        return self.source.fingerprint()

    def forecast(self, images: int = 8) -> str:
        """A line on how large the cache will be, estimated from a few images spread over the source."""
        sizes, missing = [], 0
        for index in np.linspace(0, len(self) - 1, min(images, len(self)), dtype=int).tolist():
            path = self._path(index)
            known = path is not None and path.is_file()
            with contextlib.suppress(BadImage):  # the run will count them
                sizes.append(self.read(index).nbytes)
                missing += not known
        whole = float(np.mean(sizes)) * len(self) if sizes else 0.0
        still, space = whole * missing / max(1, len(sizes)), float(max(0, self._space()))
        line = f"--cache {self.folder}: {len(self)} images are {_amount(whole)}, {_amount(still)} not in it yet"
        return line if still <= space else f"warning: {line}; there is room for {_amount(space)}"

    def _space(self) -> int:
        """Bytes that may still be written."""
        usage = shutil.disk_usage(self.folder)
        return usage.free - max(FREE_BYTES, int(FREE_FRACTION * usage.total))

    def _save(self, path: Path, pixels: Shaped[Tensor, "channels height width"]) -> None:
        values = pixels.permute(1, 2, 0).contiguous().numpy()
        header = np.array([values.itemsize, *pixels.shape, _check(values.reshape(-1).view(np.uint8))], "<u8")
        try:
            if self._space() < values.nbytes:
                self._writable = False
                log.warning("the cache %s is full: further images are decoded each time", self.folder)
                return
            if path.parent.exists() and not path.parent.is_dir():
                path.parent.unlink()
            path.parent.mkdir(exist_ok=True)
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            # Not durable: to wait for the disk takes longer than to decode, and `_check` finds what is not whole.
            with replacing(path, beside=self._unfinished / uuid.uuid4().hex, durable=False) as file:
                file.write(header.data)
                file.write(values.data)
        except OSError as error:
            self._writable = False
            log.warning(
                "the cache %s cannot be written (%s): images are decoded each time", self.folder, error.strerror
            )


def _amount(size: float) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.2f} MB"


def _load(path: Path, channels: int, max_pixels: int) -> Shaped[Tensor, "{channels} height width"] | None:
    """The image in a file of the cache, if it is there, whole, and has this many channels."""
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):  # opening a pipe could wait without end
            return None
        with path.open("rb", buffering=0) as file:
            header = np.frombuffer(file.read(HEADER), np.uint8)
            if len(header) < HEADER:
                return None
            itemsize, found, height, width, check = header.view("<u8").tolist()
            size = itemsize * found * height * width
            fits = itemsize in (1, 2) and found == channels and 0 < height * width <= max_pixels
            if not fits or os.fstat(file.fileno()).st_size != HEADER + size:
                return None
            values = np.fromfile(file, np.uint8, size)
    except OSError:
        return None
    if len(values) != size or check != _check(values):
        return None
    values = values.view(np.uint8 if itemsize == 1 else np.uint16).reshape(height, width, channels)
    return torch.from_numpy(values).permute(2, 0, 1)


def _check(values: np.ndarray) -> int:
    """A checksum: the sum of the first eight bytes of every 4096.

    After a power failure a file may have its full length and yet lack pages, which are then zeros. A sum over all bytes
    would take longer than reading the file.
    """
    words = values[: len(values) // 8 * 8].view("<u8")
    return int(words[::512].sum(dtype=np.uint64))
