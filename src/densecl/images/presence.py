"""What `--data` names: whether there is anything. Told without reading an image, and without loading torch."""

from __future__ import annotations

import glob
import itertools
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn
from urllib.request import url2pathname

from densecl.errors import UserError, nearest
from densecl.names import on_disk, shown


def place(data: Path | str) -> tuple[str, os.stat_result | None]:
    """The path that `--data` names, and what the system knows of it; None for a glob.

    Raises:
        UserError: there is nothing there, or it cannot be read.
    """
    path = os.path.expanduser(local_path(str(data)))
    try:
        path = on_disk(path)
        return path, os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        if glob.has_magic(path):
            return path, None
        _missing(path)
    except (OSError, ValueError) as error:  # too long, a link to itself, with a zero byte, in a closed folder
        raise UserError(f"{shown(path)} cannot be read: {getattr(error, 'strerror', error)}.") from error


def local_path(address: str) -> str:
    """The path of a local file given as an address (``file://...``); any other text as it is.

    Raises:
        UserError: it is the address of something on the network.
    """
    scheme = re.match(r"([a-z][a-z0-9+.-]+)://", address, re.IGNORECASE)
    if scheme is None:
        return address
    if scheme[1].lower() != "file":
        raise UserError(f"{shown(address)} is an address; images are read from files. Download or mount it first.")
    return url2pathname(re.sub(r"^file://(localhost)?", "", address, flags=re.IGNORECASE))


def _missing(path: str) -> NoReturn:
    """
    Raises:
        UserError: always, with a guess at what was meant.
    """
    folder, name = os.path.split(path.rstrip("/"))
    forward = path.replace("\\", "/")
    if forward != path and os.path.exists(forward):
        hint = f" Did you mean '{shown(forward)}'?"
    else:
        try:
            with os.scandir(folder or ".") as entries:
                hint = nearest(name, [entry.name for entry in itertools.islice(entries, 1000)])
        except OSError:
            hint = ""
    raise UserError(f"no such folder or file: {shown(path)}.{shown(hint)}")


def check_apart(data: Sequence[str | Path]) -> None:
    """
    Raises:
        UserError: one of the paths is given twice, or lies in another one, so that its images would count twice.
    """
    paths = [os.path.realpath(place(each)[0]) for each in data]
    for (one, path), (other, above) in itertools.permutations(zip(data, paths, strict=True), 2):
        if path == above:
            raise UserError(f"--data {shown(one)} is given twice.")
        if path.startswith(above.rstrip(os.sep) + os.sep) and os.path.isdir(above):
            raise UserError(f"--data {shown(one)} lies in {shown(other)}, whose images are taken anyway. Leave it out.")
