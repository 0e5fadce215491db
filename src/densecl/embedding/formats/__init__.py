"""The files that vectors are written to: a file of code a format, and a row by the ending of the name."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Int32, Int64
from torch import Tensor

from densecl.embedding.plan import Plan
from densecl.errors import UserError
from densecl.images.paths import Strings
from densecl.names import listing, shown

FORMATS = {
    ".safetensors": "densecl.embedding.formats.safetensors",
    ".npy": "densecl.embedding.formats.npy",
    ".parquet": "densecl.embedding.formats.parquet",
}


class Rows(NamedTuple):
    """What is written: a row for each image that could be used. Only the vectors are too large for memory."""

    plan: Plan
    index: Int64[np.ndarray, "images"]  # in the source
    sides: Int32[np.ndarray, "images 2"]  # height and width of the images themselves
    name: Callable[[int], str]  # of the image with this index
    vectors: Callable[[], Iterator[Tensor]]  # blocks of rows, together "images *rest"

    def names(self) -> Iterator[str]:
        """The name of each row."""
        return map(self.name, self.index.tolist())


class Stored(NamedTuple):
    """What is read back."""

    plan: Plan
    names: Strings  # of the rows, in the file system's bytes
    vectors: Callable[[], Iterator[Tensor]]  # blocks of rows


@runtime_checkable
class Format(Protocol):
    """What the file of a format offers."""

    def check(self) -> None:
        """
        Raises:
            UserError: this installation cannot write the format.
        """
        ...

    def companions(self, path: Path) -> tuple[Path, ...]:
        """Other files that belong to the file."""
        ...

    def write(self, path: Path, rows: Rows) -> None:
        """Write all of it beside its place and move it there, the companions first."""
        ...

    def read(self, path: Path) -> Stored | None:
        """What is in such a file; None if it was not written by `write`, or is damaged."""
        ...


def format_of(path: Path) -> Format:
    """The format of a file, by the ending of its name.

    Raises:
        UserError: there is none, or this installation cannot write it.
    """
    module = FORMATS.get(path.suffix.lower())
    if module is None:
        raise UserError(f"--out {shown(path)}: the name must end with {listing(FORMATS)}, which says the format.")
    format: Format = importlib.import_module(module)  # pyright: ignore[reportAssignmentType]
    format.check()
    return format
