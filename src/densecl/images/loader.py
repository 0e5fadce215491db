"""From a source to batches of view pairs, the same whatever the number of workers.

What happens to a sample follows from (seed, epoch, index) alone and its place from the global step, so
the loader has no state: a run that is resumed at step n asks for the batches from n on.
"""

from __future__ import annotations

import csv
import ctypes
import functools
import io
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler, default_collate, get_worker_info

from densecl.allocator import return_freed_memory
from densecl.errors import UserError
from densecl.files import append, lock, replacing
from densecl.images.crops import draw_crop, take_crop
from densecl.images.decode import BadImage
from densecl.images.sources import ImageSource
from densecl.interrupts import STOPPING
from densecl.names import from_cell, shown, to_cell
from densecl.views import Crop, CropPair, Photometrics

#: Replacements tried for one bad image. With 5 % bad images all of them are bad once in 10^21 samples.
ATTEMPTS = 16

#: Tensors of up to this many bytes travel from the workers by value, others through shared memory.
SMALL_BYTES = 65_536

#: The share of bad images at which a run stops.
MAX_BAD_SHARE = 0.05


#: Seconds between two looks of a worker whether the main process is still there, and of that process at its workers.
LOOK_AFTER = 2.0

#: Seconds after which the reading of a single image counts as stuck.
READ_TIMEOUT = 300.0

#: Seconds that a killed worker is given to be gone.
GRACE = 5.0


class BadRecord(NamedTuple):
    """An image that could not be used."""

    name: str
    reason: str
    attempt: int  # 0 for the image of the order itself, n for its nth replacement


class Sample(NamedTuple):
    """Two views of one image, and the bad images that were met on the way to it."""

    pair: CropPair | None  # None: no replacement could be used either
    bad: tuple[BadRecord, ...]


class Batch(NamedTuple):
    """The samples of one step. Give `bad` to `Quarantine.record` before using `pairs`."""

    pairs: CropPair
    bad: tuple[BadRecord, ...]

    def __reduce__(self) -> tuple[Callable[..., Batch], tuple[Any, ...]]:
        """How a worker hands it on: small tensors by value, because each that is shared takes a connection of its own.

        (There are 19 beside the pixels, which took longer than reading the images from the cache.)
        """
        return _from_arrays, (_map(self.pairs, _small_to_array), self.bad)


def _from_arrays(pairs: CropPair, bad: tuple[BadRecord, ...]) -> Batch:
    return Batch(_map(pairs, lambda leaf: torch.from_numpy(leaf) if isinstance(leaf, np.ndarray) else leaf), bad)


def _small_to_array(tensor: torch.Tensor) -> torch.Tensor | np.ndarray:
    return tensor.numpy() if tensor.nbytes <= SMALL_BYTES else tensor


def _map(tree: Any, function: Callable[[Any], Any]) -> Any:
    """The same lists, tuples and named tuples with other leaves."""
    if not isinstance(tree, list | tuple):
        return function(tree)
    leaves = [_map(branch, function) for branch in tree]
    return type(tree)(*leaves) if hasattr(tree, "_fields") else type(tree)(leaves)


class LocalCrops(NamedTuple):
    """The small views of multi-crop: how many, how large, of how much of the image, in what colors."""

    count: int
    image_size: int
    crop_scale: tuple[float, float]
    draw_photometrics: Callable[[np.random.Generator], Photometrics]


class CropPairDataset(Dataset[Sample]):
    """Two random crops of an image, decoded once. Items are asked for by (epoch, index).

    Args:
        source: the images.
        image_size: side of a view in pixels.
        crop_scale: share of the image's area that a crop covers, smallest and largest.
        flip_probability: share of views mirrored left to right.
        draw_photometrics: draws what later happens to the colors of a view. With workers that are
            spawned rather than forked it must be picklable: `functools.partial`, not a lambda.
        seed: with epoch and index, fixes the sample.
        local_crops: further small views of each image. They are drawn last, so that the pair stays what it is.
    """

    def __init__(
        self,
        source: ImageSource,
        *,
        image_size: int,
        crop_scale: tuple[float, float],
        flip_probability: float,
        draw_photometrics: Callable[[np.random.Generator], Photometrics],
        seed: int,
        local_crops: LocalCrops | None = None,
    ) -> None:
        self.source = source
        self.image_size = image_size
        self.crop_scale = crop_scale
        self.flip_probability = flip_probability
        self.draw_photometrics = draw_photometrics
        self.seed = seed
        self.local_crops = local_crops
        #: Is told which image is read next, and None once one was.
        self.on_read: Callable[[int | None], None] = _ignore

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, place: tuple[int, int]) -> Sample:
        epoch, index = place
        bad = []
        used = index
        for attempt in range(ATTEMPTS + 1):
            if attempt > 0:
                used = int(_generator(self.seed, epoch, index, attempt).integers(len(self.source)))
            self.on_read(used)
            try:
                image = self.source.read(used)
            except BadImage as error:
                bad.append(BadRecord(self.source.name(used), str(error), attempt))
                continue
            finally:
                self.on_read(None)
            rng = _generator(self.seed, epoch, index)
            large = self.image_size, self.crop_scale, self.draw_photometrics
            first, second = (self._view(image, rng, *large) for _ in range(2))
            small = ()
            if self.local_crops is not None:
                count, size, scale, draw = self.local_crops
                small = tuple(self._view(image, rng, size, scale, draw) for _ in range(count))
            return Sample(CropPair(first, second, torch.tensor(used), small), tuple(bad))
        return Sample(None, tuple(bad))

    def _view(
        self,
        image: torch.Tensor,
        rng: np.random.Generator,
        size: int,
        scale: tuple[float, float],
        draw_photometrics: Callable[[np.random.Generator], Photometrics],
    ) -> Crop:
        box = draw_crop(rng, image.shape[1], image.shape[2], scale)
        flipped = bool(rng.random() < self.flip_probability)
        pixels = take_crop(image, box, flipped, size)
        return Crop(pixels, box, torch.tensor(flipped), draw_photometrics(rng))


def _ignore(index: int | None) -> None:
    pass


def _generator(seed: int, *place: int) -> np.random.Generator:
    """A stream of its own for each place. (As plain entropy [1, 2] and [1, 2, 0] would be one stream; as keys not.)"""
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=place))


class StepSampler(Sampler[list[tuple[int, int]]]):
    """The batches of the steps from `start_step` on, each a list of (epoch, index).

    An epoch is a random order of all images, fixed by (seed, epoch), and epochs follow each other without a gap: a
    batch that the rest of one does not fill begins the next, so that every image is used once an epoch. (At such
    a seam an image may stand in a batch twice.) Of each batch, rank r of n takes the rth nth part.

    Args:
        size: number of images.
        batch_size: images per step, over all ranks together.
        seed: fixes the orders.
        start_step: the first step to give, counted from 0 at the start of the run.
        stop_step: one past the last step; None: without end.
        rank: of this process.
        world_size: number of processes.

    Raises:
        UserError: the batch is larger than the data set or cannot be shared equally.
    """

    def __init__(
        self,
        size: int,
        batch_size: int,
        *,
        seed: int,
        start_step: int = 0,
        stop_step: int | None = None,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        if batch_size < 1:
            raise UserError(f"batch size {batch_size}: it must be at least 1")
        if batch_size > size:
            raise UserError(f"batch size {batch_size} is larger than the data set ({size} images): use a smaller one")
        if batch_size % world_size:
            raise UserError(f"batch size {batch_size} cannot be shared equally by {world_size} devices")
        self.size = size
        self.batch_size = batch_size
        self.seed = seed
        self.start_step = start_step
        self.stop_step = stop_step
        self.rank = rank
        self.world_size = world_size
        self.steps_per_epoch = Fraction(size, batch_size)

    def __len__(self) -> int:
        if self.stop_step is None:
            raise TypeError("a sampler without a last step has no length")
        return max(0, self.stop_step - self.start_step)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        share = self.batch_size // self.world_size
        orders: dict[int, np.ndarray] = {}
        step = self.start_step
        while self.stop_step is None or step < self.stop_step:
            first = step * self.batch_size + self.rank * share  # place in the row of all epochs
            batch = []
            for epoch in range(first // self.size, (first + share - 1) // self.size + 1):
                if epoch not in orders:
                    orders = {epoch: _generator(self.seed, epoch).permutation(self.size)}
                start = epoch * self.size
                order = orders[epoch][max(0, first - start) : first + share - start]
                batch += [(epoch, index) for index in order.tolist()]
            yield batch
            step += 1


class BatchLoader(DataLoader[Any]):
    """A loader of `Batch`es that ends with a message when its workers are stuck.

    A worker that is stopped, or reads from a share that no longer answers, would be waited for without end. So each
    marks what it does. It counts as stuck when for `read_timeout` seconds of waiting for a batch no worker has begun or
    ended an image; seconds in which this process was stopped itself do not count.

    Args:
        dataset: the samples.
        sampler: the batches of places.
        workers: processes that read; 0: this one, in which nothing can be watched.
        pin_memory: put batches where a GPU can fetch them.
        read_timeout: seconds.
    """

    def __init__(
        self, dataset: CropPairDataset, sampler: StepSampler, *, workers: int, pin_memory: bool, read_timeout: float
    ) -> None:
        #: Of each worker: its process, how often it began or ended an image, and the image in hand + 1 (0: none).
        self.marks = multiprocessing.RawArray("q", 3 * max(1, workers))
        self.read_timeout = read_timeout
        super().__init__(
            dataset,
            batch_sampler=sampler,
            num_workers=workers,
            collate_fn=collate,
            pin_memory=pin_memory,
            worker_init_fn=functools.partial(_start_worker, marks=self.marks),
            generator=torch.Generator(),  # or it would draw from the global stream
        )

    def __iter__(self) -> Any:
        batches = super().__iter__()
        return self._watched(batches) if self.num_workers else batches

    def _watched(self, batches: Iterator[Batch]) -> Iterator[Batch]:
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
                        raise _told_how(error, batches) from error.__cause__
                    raise
                watch.waiting = False
                watch.batches += 1
                yield batch
        finally:
            watch.ended.set()

    def _stuck(self) -> UserError:
        """Ends the workers, which this process could otherwise not leave behind, and says what they were at."""
        marks = [self.marks[place : place + 3] for place in range(0, len(self.marks), 3)]
        source = self.dataset.source  # pyright: ignore[reportAttributeAccessIssue]
        at = [f"process {process} at {source.name(image - 1)}" for process, _, image in marks if image]
        _kill({process for process, _, _ in marks})
        what = f"{at[0]} does not go on" if at else "the processes that read do not answer"
        return UserError(
            f"No image was read for {self.read_timeout:g} s: {what}. Is the process stopped, or the disk or network"
            " share gone? Go on with --resume; --read-timeout waits longer."
        )


class _Watch(threading.Thread):
    """Looks whether workers go on while the training waits for a batch, and kills one of them if none does.

    A thread, because the training may then be in the midst of a read that has no time limit: a worker that was stopped
    while it wrote a batch leaves half of it in the pipe. The death of a worker is a signal that ends such a read.
    """

    def __init__(self, marks: Any, read_timeout: float) -> None:
        super().__init__(daemon=True)
        self.marks = marks
        self.read_timeout = read_timeout
        self.waiting = False  # whether the training waits for a batch
        self.batches = 0  # that it has got
        self.gave_up = False
        self.ended = threading.Event()

    def run(self) -> None:
        look_after = min(LOOK_AFTER, self.read_timeout / 4)
        waited, before = 0.0, self._seen()
        while not self.ended.wait(look_after):
            now = self._seen()
            waited = waited + look_after if self.waiting and now == before else 0.0
            before = now
            if waited >= self.read_timeout:
                self.gave_up = True
                children = {child.pid: child for child in multiprocessing.active_children()}
                next(children[process] for process in self.marks[::3] if process in children).kill()
                return

    def _seen(self) -> tuple[int, ...]:
        return self.batches, *self.marks


def _told_how(error: Exception, batches: Any) -> Exception:
    """torch's error for a worker that is gone, with the signal that ended it, which torch does not always notice."""
    for worker in batches._workers:
        if worker.exitcode is not None and worker.exitcode < 0:
            ended = signal.strsignal(-worker.exitcode)
            return RuntimeError(f"DataLoader worker (pid {worker.pid}) is killed by signal: {ended}. ")
    return error


def _kill(processes: set[int]) -> None:
    """Ends children of this process at once; torch, which takes that for a crash of theirs, does not hear of it."""
    children = [child for child in multiprocessing.active_children() if child.pid in processes]
    hears = threading.current_thread() is threading.main_thread() and hasattr(signal, "SIGCHLD")
    handler = signal.signal(signal.SIGCHLD, signal.SIG_DFL) if hears else None
    for child in children:
        child.kill()
    for child in children:
        child.join(GRACE)
    if hears:
        signal.signal(signal.SIGCHLD, handler)


def make_loader(
    dataset: CropPairDataset,
    sampler: StepSampler,
    *,
    workers: int,
    pin_memory: bool = False,
    read_timeout: float = READ_TIMEOUT,
) -> BatchLoader:
    """A loader of `Batch`es, read by this many processes (0: by this one)."""
    return BatchLoader(dataset, sampler, workers=workers, pin_memory=pin_memory, read_timeout=read_timeout)


def _start_worker(worker: int, marks: ctypes.Array) -> None:
    return_freed_memory()  # a worker that has met a large image would keep as much for ever
    mine = 3 * worker
    marks[mine] = os.getpid()

    def mark(image: int | None) -> None:
        marks[mine + 1] += 1
        marks[mine + 2] = 0 if image is None else image + 1

    info = get_worker_info()
    assert info is not None
    info.dataset.on_read = mark  # pyright: ignore[reportAttributeAccessIssue]
    # Ctrl-C and the end of a cluster job reach every process of the group. The main process decides what
    # they mean, and needs its workers until its last step; they leave when it tells them to or is gone.
    for number in set(STOPPING) - {signal.SIGTERM}:
        signal.signal(number, signal.SIG_IGN)
    if hasattr(signal, "sigwaitinfo"):  # not on macOS, which has no clusters
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_leave_when_told, args=(os.getppid(),), daemon=True).start()


def _leave_when_told(parent: int) -> None:
    """A main process that ends with an iterator of its loader left over sends SIGTERM, and waits for ever.

    One that is killed sends nothing. torch's workers notice, but then wait for ever until somebody takes what they had
    ready from a pipe that the other workers hold open, and keep their memory.
    """
    while os.getppid() == parent:
        told = signal.sigtimedwait({signal.SIGTERM}, LOOK_AFTER)
        if told is not None and told.si_pid == parent:
            break
    os._exit(0)


def collate(samples: list[Sample]) -> Batch:
    """One batch of the samples; eight-bit views beside sixteen-bit ones become sixteen-bit (255 to 65535).

    Samples without a usable image are left out, so that `pairs` is shorter, at worst of length 0:
    `Quarantine.record` then stops the run.
    """
    bad = tuple(record for sample in samples for record in sample.bad)
    pairs = [sample.pair for sample in samples if sample.pair is not None]
    if not pairs:
        return Batch(_NO_PAIRS, bad)
    if any(pair.first.pixels.dtype == torch.uint16 for pair in pairs):
        pairs = [
            pair._replace(
                first=_to_16_bit(pair.first),
                second=_to_16_bit(pair.second),
                local=tuple(map(_to_16_bit, pair.local)),
            )
            for pair in pairs
        ]
    return Batch(default_collate(pairs), bad)


def _to_16_bit(crop: Crop) -> Crop:
    if crop.pixels.dtype == torch.uint16:
        return crop
    return crop._replace(pixels=(crop.pixels.to(torch.int32) * 257).to(torch.uint16))


_NO_VALUES = torch.empty(0)
_NO_CROPS = Crop(
    torch.empty(0, 0, 0, 0, dtype=torch.uint8),
    torch.empty(0, 4),
    torch.empty(0, dtype=torch.bool),
    Photometrics(
        brightness=_NO_VALUES,
        contrast=_NO_VALUES,
        saturation=_NO_VALUES,
        hue=_NO_VALUES,
        order=torch.empty(0, 4, dtype=torch.int64),
        grayscale=torch.empty(0, dtype=torch.bool),
        blur_sigma=_NO_VALUES,
    ),
)
_NO_PAIRS = CropPair(_NO_CROPS, _NO_CROPS, torch.empty(0, dtype=torch.int64))


class Quarantine:
    """quarantine.csv: the images that could not be used and why, one row each.

    The rows outlive the run, so that a resumed one adds only what is new. All processes of a run on the same
    file system share the file: under a lock each first reads what others have added, then appends. A
    row is written with one call; half a row, left by a crash in it, is removed when the file is next opened.

    A name may hold anything, so a cell is written by `names.to_cell`: a newline as ``\\n``, a byte that is no UTF-8 as
    ``\\xff``, a backslash doubled, and one put before what a spreadsheet would take for a formula. `names.from_cell`
    gives the name back.

    Args:
        path: of the file. It and its header are written with the first row.
        size: number of images in the source, for the share of bad ones.
    """

    HEADER = ("path", "reason")

    def __init__(self, path: Path | str, size: int) -> None:
        self.path = Path(path)
        self.size = size
        self._lock = self.path.with_name(f".{self.path.name}.lock")
        self._read = 0  # bytes of the file that are known
        self._rows: set[str] = set()  # names in the file
        self._met: dict[str, str] = {}  # bad images since the run began or was resumed, and why
        if self.path.exists():
            with lock(self._lock):
                self._read_new_rows()

    def record(self, bad: Iterable[BadRecord]) -> None:
        """Write down the bad images of a batch.

        Raises:
            UserError: more than 5 % of the images are bad, or all replacements of one were.
        """
        bad = list(bad)
        if not bad:
            return
        self._met.update((record.name, record.reason) for record in bad)
        if any(name not in self._rows for name in self._met):
            self._append()
        hopeless = any(record.attempt == ATTEMPTS for record in bad)
        if hopeless or len(self._met) > MAX_BAD_SHARE * self.size:
            name, reason = next(iter(self._met.items()))
            many = (
                f"an image and its {ATTEMPTS} replacements cannot be used ({len(self._met)} of {self.size} so far)"
                if hopeless
                else f"{len(self._met)} of {self.size} images cannot be used ({MAX_BAD_SHARE:.0%} is the limit)"
            )
            raise UserError(f"{many}: see {shown(self.path)}. The first: {shown(name)}: {shown(reason)}")

    def _append(self) -> None:
        with lock(self._lock):
            self._met.update(self._read_new_rows())
            new = {name: reason for name, reason in self._met.items() if name not in self._rows}
            text = _to_csv(new.items())
            if self._read:
                append(self.path, text)
            else:
                text = _to_csv([self.HEADER]) + text
                with replacing(self.path) as file:
                    file.write(text)
            self._read += len(text)
            self._rows.update(new)

    def _read_new_rows(self) -> dict[str, str]:
        """What the file holds beyond what is known. Only under the lock."""
        if not self.path.exists():
            return {}
        with self.path.open("rb") as file:
            file.seek(self._read)
            text = file.read()
        whole = text.rfind(b"\n") + 1
        if whole < len(text):
            content = self.path.read_bytes()[: self._read + whole]
            with replacing(self.path) as file:
                file.write(content)
        rows = csv.reader(io.StringIO(text[:whole].decode("utf-8", "surrogateescape"), newline=""))
        found = {from_cell(row[0]): from_cell(row[1]) for row in rows if len(row) == 2 and tuple(row) != self.HEADER}
        self._read += whole
        self._rows.update(found)
        return found


def _to_csv(rows: Iterable[tuple[str, str]]) -> bytes:
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator="\n").writerows(map(to_cell, row) for row in rows)
    return text.getvalue().encode()
