"""The image files that a path names: a folder, a text file of paths, a glob, or one file.

Whatever else it names is refused with what it is and what is needed. Of no file more is read than it takes to tell.
"""

from __future__ import annotations

import glob
import itertools
import os
import re
import stat
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn
from urllib.parse import unquote
from urllib.request import url2pathname

from densecl.errors import UserError, nearest
from densecl.images.decode import EXTENSIONS, BadImage, heif, npy
from densecl.images.formats import head_of, kind_of
from densecl.images.listing import Others, left_out, list_folder
from densecl.images.paths import Found, PathIndex, in_order
from densecl.names import FORMS, on_disk, shown

#: What `--data` takes, for messages.
NEEDED = "--data takes a folder of images, a text file with a path per line, a quoted glob, or one image"

#: Bytes of a file that are looked at to tell what it is, and of a line that may be a path.
HEAD, LONGEST = 65_536, 8192

#: Lines of a list, at its beginning, one of which must name a file.
TRIED = 100

#: What a file is by its extension, where its bytes do not say it.
BY_EXTENSION = {
    ".npz": "a file of NumPy arrays",
    ".pth": "a file of weights",
    ".pt": "a file of weights",
    ".ckpt": "a file of weights",
    ".safetensors": "a file of weights",
    ".onnx": "a file of weights",
    ".tfrecord": "a TFRecord file",
    ".lmdb": "an LMDB data base",
    ".mdb": "an LMDB data base",
    ".mat": "a MATLAB file",
}

#: A word in what a file is -> what to do with it.
ADVICE = {
    "archive": "Unpack it and give the folder.",
    "video": "Take frames out of it, for instance with ffmpeg, and give their folder.",
    "weights": "Weights go with --init; --data takes a folder of images.",
    "XML": "Give the folder that the images are in.",
    "web page": "Give the folder that the images are in.",
    "LFS": "Run git lfs pull.",
    "image": "Convert it to a format that is: JPEG, PNG or TIFF.",
}
IN_PYTHON = "Open it in Python and give densecl.pretrain a data set of its images, or write them into a folder."


def find(data: Path | str) -> Found:
    """The files that the path, or the address of a local file, names.

    Raises:
        UserError: there is nothing there, or nothing that could be an image.
    """
    path = os.path.expanduser(_local(str(data)))
    try:
        path = on_disk(path)
        mode = os.stat(path).st_mode
    except (FileNotFoundError, NotADirectoryError):
        return _match(path) if glob.has_magic(path) else _missing(path)
    except (OSError, ValueError) as error:  # too long, a link to itself, a zero byte in it, a folder that is closed
        raise UserError(f"{shown(path)} cannot be read: {getattr(error, 'strerror', error)}.") from error
    if stat.S_ISDIR(mode):
        return list_folder(Path(path))
    if not stat.S_ISREG(mode):
        what = "a named pipe" if stat.S_ISFIFO(mode) else "a socket" if stat.S_ISSOCK(mode) else "a device"
        raise UserError(f"{shown(path)} is {what}. {NEEDED}.")
    return _open_file(Path(path))


def _local(address: str) -> str:
    scheme = re.match(r"([a-z][a-z0-9+.-]+)://", address, re.IGNORECASE)
    if scheme is None:
        return address
    if scheme[1].lower() != "file":
        raise UserError(f"{shown(address)} is an address; images are read from files. Download or mount it first.")
    return url2pathname(re.sub(r"^file://(localhost)?", "", address, flags=re.IGNORECASE))


def _missing(path: str) -> NoReturn:
    """
    Raises:
        UserError: always, with what was perhaps meant.
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


def _open_file(file: Path) -> Found:
    head = head_of(os.fspath(file), HEAD)
    kind = kind_of(head)
    extension = file.suffix.lower()
    name = shown(file)
    if kind == "a NumPy array":
        _check_array(file)
    if extension in EXTENSIONS or kind in ("a NumPy array", *_READ):
        return Found(PathIndex.of(file.parent, [os.fsencode(file.name)]))
    if not head:
        raise UserError(f"{name} is empty, or cannot be read. {NEEDED}.")
    unmarked = kind is None and head[1::2].count(0) > len(head) // 4 and 0 not in head[::2]
    if unmarked or head.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise UserError(f"{name} is a text in UTF-16 or UTF-32. Save it as UTF-8.")
    if kind is not None or b"\0" in head or extension in BY_EXTENSION:
        kind = BY_EXTENSION.get(extension) or kind or "a file of another kind"
        advice = next((text for word, text in ADVICE.items() if word in kind), IN_PYTHON)
        if "image" in kind:
            raise UserError(f"{name} is {kind}, a format that is not read. {advice}")
        raise UserError(f"{name} is {kind}: neither a folder, nor an image, nor a text file of paths. {advice}")
    return _read_list(file, head)


_READ = (
    *("a JPEG image", "a PNG image", "a BMP image", "a TIFF image", "a WebP image", "a PPM, PGM or PBM image"),
    *(("an AVIF image",) if heif.AVIF else ()),
    *(("a HEIC image",) if heif.HEIC else ()),
)


def _check_array(file: Path) -> None:
    """
    Raises:
        UserError: many images in one file.
    """
    try:
        with file.open("rb") as stream:
            shape, *_ = npy.read_header(stream)
    except (OSError, ValueError, EOFError, BadImage):
        return  # left to the decoder, which says what is wrong
    if len(shape) > 3:
        sides = "x".join(map(str, shape))
        raise UserError(f"{shown(file)} holds an array of {sides}, not one image. {IN_PYTHON}")


# --- lists --------------------------------------------------------------------------------------------------------


def _read_list(file: Path, head: bytes) -> Found:
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


_ENDINGS = frozenset(map(os.fsencode, EXTENSIONS))

#: A line that can be read in one way only.
_PLAIN = re.compile(rb"""[!#-&(-\[\]-}](?:[ -&(-\[\]-~]*[!#-&(-\[\]-~])?""")


def _as_meant(folder: str, line: bytes) -> bytes:
    """The path that a line means: the first way of reading it by which there is a file, or else the line itself."""
    if _PLAIN.fullmatch(line) and b"://" not in line:
        return line
    for reading in _readings(os.fsdecode(line)):
        path = on_disk(os.path.join(folder, reading))
        if "\0" not in path and os.path.lexists(path):
            return os.fsencode(path if os.path.isabs(reading) else path[len(os.path.join(folder, "")) :])
    return line.strip()


def _readings(line: str) -> Iterator[str]:
    """Ways of reading a line: without blanks around it, with them, without quotes, as an address, from Windows."""
    text = line.strip()
    yield text
    yield line
    if len(text) > 1 and text[0] == text[-1] and text[0] in "\"'":
        text = text[1:-1]
        yield text
    if text.startswith("~"):
        yield os.path.expanduser(text)
    if text.lower().startswith("file://"):
        yield _local(text)
        yield unquote(_local(text))
    yield text.replace("\\", "/")


def _no_list(file: Path, head: bytes) -> str:
    """What a text file is that holds no list of paths, and what is needed."""
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


# --- globs --------------------------------------------------------------------------------------------------------


def _match(pattern: str) -> Found:
    """The files that a glob matches: of every extension that it names, or of those that are read."""
    named = re.search(r"\.[^./*?\[\]]+$", pattern)
    others = Others()

    def files(form: str) -> Iterator[bytes]:
        for path in glob.iglob(os.fsencode(form), recursive=True):
            if not os.path.isdir(path):
                if named or os.path.splitext(path)[1].lower() in _ENDINGS:
                    yield path
                else:
                    others.add(path)

    for form in dict.fromkeys((pattern, *(unicodedata.normalize(form, pattern) for form in FORMS))):
        paths = PathIndex.of(Path(), in_order(files(form)))
        if len(paths):
            return Found(paths, left_out(others, len(paths)))
    raise UserError(f"no file matches {shown(pattern)} (a glob such as 'photos/**/*.jpg', in quotes)")
