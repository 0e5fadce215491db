"""Batches read by data-loading workers: the same whatever their number, and with an end when one is stuck.

A sample depends on (seed, epoch, index) alone, and its place on the global step. So the loader has no state: a run
that resumes at step n asks for the batches from n on.
"""

from __future__ import annotations

import functools
import multiprocessing
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Protocol, runtime_checkable

import torch
from torch.utils.data import DataLoader

from densecl.errors import UserError
from densecl.images.batch import collate
from densecl.images.sources import ImageSource
from densecl.images.worker import LOOK_AFTER, MARKS, start_worker

#: Seconds after which the reading of a single image counts as stuck.
READ_TIMEOUT = 300.0

#: Seconds to wait for a killed worker to be gone.
GRACE = 5.0


@runtime_checkable
class Readable(Protocol):
    """A data set that the loader can watch: it says which image of its source it reads."""

    source: ImageSource
    on_read: Callable[[int | None], None]

    def __getitem__(self, place: Any, /) -> Any: ...


class BatchLoader(DataLoader[Any]):
    """A loader of batches that ends with a message when its workers are stuck.

    A worker may be stopped, or may read from a network share that no longer answers; torch would wait for it without
    end. So each worker marks what it does. The loader gives up when, while it waits for a batch, no worker begins or
    ends an image for `read_timeout` seconds. Seconds in which this process itself was stopped do not count.

    Args:
        dataset: the samples.
        sampler: the batches of places.
        collate: puts the samples of a batch together.
        workers: number of data-loading workers. 0: read in this process, where nothing can be watched.
        pin_memory: put batches where a GPU can fetch them.
        read_timeout: seconds.
        resumable: whether the user can go on with --resume.
    """

    def __init__(
        self,
        dataset: Readable,
        sampler: Iterable[list[Any]],
        *,
        collate: Callable[[list[Any]], Any],
        workers: int,
        pin_memory: bool,
        read_timeout: float,
        resumable: bool,
    ) -> None:
        #: What each worker is doing, see `worker.MARKS`.
        self.marks = multiprocessing.RawArray("q", MARKS * max(1, workers))
        self.read_timeout = read_timeout
        self.resumable = resumable
        super().__init__(
            dataset,  # pyright: ignore[reportArgumentType]
            batch_sampler=sampler,
            num_workers=workers,
            collate_fn=collate,
            pin_memory=pin_memory,
            worker_init_fn=functools.partial(start_worker, marks=self.marks),
            generator=torch.Generator(),  # or it would draw from the global stream
        )

    def __iter__(self) -> Any:
        batches = super().__iter__()
        return self._watched(batches) if self.num_workers else batches

    def _watched(self, batches: Iterator[Any]) -> Iterator[Any]:
        """
        Raises:
            UserError: no image was read for too long.
        """
        watch = _Watch(self.marks, self.read_timeout)
        watch.start()
        try:
            while True:
                watch.waiting = True
                try:
                    batch = next(batches)
                except StopIteration:
                    return
                except Exception as error:
                    if watch.gave_up:
                        raise self._stuck() from None
                    if "exited unexpectedly" in str(error):
                        raise _with_signal(error, batches) from error.__cause__
                    raise
                watch.waiting = False
                watch.batches += 1
                yield batch
        finally:
            watch.ended.set()

    def _stuck(self) -> UserError:
        """Kill the workers, without which this process could not end, and say what they were doing."""
        marks = [self.marks[place : place + MARKS] for place in range(0, len(self.marks), MARKS)]
        source = self.dataset.source  # pyright: ignore[reportAttributeAccessIssue]
        at = [f"process {process} at {source.name(image - 1)}" for process, _, image in marks if image]
        _kill({process for process, _, _ in marks})
        what = f"{at[0]} does not go on" if at else "the data-loading workers do not answer"
        return UserError(
            f"No image was read for {self.read_timeout:g} s: {what}. Is the process stopped, or the disk or network"
            f" share gone? {'Go on with --resume; ' * self.resumable}--read-timeout waits longer."
        )


class _Watch(threading.Thread):
    """Checks that workers make progress while training waits for a batch, and kills one of them if none does.

    It is a thread, because training may be inside a read without a time limit: a worker that was stopped while it wrote
    a batch leaves half of it in the pipe. When a worker dies, a signal ends that read.
    """

    def __init__(self, marks: Any, read_timeout: float) -> None:
        super().__init__(daemon=True)
        self.marks = marks
        self.read_timeout = read_timeout
        self.waiting = False  # whether training waits for a batch
        self.batches = 0  # that training has received
        self.gave_up = False
        self.ended = threading.Event()

    def run(self) -> None:
        look_after = min(LOOK_AFTER, self.read_timeout / 4)
        waited, before = 0.0, self._progress()
        while not self.ended.wait(look_after):
            now = self._progress()
            waited = waited + look_after if self.waiting and now == before else 0.0
            before = now
            if waited >= self.read_timeout:
                self.gave_up = True
                children = {child.pid: child for child in multiprocessing.active_children()}
                next(children[process] for process in self.marks[::MARKS] if process in children).kill()
                return

    def _progress(self) -> tuple[int, ...]:
        return self.batches, *self.marks


def _with_signal(error: Exception, batches: Any) -> Exception:
    """torch's error for a worker that is gone, with the signal that ended it, which torch sometimes misses."""
    for worker in batches._workers:
        if worker.exitcode is not None and worker.exitcode < 0:
            ended = signal.strsignal(-worker.exitcode)
            return RuntimeError(f"DataLoader worker (pid {worker.pid}) is killed by signal: {ended}. ")
    return error


def _kill(processes: set[int]) -> None:
    """Kill children of this process. torch's SIGCHLD handler would report that as a crash, so it is off meanwhile."""
    children = [child for child in multiprocessing.active_children() if child.pid in processes]
    in_main_thread = threading.current_thread() is threading.main_thread() and hasattr(signal, "SIGCHLD")
    handler = signal.signal(signal.SIGCHLD, signal.SIG_DFL) if in_main_thread else None
    for child in children:
        child.kill()
    for child in children:
        child.join(GRACE)
    if in_main_thread:
        signal.signal(signal.SIGCHLD, handler)


def make_loader(
    dataset: Readable,
    sampler: Iterable[list[Any]],
    *,
    collate: Callable[[list[Any]], Any] = collate,
    workers: int,
    pin_memory: bool = False,
    read_timeout: float = READ_TIMEOUT,
    resumable: bool = True,
) -> BatchLoader:
    """A loader of batches, read by this many workers (0: by this process). The arguments are those of `BatchLoader`."""
    return BatchLoader(
        dataset,
        sampler,
        collate=collate,
        workers=workers,
        pin_memory=pin_memory,
        read_timeout=read_timeout,
        resumable=resumable,
    )
