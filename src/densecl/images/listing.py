"""Every image below a folder.

What belongs to it: every file whose extension is one of `EXTENSIONS` (in any case). Hidden files and folders (a leading
dot, or the system's own) do not, nor does what lies beside photographs and is none (`companions`). Links are followed;
a folder that is reached twice is listed once. A link that leads nowhere is kept, so that it is reported. The order is
by folder and then by name, in bytes, the same on every machine.
"""

from __future__ import annotations

import hashlib
import logging
import os
import time
import uuid
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
from platformdirs import user_cache_path

from densecl.errors import UserError
from densecl.images.companions import set_aside
from densecl.images.decode import EXTENSIONS, EXTENSIONS_OF_EXTRAS
from densecl.images.formats import PICTURES, extension_of, head_of, kind_of
from densecl.images.paths import Found, PathIndex, Strings, absolute, in_order
from densecl.names import shown

#: Named in every key of the cache: another number whenever what is taken from a folder, or the files' form, changes.
VERSION = 1

#: Folders of fewer images are listed anew each time, which takes a fraction of a second.
CACHED_FROM = 10_000

#: A folder changed this recently may change again without its time stamp showing it, so it is not cached.
SETTLED_SECONDS = 2.0

#: Folders that archives and file servers leave beside the images, hidden where they come from.
SYSTEM = frozenset((b"@eaDir", b"__MACOSX", b"$RECYCLE.BIN", b"System Volume Information", b"lost+found"))

#: Files of an unknown extension whose content is looked at, to say whether they are pictures.
SAMPLES = 3

#: Extensions counted apart: those of "scan.0001", "scan.0002" and so on have no end.
KINDS = 100

#: Extensions that a message names.
SHOWN = 8

#: Pictures left out, as a share of the images that are read, of which a user is warned.
MANY = 0.05

log = logging.getLogger(__name__)


def list_folder(root: Path) -> Found:
    """Every image below a folder, from the cache if no folder below it has changed since.

    Raises:
        UserError: the folder cannot be read or holds no images.
    """
    key = hashlib.sha256(f"{VERSION} {EXTENSIONS}\0".encode() + absolute(root)).hexdigest()
    cache = user_cache_path("densecl") / "listings" / f"{key}.npz"
    found = _load_listing(cache)
    if found is None:
        started = time.time()
        paths, stamps, others = _scan(root)
        if len(paths) == 0:
            raise UserError(_nothing(root, others))
        paths, notes = set_aside(paths, root)
        found = Found(paths, (*left_out(others, len(paths)), *notes))
        settled = stamps[:, 1].max() < (started - SETTLED_SECONDS) * 1e9
        if len(paths) >= CACHED_FROM and settled:
            _save_listing(cache, found, stamps)
    return found


class Others:
    """The files of a folder that are not read, counted by extension."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self._samples: dict[str, list[bytes]] = {}
        self._known: dict[bytes, str] = {}  # there may be as many labels as images

    def add(self, path: bytes) -> None:
        """Count a file."""
        ending = path[path.rfind(b".") :]
        extension = self._known.get(ending)
        if extension is None:
            extension = extension_of(path[path.rfind(b"/") + 1 :])
            if extension not in self.counts and len(self.counts) >= KINDS:
                extension = ""  # "scan.0001", "scan.0002"
            elif extension.encode() == ending:  # not ".nii.gz"
                self._known[ending] = extension
        self.counts[extension] += 1
        if self.counts[extension] <= SAMPLES:
            self._samples.setdefault(extension, []).append(path)

    def pictures(self) -> dict[str, int]:
        """How many hold pictures, by extension: those whose extension says so, and those whose content does."""
        return {
            extension: count
            for extension, count in self.counts.most_common()
            if extension in _PICTURES or all(_is_picture(path) for path in self._samples[extension])
        }


def _is_picture(path: bytes) -> bool:
    return "image" in (kind_of(head_of(path)) or "")


def _listed(counts: Iterable[tuple[str, int]]) -> str:
    counts = list(counts)
    some = ", ".join(f"{count} {extension or 'of no known extension'}" for extension, count in counts[:SHOWN])
    return f"{some}, ..." if len(counts) > SHOWN else some


def _nothing(root: Path, others: Others) -> str:
    holds = f"It holds {_listed(others.counts.most_common())}" if others.counts else "It holds no files"
    return f"no images in {shown(root)} and the folders below. {holds}; densecl reads {' '.join(EXTENSIONS)}."


def left_out(others: Others, images: int) -> tuple[str, ...]:
    """A line on the pictures that are not read, louder if they are many."""
    pictures = others.pictures()
    if not pictures:
        return ()
    begin = "warning: left out" if sum(pictures.values()) > MANY * images else "left out"
    more = "".join(f"; {extension}: {how}" for extension, how in EXTENSIONS_OF_EXTRAS.items() if extension in pictures)
    return (f"{begin}: {_listed(pictures.items())} (densecl reads {' '.join(EXTENSIONS)}{more})",)


def _scan(root: Path) -> tuple[PathIndex, np.ndarray, Others]:
    """One walk over all folders below the root: the images, the stamps (inode, time of change in ns) of each folder,
    and the other files."""
    text, ends, counts, stamps = bytearray(), array("q"), array("q"), array("q")
    seen: set[tuple[int, int]] = set()
    others = Others()

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
                for name in in_order(_images(folder, below, others)):
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
    return paths, np.frombuffer(stamps, np.int64).reshape(-1, 2), others


def _images(folder: bytes, below: list[bytes], others: Others) -> Iterator[bytes]:
    """Names of the images in one folder; the paths of its subfolders are added to `below`, other files counted."""
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
                others.add(entry.path)
            elif entry.is_symlink() or entry.is_file():
                yield name


_PICTURES = frozenset(" ".join(PICTURES.values()).split())
_ENDINGS = frozenset(map(os.fsencode, EXTENSIONS))


def _load_listing(cache: Path) -> Found | None:
    """The listing if it is there, whole, and every folder in it still has the inode and time of then."""
    try:
        with cache.open("rb") as file, np.load(file, allow_pickle=False) as saved:
            folders = Strings(saved["folder_text"], saved["folder_ends"])
            paths = PathIndex(folders, saved["counts"], Strings(saved["name_text"], saved["name_ends"]))
            for place, stamp in enumerate(saved["stamps"].tolist()):
                status = os.stat(folders.get(place))
                if [status.st_ino & 0x7FFF_FFFF_FFFF_FFFF, status.st_mtime_ns] != stamp:
                    return None
            return Found(paths, tuple(saved["notes"].tolist()))
    except Exception:  # missing, from an interrupted disk, a folder gone: listing anew is always right
        return None


def _save_listing(cache: Path, found: Found, stamps: np.ndarray) -> None:
    part = cache.with_name(f"{cache.name}.{uuid.uuid4().hex}.part")
    try:
        cache.parent.mkdir(parents=True, exist_ok=True)
        try:
            with part.open("wb") as file:
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
            os.replace(part, cache)
        finally:
            part.unlink(missing_ok=True)
    except OSError as error:  # a home that cannot be written: the next run lists again
        log.debug("the listing is not cached: %s", error)
