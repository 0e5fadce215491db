from __future__ import annotations

import contextlib
from collections.abc import Iterator

import lightning.pytorch as pl
import pytest
import torch
from torch import Tensor

from densecl.images.batch import Batch
from densecl.images.loader import make_loader
from densecl.images.sampler import StepSampler
from densecl.model import DenseCL, create_backbone
from densecl.normalization import IMAGENET
from densecl.training.module import DenseCLModule
from densecl.training.schedules import Schedules
from tests.images.patches import Patches, pairs_of


class Stream:
    """Notes who waits for it."""

    def __init__(self, name: str, events: list[str]) -> None:
        self.name, self.events = name, events

    def wait_stream(self, other: Stream) -> None:
        self.events.append(f"{self.name} waits for {other.name}")


def test_a_gpu_gets_its_batches_on_a_stream_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[str] = []
    streams = [Stream("work", events)]

    @contextlib.contextmanager
    def within(stream: Stream) -> Iterator[None]:
        streams.append(stream)
        yield
        streams.pop()

    def copy(self: pl.LightningModule, batch: Batch, device: torch.device, dataloader_idx: int) -> Batch:
        events.append(f"{streams[-1].name} to {device}")
        return batch

    monkeypatch.setattr(torch.cuda, "Stream", lambda device: Stream("copies", events))
    monkeypatch.setattr(torch.cuda, "stream", within)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: streams[-1])
    monkeypatch.setattr(pl.LightningModule, "transfer_batch_to_device", copy)
    monkeypatch.setattr(Tensor, "record_stream", lambda tensor, stream: events.append(f"{stream.name} uses a tensor"))
    model = DenseCL(create_backbone("test_resnet"))
    schedules = Schedules(start=model.scheduled, learning_rate=0.1)
    module = DenseCLModule(model, IMAGENET, schedules, progress=lambda step: 0.0)
    loader = make_loader(pairs_of(Patches(2)), StepSampler(2, 2, seed=0), workers=0)
    batch = next(iter(loader))
    for _ in range(2):
        assert module.transfer_batch_to_device(batch, torch.device("cuda:0"), 0) is batch
        assert events[:2] == ["copies to cuda:0", "work waits for copies"]
        assert set(events[2:]) == {"work uses a tensor"} and len(events) > 20
        events.clear()
    module.transfer_batch_to_device(batch, torch.device("cpu"), 0)
    assert events == ["work to cpu"]
