"""Shows how far a pass over images is, on stderr, if it takes a while."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

from rich.console import Console

from densecl.progress import Display

Item = TypeVar("Item")

#: Seconds after which it is shown.
PATIENCE = 2.0


def watched(batches: Iterable[Item], images: int, batch_size: int, title: str | None) -> Iterator[Item]:
    """The same batches, counted.

    Args:
        batches: of images.
        images: in all of them.
        batch_size: images of a batch; the last one may have fewer.
        title: what they are, and what is done with them. None: nothing is shown.
    """
    display: Display | None = None
    started = time.monotonic()
    done = 0
    try:
        for batch in batches:
            yield batch
            done = min(images, done + batch_size)
            if title is None or (display is None and time.monotonic() - started < PATIENCE):
                continue
            if display is None:
                display = Display(Console(stderr=True), images, title=title, what="image")
            left = (time.monotonic() - started) / done * (images - done)
            display.step(done, done / images, left)
            display.report(done, (), left)
    finally:
        if display is not None:
            display.close()
