"""Text files that list images, a path on each line; and what a text file is that lists none."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from urllib.parse import unquote

from densecl.errors import UserError
from densecl.files import replacing
from densecl.images.decode import EXTENSIONS
from densecl.images.paths import Found, PathIndex
from densecl.images.presence import local_path
from densecl.names import on_disk, shown, to_cell

#: What `--data` takes, for messages.
NEEDED = "--data takes a folder of images, a text file with a path per line, a quoted glob, or one image"

#: A line that is longer than this many bytes is no path.
LONGEST = 8192

#: One of the first lines of a list, this many, has to name a file.
TRIED = 100

_ENDINGS = frozenset(map(os.fsencode, EXTENSIONS))

#: A line that can be read in one way only.
_PLAIN = re.compile(rb"""[!#-&(-\[\]-}](?:[ -&(-\[\]-~]*[!#-&(-\[\]-~])?""")


def read_list(file: Path, head: bytes) -> Found:
    """The images that a text file lists.

    Args:
        file: the list. Relative paths in it start at its own folder.
        head: its first bytes.

    Raises:
        UserError: it lists no images.
    """
    folder = os.path.abspath(file.parent)
    notes = []

    def lines() -> Iterator[bytes]:
        tried, found = 0, False
        unsure: list[bytes] = []  # held back until a line names a file
        with file.open("rb") as stream:
            for number, read in enumerate(iter(lambda: stream.readline(LONGEST + 1), b"")):
                if len(read) > LONGEST and found:
                    long = f"line {number + 1} has more than {LONGEST} bytes"
                    raise UserError(f"{shown(file)} is not a list of images: {long}, which is no path.")
                if len(read) > LONGEST or b"\0" in read:
                    raise UserError(_no_list(file, head))
                line = read.removeprefix(b"\xef\xbb\xbf") if number == 0 else read
                text = line.strip()
                if not text or text.startswith(b"#"):
                    continue
                path = _as_meant(folder, line.rstrip(b"\r\n"))
                if found:
                    yield path
                    continue
                tried += 1
                unsure.append(path)
                whole = os.path.join(os.fsencode(folder), path)
                found = os.path.lexists(whole) and not os.path.isdir(whole)
                if found:
                    if len(unsure) > 1 and os.path.splitext(unsure[0])[1].lower() not in _ENDINGS:
                        notes.append(f"left out: the first line of the list, '{shown(os.fsdecode(unsure.pop(0)))}'")
                    yield from unsure
                elif tried == TRIED:
                    break
        if tried and not found:
            raise UserError(_no_list(file, head))

    paths = PathIndex.of(file.parent, lines())
    if len(paths) == 0:
        raise UserError(f"{shown(file)} lists no images; it needs a path per line")
    return Found(paths, tuple(notes))


def as_line(path: str) -> bytes | None:
    """An absolute path as a line of a list; None for a name that no line can say, such as one with a line break."""
    line = os.fsencode(path)
    plain = not set(line) & set(b"\r\n\0") and len(line) <= LONGEST
    return line if plain and _as_meant(os.path.dirname(path), line) == line else None


def write_list(path: Path, heading: str, rows: Iterable[tuple[str, str | None]]) -> int:
    """Write a list of images, which `read_list` reads.

    Args:
        path: of the list.
        heading: a comment at its top.
        rows: absolute paths; each with None, or with the reason why it is left out. Those stand in comments.

    Returns:
        How many paths no line can say. They are missing from the list.
    """
    unsayable = 0
    with replacing(path) as file:
        file.write(f"# {heading}\n".encode())
        for name, reason in rows:
            if reason is not None:
                file.write(f"#   {to_cell(reason)}: {to_cell(name)}\n".encode())
                continue
            line = as_line(name)
            unsayable += line is None
            file.write(b"" if line is None else line + b"\n")
    return unsayable


def _as_meant(folder: str, line: bytes) -> bytes:
    """The path that a line means: the first reading of it that names a file, or else the line itself."""
    if _PLAIN.fullmatch(line) and b"://" not in line:
        return line
    for reading in _readings(os.fsdecode(line)):
        path = on_disk(os.path.join(folder, reading))
        if "\0" not in path and os.path.lexists(path):
            return os.fsencode(path if os.path.isabs(reading) else path[len(os.path.join(folder, "")) :])
    return line.strip()


def _readings(line: str) -> Iterator[str]:
    """Ways to read a line: without blanks around it, with them, without quotes, as an address, as a Windows path."""
    text = line.strip()
    yield text
    yield line
    if len(text) > 1 and text[0] == text[-1] and text[0] in "\"'":
        text = text[1:-1]
        yield text
    if text.startswith("~"):
        yield os.path.expanduser(text)
    if text.lower().startswith("file://"):
        yield local_path(text)
        yield unquote(local_path(text))
    yield text.replace("\\", "/")


def _no_list(file: Path, head: bytes) -> str:
    """A message: what this text file is, if not a list of paths, and what is needed instead."""
    text = head.decode("utf-8", "replace").removeprefix("\ufeff").lstrip()
    name, extension = shown(file), file.suffix.lower()
    if text[:1] in ("{", "[") and ('"' in text[:1000] or extension == ".json"):
        coco = any(f'"{word}"' in text for word in ("annotations", "categories", "file_name", "images"))
        kind = "a JSON file of annotations, such as COCO's" if coco else "a JSON file"
        return f"{name} is {kind}, not a list of images. Give the folder that the images are in."
    if text.startswith("<"):
        return f"{name} is an XML or HTML file, not a list of images. Give the folder that the images are in."
    if extension in (".yaml", ".yml"):
        if re.search(r"^backbone:", text, re.MULTILINE):
            return f"{name} is a recipe. Settings go with --config; {NEEDED}."
        return f"{name} is a YAML file, such as YOLO's, not a list of images. Give the folder that the images are in."
    lines = [line.strip() for line in text.splitlines()[:TRIED] if line.strip() and not line.lstrip().startswith("#")]
    for number, line in enumerate(lines, 1):
        for word in (line.rsplit(None, 1)[0], *re.split(r"[\s,;|]+", line), *re.split(r"[,;|\t]", line)):
            word = word.strip("\"' ")
            if word and word != line and _is_file(file.parent / word):
                return (
                    f"{name} is a table or a list with labels, not a list of paths: line {number}, '{shown(line, 60)}',"
                    f" holds more than the path '{shown(word, 60)}'. It needs a path alone on each line."
                )
    if any(os.path.isdir(file.parent / line) for line in lines if "\0" not in line):
        return f"{name} lists folders. It needs the path of an image on each line; or give the folder above, or a glob."
    if b"\r" in head and b"\n" not in head:
        return f"{name} has the line ends of old Macs. Save it with those of Linux or Windows."
    if any(_is_file(Path(line)) and not _is_file(file.parent / line) for line in lines):
        return (
            f"{name} lists paths that are there from the current folder, but they are read from the list's own,"
            f" {shown(file.parent)}. Move the list, or write whole paths."
        )
    if not lines or extension == ".csv" or len(lines[0]) > 1000:
        return f"{name} is not a list of images. {NEEDED}."
    least = f"none of its first {TRIED} lines" if len(lines) == TRIED else "no line"
    return (
        f"{name} is not a list of images that are there: {least} names a file. The first, '{shown(lines[0], 60)}',"
        f" would be '{shown(file.parent / lines[0])}'."
    )


def _is_file(path: Path) -> bool:
    return "\0" not in str(path) and os.path.isfile(path)
