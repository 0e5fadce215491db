"""Files of labeled data: which ones count, how a name leads to one, and how one is read.

Hidden files and folders (leading dot) are never data, as for `pretrain`: neither what an editor leaves
(``.ipynb_checkpoints``) nor what a Mac does (``._photo.jpg``). Only a file that is named on purpose is read.
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

#: Splits that are looked for to score on, when none is named.
TEST_SPLITS = ("test", "val", "valid")

#: The annotations of one image that are larger are none; nor is a list of files.
MAX_TEXT_BYTES = 16 * 1024**2
MAX_LIST_BYTES = 1024**3


def is_image(path: Path) -> bool:
    """Whether a file's name is that of an image."""
    return path.suffix.lower() in EXTENSIONS


# --- what there is ------------------------------------------------------------------------------------------------


def visible(folder: Path, pattern: str = "*") -> Iterator[Path]:
    """What matches a glob in a folder, in no order; without what is hidden, or lies in something hidden, below it."""
    for path in folder.glob(pattern):
        if not any(part.startswith(".") for part in path.relative_to(folder).parts):
            yield path


def scored_split(data: Path, splits: Collection[str]) -> str:
    """The one of a folder's splits to score on where none is named.

    Raises:
        UserError: none of them is for that.
    """
    found = [name for name in TEST_SPLITS if name in splits]
    if not found:
        raise UserError(
            f"{shown(data)} has neither a test nor a val split to score on. Name one with --test-split."
            f"{what_there_is(splits)}"
        )
    return found[0]


def what_there_is(splits: Collection[str], asked: str = "") -> str:
    """The end of a message about a split that is missing: the others, and which of them was perhaps meant."""
    return f" It has {shown(', '.join(sorted(splits)))}.{nearest(asked, splits)}" if splits else ""


# --- from a name to a file ----------------------------------------------------------------------------------------


def located(root: Path, name: str) -> Path | None:
    """The file that has a name below a folder, or None.

    Its accents may be composed or not (`names.on_disk`), and its folders separated by the backslashes of Windows.
    """
    ways = dict.fromkeys((name, name.replace("\\", "/")))
    return next((path for way in ways if os.path.isfile(path := Path(on_disk(str(root / way))))), None)


def inside(data: Path, path: Path) -> Path | None:
    """The path as one below a folder; None if it leads out of it: a stranger's file does not choose what is read."""
    way = os.path.relpath(os.path.abspath(path), os.path.abspath(data))
    return None if way.split(os.sep)[0] == os.pardir else data / way


def existing(root: Path, name: str, place: str) -> Path:
    """The file of a name (`located`).

    Raises:
        UserError: there is none; `place` says who names it.
    """
    found = located(root, name)
    if found is None:
        raise UserError(f"{place}: there is no file {shown(root / name)}.")
    return found


def any_extension(root: Path, name: str, place: str, extensions: Sequence[str] = EXTENSIONS) -> Path:
    """The file of a name (`located`) with one of the extensions, the first that there is, in small letters or capitals.

    Raises:
        UserError: there is none; `place` says who names it.
    """
    for extension in extensions:
        for each in (extension, extension.upper()):
            if found := located(root, f"{name}{each}"):
                return found
    other = _of_stem(root / name)
    hint = f" {shown(other)} is there, which is of no format that is read." if other else ""
    raise UserError(f"{place}: there is no image {shown(root / name)}.*.{hint}")


def _of_stem(path: Path) -> str | None:
    """The name of a file that is called so but for its extension."""
    try:
        names = os.listdir(path.parent)
    except OSError:
        return None
    return min((name for name in names if not name.startswith(".") and Path(name).stem == path.name), default=None)


def class_name(text: str) -> str:
    """The name of a class as it is compared: without blanks around it, its accents composed."""
    return unicodedata.normalize("NFC", text.strip())


# --- reading ------------------------------------------------------------------------------------------------------


def read_bytes(path: Path, most: int = MAX_TEXT_BYTES) -> bytes:
    """The content of a file.

    Raises:
        UserError: it cannot be read, is no regular file (a named pipe would never end), or has more than `most` bytes.
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

    Bytes that are no UTF-8 come as Python has them in names of files, so that such names are found.

    Raises:
        UserError: it cannot be read, or is no text.
    """
    content = read_bytes(path, MAX_LIST_BYTES)
    if b"\0" in content:
        raise UserError(f"{shown(path)} is not a text file.")
    return content.removeprefix(b"\xef\xbb\xbf").decode("utf-8", "surrogateescape")


def read_lines(listing: Path) -> list[tuple[str, str]]:
    """(where it stands, what it says) of each line of a text file that is not empty.

    Raises:
        UserError: it cannot be read, or is no text.
    """
    lines = read_text(listing).replace("\r\n", "\n").replace("\r", "\n").split("\n")
    return [(f"{shown(listing)}, line {number}", line.strip()) for number, line in enumerate(lines, 1) if line.strip()]


def decoded(path: Path, channels: int) -> Shaped[Tensor, "{channels} height width"]:
    """`decode` of an image that cannot be left out.

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
