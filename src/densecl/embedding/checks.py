"""What is checked before any work is done."""

from __future__ import annotations

import math
from pathlib import Path

import torch

from densecl.embedding.formats import Format
from densecl.embedding.plan import DTYPES
from densecl.errors import UserError, nearest
from densecl.names import listing, shown

#: The longest side that images are resized to. Whoever asks for more has mistyped.
LONGEST_SIDE = 8192


def sides_of(image_size: int | tuple[int, int]) -> tuple[int, int]:
    """(width, height) of a size that is given so, or as the side of a square.

    Raises:
        UserError: there are no such images.
    """
    size = (image_size, image_size) if isinstance(image_size, int) else tuple(image_size)
    if min(size) < 1 or max(size) > LONGEST_SIDE:
        raise UserError(f"--image-size {'x'.join(map(str, size))}: sides must be 1 to {LONGEST_SIDE} pixels.")
    return size[0], size[1]


def check_numbers(
    dtype: str, batch_size: int | None, workers: int | None, read_timeout: float, threshold: float
) -> None:
    """
    Raises:
        UserError: for the first value out of its range.
    """
    if dtype not in DTYPES:
        raise UserError(f"--dtype takes {listing(DTYPES)}, not '{dtype}'.{nearest(dtype, DTYPES)}")
    if batch_size is not None and batch_size < 1:
        raise UserError(f"--batch-size must be at least 1, not {batch_size}.")
    if workers is not None and workers < 0:
        raise UserError(f"--workers must be at least 0, not {workers}.")
    if not 0 < read_timeout < math.inf:
        raise UserError(f"--read-timeout must be greater than 0, not {read_timeout:g}.")
    if not 0 < threshold <= 1:
        raise UserError(f"--threshold must lie above 0 and up to 1, not {threshold:g}.")


def device_of_name(name: str) -> torch.device:
    """The device of this name; "auto" is a GPU if there is one.

    Raises:
        UserError: there is no such device here.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UserError(f"--device takes auto, cpu, cuda or cuda:1, not '{name}'.") from error
    number = device.index or 0
    if device.type == "cuda" and number >= (torch.cuda.device_count() if torch.cuda.is_available() else 0):
        raise UserError(f"--device {name}: torch sees no such GPU here.")
    if device.type not in ("cpu", "cuda", "mps") or (device.type == "mps" and not torch.backends.mps.is_available()):
        raise UserError(f"--device {name}: takes auto, cpu, cuda, cuda:1 or, on a Mac, mps.")
    return device


def check_out(out: Path, format: Format, listed: Path | None, *, resume: bool) -> None:
    """
    Args:
        out: the file of vectors.
        format: of the file.
        listed: the list of images without near-duplicates, if there shall be one.
        resume: the file of vectors may be there. A list may not, because somebody may have worked on it.

    Raises:
        UserError: a file is in the way.
    """
    if out.is_dir():
        raise UserError(f"--out {shown(out)} is a folder. Give the name of a file.")
    if listed is not None and listed.suffix.lower() != ".txt":
        raise UserError(f"--duplicates {shown(listed)}: the list is a text file. Give it a name that ends with .txt.")
    if listed is not None and listed.exists():
        raise UserError(f"--duplicates {shown(listed)} exists already. Choose another name, or remove it.")
    if resume:
        return
    for path in (out, *format.companions(out), skipped_file(out)):
        if path.exists():
            hint = "Go on from it with --resume, choose" if out.exists() else "Choose"
            raise UserError(f"--out {shown(out)}: {shown(path)} exists already. {hint} another name, or remove it.")


def skipped_file(out: Path) -> Path:
    """The list of images without a row, beside the file of vectors."""
    return out.with_name(f"{out.name}.skipped.csv")
