"""The command that compares a run with what it began with. The end of a run and its report both give it."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable

_SIZE = re.compile(r"\bdensecl evaluate .*--task segmentation .*--image-size (\d{1,5})x(\d{1,5})\b")


def comparison(run: str, other: str, images: str, size: tuple[int, int] | None = None, *, task: str) -> str:
    """The command that says whether the weights of a run beat those that it began with.

    Args:
        run: its folder.
        other: the weights that it began with.
        images: the folder of images, with labels unless the task needs none.
        size: (width, height) for labeled images that differ in size; None: they have one size.
        task: of `densecl evaluate`.
    """
    words = ["densecl", "evaluate", run, other, "--baseline", other, "--task", task, "--data", images]
    if size is not None:
        words += ["--image-size", "x".join(map(str, size))]
    return shlex.join(words)


def size_in(log: Iterable[str]) -> tuple[int, int] | None:
    """(width, height) in that command as the end of a run has logged it; None: it has none.

    The report takes it from there: a run's folder may come from elsewhere, without its labeled images.
    """
    found = [match for line in log if (match := _SIZE.search(line))]
    return (int(found[-1][1]), int(found[-1][2])) if found else None
