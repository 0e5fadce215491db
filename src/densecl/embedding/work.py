"""From images to the file: parts beside it, and their joining."""

from __future__ import annotations

import contextlib
import signal
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from rich.console import Console
from torch import Tensor

from densecl.embedding.checks import skipped_file
from densecl.embedding.formats import Format, Rows
from densecl.embedding.parts import Chunk, Parts, claimed
from densecl.embedding.plan import Plan
from densecl.embedding.vectors import embed_images
from densecl.errors import UserError
from densecl.files import replacing
from densecl.images.sources import ImageSource
from densecl.interrupts import Interrupts
from densecl.model.backbone import Backbone
from densecl.names import counted, shown, to_csv
from densecl.progress import Display

#: A part is written when its vectors have so many bytes, or after so many seconds.
PART_BYTES, PART_SECONDS = 2**26, 60.0

#: Seconds between two numbers of the progress.
TOLD_EVERY = 1.0

#: Images that cannot be used of which the reason is shown. The file of skipped images has all.
SHOWN = 3


class Reading(NamedTuple):
    """How images are read."""

    batch_size: int
    workers: int
    timeout: float  # seconds after which the reading of an image counts as stuck


def parts_folder(out: Path) -> Path:
    """Where the parts of a file lie while it is made."""
    return out.with_name(f"{out.name}.parts")


def make_file(
    out: Path,
    format: Format,
    backbone: Backbone,
    source: ImageSource,
    plan: Plan,
    device: torch.device,
    reading: Reading,
    console: Console,
    *,
    resume: bool,
) -> int:
    """Make the parts, going on with those that are there, and join them to the file.

    Returns:
        The number of rows.

    Raises:
        UserError: parts of an earlier call are in the way, or no image can be used.
        KeyboardInterrupt, SystemExit: a signal asked to stop; what is done is saved.
    """
    folder = parts_folder(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    interrupts = Interrupts()
    with claimed(folder):
        parts = Parts(folder, plan, resume=resume)
        if parts.stop:
            console.print(f"going on after {counted(parts.stop, 'image')}")
        display = Display(console, len(source), parts.stop, what="image")
        interrupts.listen()
        try:
            batches = embed_images(
                backbone,
                source,
                plan,
                device,
                start=parts.stop,
                batch_size=reading.batch_size,
                workers=reading.workers,
                read_timeout=reading.timeout,
            )
            with contextlib.closing(batches):
                _write_parts(parts, batches, len(source), display, interrupts)
        finally:
            display.close()
            interrupts.ignore()
        if interrupts.received is not None and parts.stop < len(source):
            _stop(interrupts.received, parts.stop, console)
        rows, bad = _rows(parts, source)
        if len(rows.index) == 0:
            first = bad[0]
            parts.remove()
            raise UserError(
                f"None of the {len(source)} images can be used. The first: {shown(source.name(first[0]))}: {first[1]}"
            )
        _write_skipped(out, source, bad, console)
        format.write(out, rows)
        parts.remove()
    console.print(f"{counted(len(rows.index), 'row')} in {shown(out)}")
    return len(rows.index)


def _write_parts(
    parts: Parts, batches: Iterable[tuple[int, Chunk]], total: int, display: Display, interrupts: Interrupts
) -> None:
    """Takes batches until all are done or a signal asks to stop, and writes a part now and then."""
    begun = written = told = time.monotonic()
    first = start = parts.stop
    chunks: list[Chunk] = []
    size = 0
    for stop, chunk in batches:
        chunks.append(chunk)
        size += chunk.vectors.nbytes
        now = time.monotonic()
        rate = (stop - first) / max(now - begun, 1e-9)
        left = (total - stop) / rate
        if now - told >= TOLD_EVERY or stop == total:
            told = now
            display.report(stop, (f"{rate:.4g} images/s",), left)
        display.step(stop, stop / total, left)
        stopped = interrupts.received is not None
        if size >= PART_BYTES or now - written >= PART_SECONDS or stop == total or stopped:
            parts.add(start, stop, chunks)
            start, chunks, size, written = stop, [], 0, time.monotonic()
        if stopped:
            return


def _rows(parts: Parts, source: ImageSource) -> tuple[Rows, list[tuple[int, str]]]:
    """What is to be written, and the images that cannot be."""
    index, sides, bad = [], [], []
    for chunk in parts.outlines():
        index.append(chunk.index.numpy())
        sides.append(chunk.sides.numpy().astype(np.int32))
        bad += chunk.bad

    def vectors() -> Iterator[Tensor]:
        return (chunk.vectors for chunk in parts)

    return Rows(parts.plan, np.concatenate(index), np.concatenate(sides), source.name, vectors), bad


def _write_skipped(out: Path, source: ImageSource, bad: Sequence[tuple[int, str]], console: Console) -> None:
    if not bad:
        return
    with replacing(skipped_file(out)) as file:
        file.write(to_csv([("path", "reason"), *((source.name(index), reason) for index, reason in bad)]))
    console.print(f"{len(bad)} images cannot be used and have no row: {shown(skipped_file(out))}")
    for index, reason in bad[:SHOWN]:
        console.print(f"  {shown(source.name(index))}: {shown(reason)}")


def _stop(received: signal.Signals, done: int, console: Console) -> None:
    """Ends the process as the signal asks for, once all is saved."""
    message = (
        f"Stopped by {received.name} after {counted(done, 'image')}. What is done is saved. Go on with the same command"
        " and --resume."
    )
    console.print(message)
    if received == signal.SIGINT:
        raise KeyboardInterrupt(message)
    raise SystemExit(128 + received)
