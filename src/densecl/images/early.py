"""What can be told of `--data` before torch is loaded: that there is nothing in it that could be an image.

It is told only where it is certain. `find` looks at all once more, and knows which formats this installation reads.
"""

from __future__ import annotations

import glob
import itertools
import os
import stat
import unicodedata
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from densecl.errors import UserError
from densecl.images.formats import PICTURES, extension_of, head_of, kind_of
from densecl.images.presence import place
from densecl.images.refused import BY_EXTENSION, refused
from densecl.names import FORMS, shown

#: Files of a folder that are looked at before torch is loaded. Of larger folders nothing is said here.
LOOKED_AT = 5000

#: Extensions of files that hold no images, wherever densecl is installed.
_TEXTS = ".txt .csv .tsv .json .jsonl .xml .yaml .yml .md .rst .log .html .htm .py .ipynb .pdf .doc .docx .xls .xlsx"
_PACKED = [words for group, words in PICTURES.items() if group.startswith(("films", "archives"))]
OTHERS = frozenset((*" ".join((_TEXTS, *_PACKED)).split(), *BY_EXTENSION))


def check_data(data: Path | str) -> None:
    """
    Raises:
        UserError: there is nothing there, or nothing that could be an image.
    """
    path, status = place(data)
    if status is None:
        forms = dict.fromkeys((path, *(unicodedata.normalize(form, path) for form in FORMS)))
        if not any(True for form in forms for _ in glob.iglob(os.fsencode(form), recursive=True)):
            raise no_match(path)
    elif stat.S_ISDIR(status.st_mode):
        _check_folder(path)
    elif stat.S_ISREG(status.st_mode) and extension_of(os.fsencode(path)) in OTHERS:
        kind = kind_of(head_of(path))
        if kind is not None and "image" not in kind and "array" not in kind:
            raise refused(Path(path), kind)


def no_match(pattern: str) -> UserError:
    """The error for a glob that matches nothing."""
    return UserError(f"no file matches {shown(pattern)} (a glob such as 'photos/**/*.jpg', in quotes)")


def _check_folder(root: str) -> None:
    """
    Raises:
        UserError: it holds no files, or only such as hold no images.
    """
    counts: Counter[str] = Counter()
    files = list(itertools.islice(_visible(root), LOOKED_AT + 1))
    for file in files:
        counts[extension_of(os.fsencode(file))] += 1
    if len(files) > LOOKED_AT or not counts.keys() <= OTHERS:
        return
    some = ", ".join(f"{count} {extension}" for extension, count in counts.most_common(8))
    raise UserError(f"no images in {shown(root)} and the folders below. It holds {some or 'no files'}.")


def _visible(root: str) -> Iterator[str]:
    """The names of the files in a folder and below, but for hidden ones. A folder that cannot be read counts as one."""
    unread: list[OSError] = []
    for folder, folders, files in os.walk(root, onerror=unread.append):
        folders[:] = [name for name in folders if not name.startswith(".")]
        # `walk` follows no links to folders, so that nothing is certain of those.
        yield from (name for name in files if not name.startswith("."))
        yield from ("link" for name in folders if os.path.islink(os.path.join(folder, name)))
        if unread:
            yield "unread"
