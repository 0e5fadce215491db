"""Every image below a folder, listed in the same order on every machine: by folder, then by name, in bytes.

An image is a file with one of the `EXTENSIONS`, in upper or lower case. Left out are hidden files and folders (a
leading dot, or the system's own), and label maps, depth maps and thumbnails (`companions`). Links are followed. A
folder that is reached twice is listed once. A link that leads nowhere is kept, so that it is reported as a bad image.
"""

from __future__ import annotations

import hashlib
import logging
import os
import time
import uuid
from array import array
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from platformdirs import user_cache_path

from densecl.errors import UserError
from densecl.files import replacing
from densecl.images.companions import set_aside
from densecl.images.decode import EXTENSIONS
from densecl.images.paths import Found, PathIndex, Strings, absolute, in_order
from densecl.images.unread import Unread, left_out, no_images
from densecl.names import shown

#: Part of every key of the cache. Increase it whenever the choice of files, or the form of the saved listing, changes.
VERSION = 1

#: Folders of fewer images are listed every time, which takes a fraction of a second.
CACHED_FROM = 10_000

#: A folder changed this recently may change again within the same time stamp, so its listing is not saved.
SETTLED_SECONDS = 2.0

#: Folders that archives and file servers leave beside the images. They are hidden on the systems that made them.
SYSTEM = frozenset((b"@eaDir", b"__MACOSX", b"$RECYCLE.BIN", b"System Volume Information", b"lost+found"))

log = logging.getLogger(__name__)


def list_folder(root: Path) -> Found:
    """Every image below a folder, from the saved listing if no folder has changed since.

    Raises:
        UserError: the folder cannot be read or holds no images.
    """
    key = hashlib.sha256(f"{VERSION} {EXTENSIONS}\0".encode() + absolute(root)).hexdigest()
    cache = user_cache_path("densecl") / "listings" / f"{key}.npz"
    found = _load_listing(cache)
    if found is None:
        started = time.time()
        paths, stamps, unread = _scan(root)
        if len(paths) == 0:
            raise UserError(no_images(root, unread))
        paths, notes = set_aside(paths, root)
        found = Found(paths, (*left_out(unread, len(paths)), *notes))
        settled = stamps[:, 1].max() < (started - SETTLED_SECONDS) * 1e9
        if len(paths) >= CACHED_FROM and settled:
            _save_listing(cache, found, stamps)
    return found


def _scan(root: Path) -> tuple[PathIndex, np.ndarray, Unread]:
    """One walk over all folders below the root.

    Returns:
        The images; a stamp of each folder (inode, time of change in ns); and the files that are not read.
    """
    text, ends, counts, stamps = bytearray(), array("q"), array("q"), array("q")
    seen: set[tuple[int, int]] = set()
    unread = Unread()

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
                for name in in_order(_images(folder, below, unread)):
                    text.extend(name)
                    ends.append(len(text))
            except OSError as error:
                if not stamps:
                    raise UserError(f"cannot read the folder {shown(root)}: {error.strerror}") from error
                name = shown(os.fsdecode(folder))
                log.warning("skipped a folder that cannot be read: %s (%s)", name, error.strerror)
                continue
            pending.extend(sorted(below, reverse=True))
            counts.append(len(ends) - before)
            stamps.extend((status.st_ino & 0x7FFF_FFFF_FFFF_FFFF, status.st_mtime_ns))
            yield folder

    packed = Strings.pack(folders())
    names = Strings(np.frombuffer(text, np.uint8), np.frombuffer(ends, np.int64))
    paths = PathIndex(packed, np.frombuffer(counts, np.int64), names)
    return paths, np.frombuffer(stamps, np.int64).reshape(-1, 2), unread


def _images(folder: bytes, below: list[bytes], unread: Unread) -> Iterator[bytes]:
    """Names of the images in one folder. Adds its subfolders to `below`, and counts other files in `unread`."""
    with os.scandir(folder) as entries:
        for entry in entries:
            name = entry.name
            if name.startswith(b".") or name in SYSTEM:
                continue
            try:
                folder_here = entry.is_dir()
            except OSError:  # a link to itself
                folder_here = False
            if folder_here:
                below.append(entry.path)
            elif name[name.rfind(b".") :].lower() not in _ENDINGS:
                unread.add(entry.path)
            elif entry.is_symlink() or entry.is_file():
                yield name


_ENDINGS = frozenset(map(os.fsencode, EXTENSIONS))


def _load_listing(cache: Path) -> Found | None:
    """The saved listing, if it is whole and every folder in it still has the same inode and time of change."""
    try:
        with cache.open("rb") as file, np.load(file, allow_pickle=False) as saved:
            folders = Strings(saved["folder_text"], saved["folder_ends"])
            paths = PathIndex(folders, saved["counts"], Strings(saved["name_text"], saved["name_ends"]))
            for place, stamp in enumerate(saved["stamps"].tolist()):
                status = os.stat(folders.get(place))
                if [status.st_ino & 0x7FFF_FFFF_FFFF_FFFF, status.st_mtime_ns] != stamp:
                    return None
            return Found(paths, tuple(saved["notes"].tolist()))
    except Exception:  # missing, damaged, or a folder is gone: listing again is always right
        return None


def _save_listing(cache: Path, found: Found, stamps: np.ndarray) -> None:
    # Other processes may save the same listing now, so each writes an unfinished file of its own.
    beside = cache.with_name(f"{cache.name}.{uuid.uuid4().hex}.part")
    try:
        cache.parent.mkdir(parents=True, exist_ok=True)
        with replacing(cache, beside=beside) as file:
            np.savez(
                file,
                folder_text=found.paths.folders.text,
                folder_ends=found.paths.folders.ends,
                counts=found.paths.counts,
                name_text=found.paths.names.text,
                name_ends=found.paths.names.ends,
                stamps=stamps,
                notes=np.array(found.notes, np.str_),
            )
    except OSError as error:  # the home folder cannot be written: the next run lists again
        log.debug("the listing is not cached: %s", error)
