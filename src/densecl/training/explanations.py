"""What the user is told when torch, Lightning or the system fails: one clear line instead of theirs."""

from __future__ import annotations

import contextlib
import logging
import re
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from densecl.config import automatic
from densecl.config.settings import Settings
from densecl.errors import UserError

#: How the ways of running out of memory are worded.
OUT_OF_MEMORY = re.compile(r"out of memory|can't allocate memory|not enough memory")

#: How torch reports a data-loading worker that is gone; the group is what the system calls the signal, if it was one.
WORKER_GONE = re.compile(r"DataLoader worker .*?(?:killed by signal: (.*?)\. |exited unexpectedly)")


@contextlib.contextmanager
def lightning_quiet() -> Iterator[None]:
    """Lightning's remarks are about how we use it, not for our users. Its errors come through."""
    loggers = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric", "pytorch_lightning")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"(lightning|pytorch_lightning)\.")
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)


@contextlib.contextmanager
def memory_explained(recipe: Settings[Any], *, resumed: Path | None = None) -> Iterator[None]:
    """One message for every way of running out of memory, and for a data-loading worker that died.

    Args:
        recipe: of the run, as far as it is resolved.
        resumed: the folder of a run that goes on, and so keeps its sizes.

    Raises:
        UserError: with what to try.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:  # torch.OutOfMemoryError is a RuntimeError
        said = f"{error.__cause__} {error}"  # torch notices a dead worker in two ways, of which one knows the signal
        worker = WORKER_GONE.search(said)
        if worker:
            raise UserError(_how_a_worker_died(worker[1], recipe)) from error
        if not isinstance(error, (torch.OutOfMemoryError, MemoryError)) and not OUT_OF_MEMORY.search(str(error)):
            raise
        at = f"Out of memory at --batch-size {recipe.batch_size} and --image-size {recipe.image_size}"
        if resumed is None:
            raise UserError(f"{at}. Try one of: {', '.join(_smaller(recipe))}.") from error
        raise UserError(
            f"{at}, which a resumed run keeps. Give it a device with more memory, more --devices, or where there is no"
            f" batch norm --checkpoint-activations; or start a new run with --init {resumed} and a smaller"
            " --batch-size."
        ) from error


def _smaller(recipe: Settings[Any]) -> Iterator[str]:
    """Settings that need less memory."""
    size = recipe.batch_size
    yield f"--batch-size {automatic.SMALLEST_BATCH // 2 if size == 'auto' else max(1, size // 2)}"
    if size != "auto":
        images = size // (recipe.processes * recipe.accumulate)
        # Statistics over the batch, which some methods take, need two images in a part, and split more.
        if images % 2 == 0 and images >= 4 and recipe.key_norm != "split":
            yield f"--accumulate {recipe.accumulate * 2}"
        if recipe.method == "simclr":
            yield "--method moco"  # keeps the activations of one view
    if recipe.image_size >= 64:
        yield f"--image-size {recipe.image_size * 3 // 4 // 32 * 32}"
    if recipe.output_stride in (8, 16):
        yield f"--output-stride {recipe.output_stride * 2}"


def _how_a_worker_died(signal_text: str | None, recipe: Settings[Any]) -> str:
    """By the system's words for the signal that ended it."""
    fewer = f"fewer --workers than {recipe.workers}, such as 0"
    if signal_text == "Bus error":
        return (
            "A data-loading worker was killed, most likely for want of shared memory. In a container give more"
            f" ('docker run --shm-size 8g'), or try {fewer}."
        )
    if signal_text == "Killed":
        return (
            "A data-loading worker was killed, most likely by the system for want of memory. Go on with --resume;"
            f" {fewer}, need less."
        )
    how = f"died of a signal ({signal_text})" if signal_text else "ended before it could say why"
    return (
        f"A data-loading worker {how}; what it wrote itself stands above. With --workers 0 the images are read by the"
        " training itself, which then shows where."
    )
