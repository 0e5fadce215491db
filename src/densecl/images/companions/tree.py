"""The images of a folder by their folders and names: which of them belong together, and what each looks like."""

from __future__ import annotations

import contextlib
import math
import os
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from densecl.images.companions.hints import NAMED_SIZE, Kind, bases
from densecl.images.companions.looks import Look, look_at
from densecl.images.decode import BadImage, measure
from densecl.images.paths import PathIndex, absolute

#: Images of a kind that are opened.
SAMPLES = 12

#: How far two images of one scene, at any scale, may differ in the ratio of their sides.
SAME_SHAPE = 0.02

#: A photograph that was compressed without loss takes more bytes than this for each pixel.
PACKED = 0.25

#: Up to this many folders, all are searched for equal names even without a hint.
FOLDERS = 64


class Tree:
    """The images below a root folder.

    Attributes:
        parts: of each folder with images, the parts of its path below the root, by its number.
        suspected: of each image, whether it is of a kind that may be no photograph.
    """

    def __init__(self, paths: PathIndex, root: Path) -> None:
        self.paths = paths
        self.suspected = np.zeros(len(paths), bool)
        self._looks: dict[int, Look | None] = {}
        self._sizes: dict[int, tuple[int, int] | None] = {}
        base = len(os.path.join(absolute(root), b""))
        folders = [index for index, count in enumerate(paths.counts.tolist()) if count]
        self.parts = {folder: tuple(filter(None, paths.folders.get(folder)[base:].split(b"/"))) for folder in folders}
        self._folder_at = {parts: folder for folder, parts in self.parts.items()}
        self._below: dict[tuple[bytes, ...], set[bytes]] = defaultdict(set)
        for parts in self.parts.values():
            for level, part in enumerate(parts):
                self._below[parts[:level]].add(part)

    def look(self, index: int) -> Look | None:
        """What the image looks like; None if it cannot be read."""
        if index not in self._looks:
            self._looks[index] = look_at(self.paths[index])
        return self._looks[index]

    def looks(self, kind: Kind) -> list[Look]:
        """The looks of some images of a kind, without those that cannot be read."""
        return [look for index in some(kind.images, SAMPLES) if (look := self.look(index))]

    def size(self, index: int) -> tuple[int, int] | None:
        """Height and width of the image; None if it cannot be read."""
        if index not in self._sizes:
            try:
                self._sizes[index] = measure(self.paths[index], 3)
            except BadImage:
                self._sizes[index] = None
        return self._sizes[index]

    def same_shape(self, one: int, other: int) -> bool:
        """Whether two images may show the same scene, at any scale and turned or not. True if a size is unknown."""
        sizes = self.size(one), self.size(other)
        if None in sizes:
            return True
        first, second = (max(size) / max(1, min(size)) for size in sizes if size)
        return abs(first / second - 1) <= SAME_SHAPE

    def smaller(self, one: int, other: int) -> bool:
        """Whether an image is a small copy of another: at most half its pixels, or the size that its name says."""
        size, whole = self.size(one), self.size(other)
        if size is None or whole is None:
            return False
        fraction = math.prod(size) / math.prod(whole)
        named = NAMED_SIZE.search(os.path.splitext(self.paths.names.get(one))[0])
        return fraction < 1 and size == (int(named[2]), int(named[1])) if named else fraction <= 0.5

    def packed(self, index: int) -> bool:
        """Whether the file is too small for a photograph in a lossless format."""
        size = self.size(index)
        with contextlib.suppress(OSError):
            return size is not None and os.stat(self.paths[index]).st_size < PACKED * math.prod(size)
        return False

    def partners(self, index: int, level: int | None) -> Iterator[int]:
        """Images with the same name apart from the hint: at most one from each folder, the likeliest first."""
        stem = os.path.splitext(self.paths.names.get(index))[0]
        parts = self.parts[self.paths.folder_of(index)]
        shorter = list(bases(stem))
        for folder in self._expected(parts, level):
            found = next((found for base in shorter if (found := self.find(folder, base)) is not None), None)
            if found is not None:
                yield found

    def _expected(self, parts: tuple[bytes, ...], level: int | None) -> Iterator[int]:
        """Folders that may hold the photographs of this folder's label maps, the likeliest first."""
        if level is None:
            yield self._folder_at[parts]
            level = max(0, len(parts) - 1)
        above, below = parts[:level], parts[level + 1 :]
        beside = sorted(self._below[above] - {*parts[level : level + 1]})
        places = [above + below, above]
        places += [(*above, other, *rest) for other in beside for rest in (below, (), below[-1:])]
        likely = [self._folder_at[place] for place in dict.fromkeys(places) if place in self._folder_at]
        yield from likely
        if len(self.parts) <= FOLDERS:
            yield from (folder for folder in self.parts if folder not in likely)

    def find(self, folder: int, base: bytes) -> int | None:
        """The first image in a folder that is not suspected and named `base`, or `base`, a separator and more."""
        images = self.paths.images_of(folder)
        low, high = images.start, images.stop
        while low < high:
            middle = (low + high) // 2
            low, high = (middle + 1, high) if self.paths.names.get(middle) < base else (low, middle)
        for index in range(low, min(low + 20, images.stop)):
            name = self.paths.names.get(index)
            if not name.startswith(base):
                break
            if name[len(base) : len(base) + 1] in (b".", b"_", b"-", b" ") and not self.suspected[index]:
                return index
        return None


def some(images: Sequence[int] | np.ndarray, count: int) -> list[int]:
    """At most `count` of the images, evenly spread."""
    places = np.linspace(0, len(images) - 1, min(count, len(images))).astype(int)
    return [int(images[place]) for place in places]
