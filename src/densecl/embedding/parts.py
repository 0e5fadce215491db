"""What is done of a file of vectors, as numbered files in a folder beside it.

A part holds the vectors of some images that follow each other. It is written at once and moved into its place, so a
process that is killed loses at most the part that it had in memory. Memory does not grow with the number of images.
"""

from __future__ import annotations

import contextlib
import json
import re
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import safetensors
import safetensors.torch
import torch
from filelock import Timeout
from jaxtyping import Float, Int64
from torch import Tensor

from densecl.embedding.plan import Plan
from densecl.errors import UserError
from densecl.files import lock, replacing
from densecl.names import shown

_NAME = re.compile(r"(\d{12})-(\d{12})\.safetensors")

#: Seconds to wait for the folder's lock; workers of a killed process may still hold it.
LEAVING = 10.0


class Chunk(NamedTuple):
    """Vectors of some images, in order. Images that cannot be used have none, so `index` may have holes."""

    index: Int64[Tensor, "images"]  # in the source
    sides: Int64[Tensor, "images 2"]  # height and width of the images themselves
    vectors: Float[Tensor, "images *rest"]
    bad: tuple[tuple[int, str], ...]  # images without a vector, and why


class Part(NamedTuple):
    """A part on disk."""

    path: Path
    start: int  # its first image
    stop: int  # one past its last


class Parts:
    """The parts of one file.

    Args:
        folder: for them alone, `claimed`.
        plan: what the file will hold.
        resume: go on with what is in the folder.

    Raises:
        UserError: the folder holds parts and `resume` is not set, or parts of another plan.
    """

    def __init__(self, folder: Path, plan: Plan, *, resume: bool) -> None:
        self.folder = folder
        self.plan = plan
        self.parts = list(_row(folder))
        written = folder / "plan.json"
        if self.parts and not resume:
            raise UserError(
                f"{shown(folder)} holds {self.stop} of {plan.images} images of an earlier call. Go on with --resume, or"
                " remove that folder to begin anew."
            )
        if self.parts:
            past = _plan_in(written)
            if past is None:
                raise UserError(f"{shown(written)} is missing or damaged. Remove that folder to begin anew.")
            if difference := plan.difference(past):
                raise UserError(
                    f"{shown(folder)} was begun with {difference}. Give the same, or remove that folder to begin anew."
                )
        with replacing(written) as file:
            file.write(json.dumps(plan.as_metadata(), indent=1).encode())

    @property
    def stop(self) -> int:
        """One past the last image that is done."""
        return self.parts[-1].stop if self.parts else 0

    def add(self, start: int, stop: int, chunks: Sequence[Chunk]) -> None:
        """Write a part: the images `start` to `stop` - 1."""
        path = self.folder / f"{start:012d}-{stop:012d}.safetensors"
        tensors = {
            name: torch.cat([getattr(chunk, name) for chunk in chunks]) for name in ("index", "sides", "vectors")
        }
        bad = [list(one) for chunk in chunks for one in chunk.bad]
        with replacing(path) as file:
            file.write(safetensors.torch.save(tensors, {"bad": json.dumps(bad)}))
        self.parts.append(Part(path, start, stop))

    def __iter__(self) -> Iterator[Chunk]:
        """What each part holds, one part in memory at a time.

        Raises:
            UserError: one is damaged.
        """
        for part in self.parts:
            with _opened(part) as file:
                yield self._outline(part, file)._replace(vectors=file.get_tensor("vectors"))

    def outlines(self) -> Iterator[Chunk]:
        """What each part holds, without the vectors, which are not read.

        Raises:
            UserError: one is damaged.
        """
        for part in self.parts:
            with _opened(part) as file:
                yield self._outline(part, file)

    def _outline(self, part: Part, file: Any) -> Chunk:
        index, sides = file.get_tensor("index"), file.get_tensor("sides")
        bad = json.loads(file.metadata()["bad"])
        shapes = [[len(index), 2], [len(index), *self.plan.shape]]
        if [file.get_slice(name).get_shape() for name in ("sides", "vectors")] != shapes:
            raise ValueError("shapes that do not fit together")
        if len(index) + len(bad) != part.stop - part.start:
            raise ValueError("too few images")
        return Chunk(index, sides, torch.empty(len(index), 0), tuple((number, reason) for number, reason in bad))

    def remove(self) -> None:
        """Remove the folder; call it when the file is there."""
        shutil.rmtree(self.folder, ignore_errors=True)


def _row(folder: Path) -> Iterator[Part]:
    """The parts that follow each other from the first image on. What lies behind a gap is of no use."""
    found = {}
    for path in folder.iterdir() if folder.is_dir() else ():
        if match := _NAME.fullmatch(path.name):
            found[int(match[1])] = Part(path, int(match[1]), int(match[2]))
    at = 0
    while at in found and found[at].stop > at:
        yield found[at]
        at = found[at].stop


@contextlib.contextmanager
def _opened(part: Part) -> Iterator[Any]:
    try:
        with safetensors.safe_open(part.path, framework="pt") as file:
            yield file
    except (OSError, safetensors.SafetensorError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"{shown(part.path)} is damaged. Remove it, and go on with --resume.") from error


def _plan_in(path: Path) -> Plan | None:
    try:
        said = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None
    return Plan.from_metadata(said) if isinstance(said, dict) else None


@contextlib.contextmanager
def claimed(folder: Path) -> Iterator[None]:
    """Make the folder, and keep other processes from working there. If no part comes into it, it goes again.

    Raises:
        UserError: another one does.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as held:
        try:
            held.enter_context(lock(folder / ".lock", timeout=LEAVING))
        except Timeout as error:
            raise UserError(f"Another process is at work in {shown(folder)}. Wait for it, or stop it.") from error
        try:
            yield
        finally:
            if folder.is_dir() and not any(_NAME.fullmatch(path.name) for path in folder.iterdir()):
                shutil.rmtree(folder, ignore_errors=True)
