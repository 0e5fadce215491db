"""Every image below a folder.

What belongs to it: every file whose extension is one of `EXTENSIONS` (in any case), hidden files and
folders (leading dot) excepted. Links are followed; a folder that is reached twice is listed once. A link
that leads nowhere is kept, so that it is reported. The order is by folder and then by name, in bytes, the
same on every machine.
"""

from __future__ import annotations

import hashlib
import logging
import os
import tempfile
import time
from array import array
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from platformdirs import user_cache_path

from densecl.errors import UserError
from densecl.images.formats import EXTENSIONS
from densecl.images.paths import PathIndex, Strings, absolute, in_order

#: Folders of fewer images are listed anew each time, which takes a fraction of a second.
CACHED_FROM = 10_000

#: A folder changed this recently may change again without its time stamp showing it, so it is not cached.
SETTLED_SECONDS = 2.0

log = logging.getLogger(__name__)


def list_folder(root: Path) -> PathIndex:
    """Every image below a folder, from the cache if no folder below it has changed since.

    Raises:
        UserError: the folder cannot be read or holds no images.
    """
    cache = user_cache_path("densecl") / "listings" / f"{hashlib.sha256(absolute(root)).hexdigest()}.npz"
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
        pending = [absolute(root)]
        while pending:
            folder = pending.pop()
            below: list[bytes] = []
            try:
                status = os.stat(folder)
                if (status.st_dev, status.st_ino) in seen:
                    continue
                seen.add((status.st_dev, status.st_ino))
                before = len(ends)
                for name in in_order(_images(folder, below)):
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
