"""The same batches whatever the workers and the past; and an end when a worker is stuck."""

import itertools
import multiprocessing
import os
import signal
import threading

import pytest
import torch

from densecl.errors import UserError
from densecl.images.loader import make_loader
from densecl.images.sampler import StepSampler
from tests.images.patches import Patches, equal, pairs_of


@pytest.mark.parametrize("workers", [1, 2])
def test_workers_change_nothing(workers):
    dataset = pairs_of(Patches(30, bad=[3, 17]))
    sampler = StepSampler(30, 8, seed=0, stop_step=9)
    torch.manual_seed(0)
    alone = list(make_loader(dataset, sampler, workers=0))
    state = torch.get_rng_state()
    torch.manual_seed(0)
    helped = list(make_loader(dataset, sampler, workers=workers))
    assert len(alone) == len(helped) == 9
    assert all(map(equal, alone, helped))
    assert any(batch.bad for batch in alone)
    assert torch.equal(state, torch.get_rng_state())
    torch.manual_seed(0)
    assert torch.equal(state, torch.get_rng_state())  # the global stream was not touched


def test_a_resumed_loader_gives_the_same_batches():
    dataset = pairs_of(Patches(30, bad=[3]))
    whole = list(make_loader(dataset, StepSampler(30, 8, seed=0, stop_step=9), workers=0))
    rest = list(make_loader(dataset, StepSampler(30, 8, seed=0, start_step=5, stop_step=9), workers=2))
    assert all(map(equal, whole[5:], rest))


def test_a_batch_has_the_shapes_of_its_types():
    batch = next(iter(make_loader(pairs_of(Patches(30)), StepSampler(30, 8, seed=0), workers=0)))
    assert batch.pairs.first.pixels.shape == (8, 3, 8, 8)
    assert batch.pairs.first.pixels.dtype == torch.uint8
    assert batch.pairs.first.box.shape == (8, 4)
    assert batch.pairs.first.flipped.dtype == torch.bool
    assert batch.pairs.second.photometrics.order.shape == (8, 4)
    assert batch.pairs.index.dtype == torch.int64


class Stuck(Patches):
    """The third image is on a share that no longer answers; or the process that reads it is stopped."""

    def __init__(self, stopped):
        super().__init__(8)
        self.stopped = stopped

    def read(self, index):
        if index == 2 and self.stopped:
            os.kill(os.getpid(), signal.SIGSTOP)
        elif index == 2:
            threading.Event().wait(60)
        return super().read(index)


@pytest.mark.parametrize("stopped", [False, True])
def test_a_worker_that_does_not_go_on_is_waited_for_only_so_long(stopped):
    loader = make_loader(pairs_of(Stuck(stopped)), StepSampler(8, 4, seed=0), workers=2, read_timeout=0.3)
    children = set(multiprocessing.active_children())
    with pytest.raises(UserError, match=r"No image was read for 0.3 s: process \d+ at patch 2 does not go on"):
        list(itertools.islice(loader, 3))
    assert not set(multiprocessing.active_children()) - children


def test_a_worker_that_was_stopped_in_the_midst_of_a_batch():
    """A batch that is larger than the pipe: half of it lies there, and a read of the other half has no end."""
    loader = make_loader(pairs_of(Patches(64), image_size=64), StepSampler(64, 4, seed=0), workers=1, read_timeout=0.5)
    batches = iter(loader)
    next(batches)
    (worker,) = [child for child in multiprocessing.active_children() if child.pid == loader.marks[0]]
    read, written = loader.marks[1], -1
    while read != written:  # until the pipe is full
        written = read
        threading.Event().wait(0.2)
        read = loader.marks[1]
    os.kill(worker.pid, signal.SIGSTOP)
    with pytest.raises(UserError, match=r"No image was read for 0.5 s"):
        list(batches)
    assert not worker.is_alive()


def test_a_slow_worker_is_waited_for(monkeypatch):
    """A batch takes longer than the limit, an image does not."""
    source = Patches(8)
    read = source.read
    monkeypatch.setattr(source, "read", lambda index: threading.Event().wait(0.1) or read(index))
    loader = make_loader(pairs_of(source), StepSampler(8, 8, seed=0, stop_step=1), workers=1, read_timeout=0.4)
    (batch,) = loader
    assert len(batch.pairs.index) == 8
