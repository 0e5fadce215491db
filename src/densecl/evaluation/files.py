"""Files of labeled data: which ones count, how they are found by name, and how they are read.

Hidden files and folders (with a leading dot) are never data, just as for `pretrain`. Editors leave some
(``.ipynb_checkpoints``), and Macs do (``._photo.jpg``). A hidden file is only read if a list names it.
"""

from __future__ import annotations

import os
import stat
import unicodedata
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

from jaxtyping import Shaped
from torch import Tensor

from densecl.errors import UserError, nearest
from densecl.images.decode import EXTENSIONS, BadImage, decode, measure
from densecl.names import on_disk, shown

#: The split to score on, unless one is named: the first of these that there is.
TEST_SPLITS = ("test", "val", "valid")

#: Larger files are refused: the annotations of one image, and a list of files.
MAX_TEXT_BYTES = 16 * 1024**2
MAX_LIST_BYTES = 1024**3


def is_image(path: Path) -> bool:
    """Whether a file has the extension of an image."""
    return path.suffix.lower() in EXTENSIONS


# --- what there is ------------------------------------------------------------------------------------------------


def visible(folder: Path, pattern: str = "*") -> Iterator[Path]:
    """The paths in a folder that match a glob, in no order, without hidden ones and what lies in hidden folders."""
    for path in folder.glob(pattern):
        if not any(part.startswith(".") for part in path.relative_to(folder).parts):
            yield path


def scored_split(data: Path, splits: Collection[str]) -> str:
    """The split to score on when the user names none.

    Raises:
        UserError: there is none that is usually scored on.
    """
    found = [name for name in TEST_SPLITS if name in splits]
    if not found:
        raise UserError(
            f"{shown(data)} has neither a test nor a val split to score on. Name one with --test-split."
            f"{what_there_is(splits)}"
        )
    return found[0]


def what_there_is(splits: Collection[str], asked: str = "") -> str:
    """The end of a message about a missing split: the splits that there are, and the one that was perhaps meant."""
    return f" It has {shown(', '.join(sorted(splits)))}.{nearest(asked, splits)}" if splits else ""


# --- from a name to a file ----------------------------------------------------------------------------------------


def located(root: Path, name: str) -> Path | None:
    """The file of this name below a folder, or None.

    Accents may be composed or not (`names.on_disk`), and folders separated by backslashes, as on Windows.
    """
    ways = dict.fromkeys((name, name.replace("\\", "/")))
    return next((path for way in ways if os.path.isfile(path := Path(on_disk(str(root / way))))), None)


def inside(data: Path, path: Path) -> Path | None:
    """The path, written as one below a folder. None if it leads out: a stranger's file must not choose what is read."""
    way = os.path.relpath(os.path.abspath(path), os.path.abspath(data))
    return None if way.split(os.sep)[0] == os.pardir else data / way


def existing(root: Path, name: str, place: str) -> Path:
    """The file of a name (`located`).

    Raises:
        UserError: there is none. `place` says where the name stands.
    """
    found = located(root, name)
    if found is None:
        raise UserError(f"{place}: there is no file {shown(root / name)}.")
    return found


def any_extension(
    root: Path, name: str, place: str, extensions: Sequence[str] = EXTENSIONS, *, what: str = "image"
) -> Path:
    """The file of a name (`located`) with the first of the extensions that there is, in small letters or capitals.

    Raises:
        UserError: there is none, or its folder is closed. `place` says where the name stands, `what` is what is
            looked for.
    """
    for extension in extensions:
        for each in (extension, extension.upper()):
            if found := located(root, f"{name}{each}"):
                return found
    _check_open((root / name).parent, place)
    other = _of_stem(root / name)
    hint = f" {shown(other)} is there, which is of no format that is read." if other else ""
    raise UserError(f"{place}: there is no {what} {shown(root / name)}.*.{hint}")


def _check_open(folder: Path, place: str) -> None:
    """
    Raises:
        UserError: the user may not look into the folder, so its files only seem to be missing.
    """
    try:
        os.stat(os.path.join(folder, os.curdir))
    except PermissionError as error:
        raise UserError(f"{place}: {shown(folder)} cannot be read: permission denied.") from error
    except OSError:  # missing, or no name of a folder: the caller says so
        pass


def _of_stem(path: Path) -> str | None:
    """The name of a file with this stem, whatever its extension is."""
    try:
        names = os.listdir(path.parent)
    except OSError:
        return None
    return min((name for name in names if not name.startswith(".") and Path(name).stem == path.name), default=None)


def class_name(text: str) -> str:
    """The name of a class, ready to be compared: without blanks around it, and with composed accents."""
    return unicodedata.normalize("NFC", text.strip())


# --- reading ------------------------------------------------------------------------------------------------------


def read_bytes(path: Path, most: int = MAX_TEXT_BYTES) -> bytes:
    """The content of a file.

    Raises:
        UserError: it cannot be read, has more than `most` bytes, or is no regular file. (A named pipe would never end.)
    """
    try:
        with open(path, "rb", opener=_open_at_once) as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise UserError(f"{shown(path)} is no regular file.")
            if status.st_size > most:
                raise UserError(
                    f"{shown(path)} is too large: {status.st_size / 1024**2:.0f} MB, where {most / 1024**2:.0f} are"
                    " more than enough."
                )
            return file.read(most)
    except OSError as error:
        raise UserError(f"{shown(path)} cannot be read: {error.strerror}.") from error


def _open_at_once(path: str, flags: int) -> int:
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


def read_text(path: Path) -> str:
    """A text file, such as a list of files.

    Bytes that are no UTF-8 are decoded as Python decodes names of files, so that such names are found.

    Raises:
        UserError: it cannot be read, or is no text.
    """
    content = read_bytes(path, MAX_LIST_BYTES)
    if b"\0" in content:
        raise UserError(f"{shown(path)} is not a text file.")
    return content.removeprefix(b"\xef\xbb\xbf").decode("utf-8", "surrogateescape")


def read_lines(listing: Path) -> list[tuple[str, str]]:
    """The lines of a text file that are not empty, each with its place for messages.

    Raises:
        UserError: it cannot be read, or is no text.
    """
    lines = read_text(listing).replace("\r\n", "\n").replace("\r", "\n").split("\n")
    return [(f"{shown(listing)}, line {number}", line.strip()) for number, line in enumerate(lines, 1) if line.strip()]


def decoded(path: Path, channels: int) -> Shaped[Tensor, "{channels} height width"]:
    """The image, for a caller that cannot leave it out.

    Raises:
        UserError: it cannot be used.
    """
    try:
        return decode(path, channels)
    except BadImage as error:
        raise UserError(f"{shown(path)} cannot be used: {error}") from error


def measured(path: Path, channels: int) -> tuple[int, int]:
    """(width, height) of an image, from its header.

    Raises:
        UserError: it cannot be used.
    """
    try:
        height, width = measure(path, channels)
    except BadImage as error:
        raise UserError(f"{shown(path)} cannot be used: {error}") from error
    return width, height
