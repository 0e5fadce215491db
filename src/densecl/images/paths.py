"""The paths of many files in a few arrays. A million take tens of megabytes, and forked workers share them."""

from __future__ import annotations

import hashlib
import heapq
import itertools
import operator
import os
import re
from array import array
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool

#: Names that are Python objects at the same time while they are sorted.
CHUNK = 65_536


class Strings(NamedTuple):
    """Many byte strings in two arrays."""

    text: np.ndarray  # uint8, all strings one after the other
    ends: np.ndarray  # int64, one past the last byte of each

    @classmethod
    def pack(cls, strings: Iterable[bytes]) -> Strings:
        """All strings in their order. Only one at a time is a Python object."""
        text, ends = bytearray(), array("q")
        for string in strings:
            text += string
            ends.append(len(text))
        return cls(np.frombuffer(text, np.uint8), np.frombuffer(ends, np.int64))

    def get(self, index: int) -> bytes:
        """The string at this place."""
        return self.text[self.ends[index - 1] if index else 0 : self.ends[index]].tobytes()


class PathIndex:
    """The paths of many files: each folder is stored once, and each name once.

    Names may be anything that the file system allows, valid UTF-8 or not.
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
        return os.fsdecode(os.path.join(self.folders.get(self.folder_of(index)), self.names.get(index)))

    def folder_of(self, index: int) -> int:
        """The number of the folder that an image is in."""
        return int(np.searchsorted(self._ends, index, side="right"))

    def images_of(self, folder: int) -> range:
        """The numbers of the images in a folder."""
        end = int(self._ends[folder])
        return range(end - int(self.counts[folder]), end)

    def keep(self, chosen: Bool[np.ndarray, " images"]) -> PathIndex:
        """The chosen images, in the same order. A folder stays even if none of its images does."""
        lengths = np.diff(self.names.ends, prepend=0)
        folders = np.repeat(np.arange(len(self.counts)), self.counts)
        return PathIndex(
            self.folders,
            np.bincount(folders[chosen], minlength=len(self.counts)),
            Strings(self.names.text[np.repeat(chosen, lengths)], np.cumsum(lengths[chosen])),
        )

    def fingerprint(self) -> str:
        """A hash of the names, and of how many each folder has. The names of the folders do not count."""
        digest = hashlib.sha256()
        for part in (self.counts, self.names.ends, self.names.text):
            digest.update(np.ascontiguousarray(part).data)
        return digest.hexdigest()

    @classmethod
    def of(cls, folder: Path, names: Iterable[bytes]) -> PathIndex:
        """Names relative to one folder, in their order."""
        packed = Strings.pack(names)
        return cls(Strings.pack([absolute(folder)]), np.array([len(packed.ends)]), packed)


def by_folder(paths: PathIndex) -> PathIndex:
    """The same files in the order of a folder's listing, by folder and name, however they were listed."""
    found = sorted({os.path.split(os.path.abspath(os.fsencode(paths[index]))) for index in range(len(paths))})
    folders = [folder for folder, _ in itertools.groupby(found, key=operator.itemgetter(0))]
    counts = np.array([sum(1 for _ in files) for _, files in itertools.groupby(found, key=operator.itemgetter(0))])
    return PathIndex(Strings.pack(folders), counts, Strings.pack(name for _, name in found))


class Found(NamedTuple):
    """The files of a source, and lines to tell the user how they were found."""

    paths: PathIndex
    notes: tuple[str, ...] = ()


def absolute(path: Path) -> bytes:
    """The absolute path, in the file system's bytes."""
    return os.fsencode(os.path.abspath(path))


def in_order(names: Iterator[bytes]) -> Iterator[bytes]:
    """The names, sorted. A million Python objects would take 80 MB, so sorted chunks are packed, then merged."""
    runs = []
    while chunk := sorted(itertools.islice(names, CHUNK)):
        runs.append(b"\0".join(chunk))
    if len(runs) == 1:
        return iter(runs[0].split(b"\0"))
    return heapq.merge(*(map(re.Match.group, re.finditer(rb"[^\0]+", run)) for run in runs))
