"""Runs that are made to have a fault: what the tests of the verdicts, and benchmarks/verdicts.py, look at."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

import torch
import torch.nn.functional as F
from PIL import Image

from densecl.images.sources import FileSource
from densecl.model import DenseCL
from densecl.model.encoder import Encoder, fieldwise
from densecl.model.key_encoder import MomentumEncoder
from densecl.model.queue import Queue

#: Steps of a run with a fault.
STEPS = 44

#: Of every such run, beside its own settings. It is small enough for a second or two.
COMMON: dict[str, Any] = {"steps": STEPS, "log_every": 2}

SIMCLR: dict[str, Any] = {
    "method": "simclr", "queue_length": None, "key_momentum": None, "dense_negatives": "batch", "matching": "geometry",
}  # fmt: skip


class Fault(NamedTuple):
    """A fault, and what should be said of it."""

    what: str
    verdicts: tuple[str, ...]  # that name it; none: it cannot be told from the numbers
    settings: dict[str, Any]
    made: Callable[[], AbstractContextManager[Any]] = contextlib.nullcontext
    constant: bool = False  # on images of one color each
    by_the_clock: bool = False  # no test may rest on it


def unshuffled() -> AbstractContextManager[Any]:
    """Keys come back in another order than the queries."""
    keys = MomentumEncoder.keys
    return patch.object(MomentumEncoder, "keys", lambda *args: fieldwise(lambda field: field.roll(1, 0), keys(*args)))


def frozen_queue() -> AbstractContextManager[Any]:
    return patch.object(Queue, "enqueue", lambda queue, keys: None)


def unused_key_encoder() -> AbstractContextManager[Any]:
    """Keys are those of the query network; the momentum encoder is updated and never read."""
    return patch.object(MomentumEncoder, "keys", torch.no_grad()(lambda own, pixels, query, random: query(pixels)))


@contextlib.contextmanager
def leaking_batch():
    """All vectors of a step carry a mark of their batch, as strong as what they show.

    Batch norm does so where query and key share their statistics, but takes more steps to learn it than a test has.
    """
    project, forward = Encoder.project, DenseCL.forward
    mark = torch.zeros(())

    def marked(encoder: Encoder, maps: list[torch.Tensor]) -> Any:
        made = project(encoder, maps)
        return made._replace(vector=F.normalize(made.vector + mark, dim=1))

    def step(model: DenseCL, *views: Any) -> Any:
        nonlocal mark
        dim = model.query_encoder.global_head.dim
        mark = F.normalize(torch.randn(dim, generator=torch.Generator().manual_seed(model.steps)), dim=0)
        return forward(model, *views)

    with patch.object(Encoder, "project", marked), patch.object(DenseCL, "forward", step):
        yield


def blurred_queries() -> AbstractContextManager[Any]:
    """The cells of a query are nearly the same, so that all find the same cell of the key most similar."""
    maps = Encoder.maps

    def blurred(encoder: Encoder, pixels: torch.Tensor) -> list[torch.Tensor]:
        found = maps(encoder, pixels)
        if isinstance(encoder, MomentumEncoder):
            return found
        means = (one.mean(dim=(2, 3), keepdim=True) for one in found)
        return [mean + 0.03 * (one - mean) for mean, one in zip(means, found, strict=True)]

    return patch.object(Encoder, "maps", blurred)


@contextlib.contextmanager
def growing_offset():
    """The same vector is added to all features, more of it at each step. Where statistics are frozen a backbone can
    learn to do so."""
    maps, forward = Encoder.maps, DenseCL.forward
    steps = 0

    def shifted(encoder: Encoder, pixels: torch.Tensor) -> list[torch.Tensor]:
        return [one + 0.3 * steps * one.detach().std() for one in maps(encoder, pixels)]

    def step(model: DenseCL, *views: Any) -> Any:
        nonlocal steps
        steps = model.steps
        return forward(model, *views)

    with patch.object(Encoder, "maps", shifted), patch.object(DenseCL, "forward", step):
        yield


def slow_images() -> AbstractContextManager[Any]:
    read = FileSource.read

    def slowly(source: FileSource, *args: Any, **kwargs: Any) -> Any:
        time.sleep(0.05)
        return read(source, *args, **kwargs)

    return patch.object(FileSource, "read", slowly)


FAULTS: dict[str, Fault] = {
    "leak": Fault("batch statistics leak", ("easy-queue",), {"queue_length": 32}, leaking_batch),
    "unshuffled": Fault("keys of other images", ("at-chance",), {}, unshuffled),
    "frozen-queue": Fault("the queue gets no keys", ("easy-queue",), {}, frozen_queue),
    "unused-keys": Fault("the key encoder is never used", (), {}, unused_key_encoder),
    "rate": Fault(
        "the learning rate is too high",
        ("at-chance", "worse-than-random", "vectors-alike"),
        {"learning_rate": 1.0, "optimizer": "adamw"},
    ),
    "constant": Fault("constant images", (), SIMCLR, constant=True),  # `densecl check` names them
    "blurred": Fault("all cells of a query look the same", ("few-matches",), {"dense_weight": 0.0}, blurred_queries),
    "offset": Fault("all features get the same offset", ("features-alike",), SIMCLR, growing_offset),
    "grid-queue": Fault(
        "too small a grid; a queue longer than the data",
        ("small-grid", "long-queue"),
        {"output_stride": 16, "queue_length": 8192},
    ),
    "loader": Fault("slow images", ("waits-for-data",), {}, slow_images, by_the_clock=True),
}


def constant_images(folder: Path) -> Path:
    """24 images of one color each."""
    folder.mkdir(exist_ok=True)
    for number in range(24):
        Image.new("RGB", (72, 64), (number * 10, 255 - number * 7, number * 37 % 256)).save(folder / f"{number:02}.png")
    return folder
