"""A folder of decoded images: later epochs, and later runs, read them instead of decoding the files again.

What is kept is what the source gave, decoded and shrunk, to the bit: a run is the same with the cache and without. An
image is a file of its own, named by all that its pixels follow from and written beside its place, so that any number of
processes and machines may share the folder and find an image whole or not at all. There is no second layer in memory:
files that fit into free memory stay there by the system's doing, which a folder in /dev/shm makes sure of.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import shutil
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Shaped
from torch import Tensor

from densecl.errors import UserError
from densecl.images.decode import BadImage
from densecl.images.sources import DatasetSource, ImageSource

#: Named in every key: another number whenever the files' form or what decoding gives changes.
VERSION = 1

#: A cache leaves this much of its file system free: a share, and bytes.
FREE_SHARE, FREE_BYTES = 0.05, 2**30

#: Bytes before the pixels: bytes of a value, channels, height, width, and `_check` of the pixels, 64 bits each.
HEADER = 40

#: What a killed process had not finished is removed after this long.
ABANDONED_SECONDS = 3600.0

log = logging.getLogger(__name__)


class CachedSource(ImageSource):
    """The images of another source, each decoded once.

    Once the file system is nearly full, or a file cannot be written, the rest are decoded whenever they are read.

    Args:
        source: the images, from files.
        folder: of the cache, made if it is not there. Several sources may share it. It may be deleted at any time.

    Raises:
        UserError: the folder cannot be written, or the images have no files.
    """

    def __init__(self, source: ImageSource, folder: Path | str) -> None:
        if isinstance(source, DatasetSource):
            raise UserError("--cache needs image files; it cannot be used with a data set in Python")
        self.source = source
        self.folder = Path(folder).expanduser().absolute()
        self._unfinished = self.folder / "unfinished"
        self._writable = True
        try:
            self._unfinished.mkdir(parents=True, exist_ok=True)
            tempfile.TemporaryFile(dir=self._unfinished).close()
            for path in self._unfinished.iterdir():
                if path.stat().st_mtime < time.time() - ABANDONED_SECONDS:
                    path.unlink(missing_ok=True)
        except OSError as error:
            raise UserError(f"--cache {folder}: the folder cannot be written ({error.strerror})") from error

    def __len__(self) -> int:
        return len(self.source)

    def read(self, index: int) -> Shaped[Tensor, "channels height width"]:
        path = self._path(index)
        pixels = None if path is None else _load(path)
        if pixels is None:
            pixels = self.source.read(index)
            if path is not None and self._writable:
                self._save(path, pixels)
        return pixels

    def _path(self, index: int) -> Path | None:
        """Of the image's file in the cache, which need not be there."""
        key = self.source.key(index)
        if key is None:
            return None
        name = hashlib.blake2b(b"%d\0%s" % (VERSION, key), digest_size=20).hexdigest()
        return self.folder / name[:2] / name[2:]

    def name(self, index: int) -> str:
        return self.source.name(index)

    def key(self, index: int) -> bytes | None:
        return self.source.key(index)

    def notes(self) -> tuple[str, ...]:
        return self.source.notes()

    def fingerprint(self) -> str:
        return self.source.fingerprint()

    def forecast(self, images: int = 8) -> str:
        """A line on how much the cache will hold, from some images between the first and the last."""
        sizes, missing = [], 0
        for index in np.linspace(0, len(self) - 1, min(images, len(self)), dtype=int).tolist():
            path = self._path(index)
            known = path is not None and path.is_file()
            with contextlib.suppress(BadImage):  # left to the run, which counts them
                sizes.append(self.read(index).nbytes)
                missing += not known
        whole = float(np.mean(sizes)) * len(self) if sizes else 0.0
        still, space = whole * missing / max(1, len(sizes)), float(max(0, self._space()))
        line = f"--cache {self.folder}: {len(self)} images are {_amount(whole)}, {_amount(still)} not in it yet"
        return line if still <= space else f"warning: {line}; there is room for {_amount(space)}"

    def _space(self) -> int:
        """Bytes that may still be written."""
        usage = shutil.disk_usage(self.folder)
        return usage.free - max(FREE_BYTES, int(FREE_SHARE * usage.total))

    def _save(self, path: Path, pixels: Shaped[Tensor, "channels height width"]) -> None:
        values = pixels.permute(1, 2, 0).contiguous().numpy()
        header = np.array([values.itemsize, *pixels.shape, _check(values.reshape(-1).view(np.uint8))], "<u8")
        try:
            if self._space() < values.nbytes:
                self._writable = False
                log.warning("the cache %s is full: further images are decoded each time", self.folder)
                return
            path.parent.mkdir(exist_ok=True)
            with tempfile.NamedTemporaryFile(dir=self._unfinished, delete=False) as file:
                try:
                    file.write(header.data)
                    file.write(values.data)
                    file.close()
                    os.replace(file.name, path)
                except BaseException:
                    os.unlink(file.name)
                    raise
        except OSError as error:
            self._writable = False
            log.warning(
                "the cache %s cannot be written (%s): images are decoded each time", self.folder, error.strerror
            )


def _amount(size: float) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.2f} MB"


def _load(path: Path) -> Shaped[Tensor, "channels height width"] | None:
    """The image in a file of the cache, if it is there and whole."""
    try:
        content = np.fromfile(path, np.uint8)
    except OSError:
        return None
    header, values = content[:HEADER], content[HEADER:]
    if len(header) < HEADER:
        return None
    itemsize, channels, height, width, check = header.view("<u8").tolist()
    if itemsize not in (1, 2) or len(values) != itemsize * channels * height * width or check != _check(values):
        return None
    values = values.view(np.uint8 if itemsize == 1 else np.uint16).reshape(height, width, channels)
    return torch.from_numpy(values).permute(2, 0, 1)


def _check(values: np.ndarray) -> int:
    """The sum of eight bytes of each page of 4096.

    A file that was moved to its place before a power failure may have its length and yet lack pages, which are then
    zeros. Reading every byte for a better sum would take longer than reading the file.
    """
    words = values[: len(values) // 8 * 8].view("<u8")
    return int(words[::512].sum(dtype=np.uint64))
