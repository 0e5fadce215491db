"""The image files that `--data` names: a folder, a text file of paths, a glob, or one file.

Anything else is refused with a message that says what it is and what is needed. Only the first bytes of a file are
read.
"""

from __future__ import annotations

import glob
import os
import re
import stat
import unicodedata
from collections.abc import Iterator
from pathlib import Path

from densecl.errors import UserError
from densecl.images.decode import EXTENSIONS, KINDS, BadImage, npy
from densecl.images.early import no_match
from densecl.images.formats import head_of, kind_of
from densecl.images.listing import list_folder
from densecl.images.lists import NEEDED, read_list
from densecl.images.paths import Found, PathIndex, in_order
from densecl.images.presence import place
from densecl.images.refused import BY_EXTENSION, IN_PYTHON, refused
from densecl.images.unread import Unread, left_out
from densecl.names import FORMS, shown

#: Bytes at the beginning of a file that are read to tell what it is.
HEAD = 65_536


def find(data: Path | str) -> Found:
    """The files that a path, or the address of a local file, names.

    Raises:
        UserError: there is nothing there, or nothing that could be an image.
    """
    path, status = place(data)
    if status is None:
        return _match(path)
    mode = status.st_mode
    if stat.S_ISDIR(mode):
        return list_folder(Path(path))
    if not stat.S_ISREG(mode):
        what = "a named pipe" if stat.S_ISFIFO(mode) else "a socket" if stat.S_ISSOCK(mode) else "a device"
        raise UserError(f"{shown(path)} is {what}. {NEEDED}.")
    return _open_file(Path(path))


def _open_file(file: Path) -> Found:
    head = head_of(os.fspath(file), HEAD)
    kind = kind_of(head)
    extension = file.suffix.lower()
    name = shown(file)
    if kind == "a NumPy array":
        _check_array(file)
    if extension in EXTENSIONS or kind in KINDS:
        return Found(PathIndex.of(file.parent, [os.fsencode(file.name)]))
    if not head:
        raise UserError(f"{name} is empty, or cannot be read. {NEEDED}.")
    unmarked = kind is None and head[1::2].count(0) > len(head) // 4 and 0 not in head[::2]
    if unmarked or head.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise UserError(f"{name} is a text in UTF-16 or UTF-32. Save it as UTF-8.")
    if kind is not None or b"\0" in head or extension in BY_EXTENSION:
        raise refused(file, kind)
    return read_list(file, head)


def _check_array(file: Path) -> None:
    """
    Raises:
        UserError: the file holds many images.
    """
    try:
        with file.open("rb") as stream:
            shape, *_ = npy.read_header(stream)
    except (OSError, ValueError, EOFError, BadImage):
        return  # the decoder will say what is wrong
    if len(shape) > 3:
        sides = "x".join(map(str, shape))
        raise UserError(f"{shown(file)} holds an array of {sides}, not one image. {IN_PYTHON}")


_ENDINGS = frozenset(map(os.fsencode, EXTENSIONS))


def _match(pattern: str) -> Found:
    """The files that a glob matches. If the glob names no extension, only files of known image formats."""
    named = re.search(r"\.[^./*?\[\]]+$", pattern)
    unread = Unread()

    def files(form: str) -> Iterator[bytes]:
        for path in glob.iglob(os.fsencode(form), recursive=True):
            if not os.path.isdir(path):
                if named or os.path.splitext(path)[1].lower() in _ENDINGS:
                    yield path
                else:
                    unread.add(path)

    for form in dict.fromkeys((pattern, *(unicodedata.normalize(form, pattern) for form in FORMS))):
        paths = PathIndex.of(Path(), in_order(files(form)))
        if len(paths):
            return Found(paths, left_out(unread, len(paths)))
    raise no_match(pattern)
