"""Files that are not read: how many there are of each extension, and which of them hold pictures.

A user whose photographs are among them must hear of it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from densecl.images.decode import EXTENSIONS, EXTENSIONS_OF_EXTRAS
from densecl.images.formats import PICTURES, extension_of, head_of, kind_of
from densecl.names import shown

#: Files of an unknown extension that are opened, to see whether they are pictures.
SAMPLES = 3

#: Extensions that are counted apart. "scan.0001", "scan.0002" and so on would make too many.
KINDS = 100

#: Extensions that a message names.
SHOWN = 8

#: If the pictures left out are more than this fraction of the images that are read, the user is warned.
MANY = 0.05

_PICTURES = frozenset(" ".join(PICTURES.values()).split())


class Unread:
    """Counts, by extension, files that are not read."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self._samples: dict[str, list[bytes]] = {}
        self._known: dict[bytes, str] = {}  # endings seen before: there may be as many label files as images

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
        """How many hold pictures, by extension. Either the extension says so, or the content of a few files."""
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


def no_images(root: Path, unread: Unread) -> str:
    """A message: there are no images below a folder, but these files."""
    holds = f"It holds {_listed(unread.counts.most_common())}" if unread.counts else "It holds no files"
    return f"no images in {shown(root)} and the folders below. {holds}; densecl reads {' '.join(EXTENSIONS)}."


def left_out(unread: Unread, images: int) -> tuple[str, ...]:
    """A line on the pictures that are not read, as a warning if they are many."""
    pictures = unread.pictures()
    if not pictures:
        return ()
    begin = "warning: left out" if sum(pictures.values()) > MANY * images else "left out"
    more = "".join(f"; {extension}: {how}" for extension, how in EXTENSIONS_OF_EXTRAS.items() if extension in pictures)
    return (f"{begin}: {_listed(pictures.items())} (densecl reads {' '.join(EXTENSIONS)}{more})",)
