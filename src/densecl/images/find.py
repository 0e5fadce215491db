"""The image files that a path names: a folder, a text file of paths, a glob, or one file."""

from __future__ import annotations

import glob
import itertools
import os
from collections.abc import Iterator
from pathlib import Path

from densecl.errors import UserError, nearest
from densecl.images.formats import EXTENSIONS
from densecl.images.listing import list_folder
from densecl.images.paths import Found, PathIndex, in_order


def find(data: Path) -> Found:
    """The files that the path names.

    Raises:
        UserError: there is nothing there, or nothing that could be an image.
    """
    if data.is_dir():
        return list_folder(data)
    if data.is_file():
        if data.suffix.lower() in EXTENSIONS:
            return Found(PathIndex.of(data.parent, [os.fsencode(data.name)]))
        return Found(_read_list(data))
    if glob.has_magic(str(data)):
        return Found(_match(data))
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

    paths = PathIndex.of(Path(), in_order(files()))
    if len(paths) == 0:
        raise UserError(f"no file matches {pattern} (a glob such as 'photos/**/*.jpg', in quotes)")
    return paths
