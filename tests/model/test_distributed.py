"""Two processes with half a batch each must do what one process does with the whole."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from densecl.model import DenseCL, Embeddings
from densecl.model.distributed import gather, own_part, world_size
from densecl.views import Views
from tests.processes import on_two_processes

BATCH, STEPS = 6, 3


def small_network(norm: bool = False) -> nn.Module:
    torch.manual_seed(0)
    middle = [nn.BatchNorm2d(8)] if norm else []
    return nn.Sequential(nn.Conv2d(3, 8, 3, stride=2, padding=1), *middle, nn.ReLU(), nn.Conv2d(8, 8, 3, stride=2))


def some_views(seed: int) -> Views:
    generator = torch.Generator().manual_seed(seed)
    corner = torch.rand(BATCH, 2, generator=generator) * 20
    box = torch.cat([corner, corner + 20 + 20 * torch.rand(BATCH, 2, generator=generator)], dim=1)
    flipped = torch.rand(BATCH, generator=generator) < 0.5
    return Views(torch.randn(BATCH, 3, 18, 18, generator=generator), box, flipped)


def train(rank: int, world: int, **settings: object) -> list[torch.Tensor]:
    """A few steps on this process's part of each batch; the losses (averaged over processes) and the final state."""
    method = DenseCL(small_network(), queue_length=10, key_momentum=0.9, **settings)
    model = DistributedDataParallel(method) if world > 1 else method
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    share = slice(rank * BATCH // world, (rank + 1) * BATCH // world)
    results = []
    for step in range(STEPS):
        first, second = (Views(*(field[share] for field in some_views(2 * step + view))) for view in range(2))
        output = model(first, second)
        optimizer.zero_grad()
        output.loss.backward()
        optimizer.step()
        results.append(gather(output.loss.detach()[None]).mean())
    return results + [value for value in method.state_dict().values() if isinstance(value, torch.Tensor)]


def train_all(rank: int, world: int = 2) -> list[list[torch.Tensor]]:
    combinations = itertools.product(("features", "mutual", "geometry"), ("pooled", "cells", "batch"), (False, True))
    trained = [train(rank, world, matching=m, dense_negatives=n, symmetric=s) for m, n, s in combinations]
    soft = ("propagation", "weighted-negatives")
    return trained + [train(rank, world, matching="geometry", dense_negatives="batch", dense_softening=s) for s in soft]


def test_two_processes_equal_one_on_the_joined_batch():
    expected = train_all(0, world=1)
    for results in on_two_processes(train_all):
        for ours, theirs in zip(results, expected, strict=True):
            for value, reference in zip(ours, theirs, strict=True):
                torch.testing.assert_close(value, reference, rtol=1e-5, atol=1e-6)


def keys_of(model: DenseCL, pixels: torch.Tensor) -> Embeddings:
    assert model.key_encoder is not None
    return model.key_encoder.keys(pixels, model.query_encoder, torch.Generator().manual_seed(0))


def shuffled_keys(rank: int) -> dict[str, torch.Tensor | None]:
    """The keys of a shuffled and of a plain key encoder, batch norm in evaluation mode so that order cannot matter."""
    share = slice(rank * BATCH // 2, (rank + 1) * BATCH // 2)
    pixels = some_views(0).pixels[share]
    method = DenseCL(small_network(norm=True), queue_length=10, key_norm="shuffle")
    method.eval()
    shuffled = keys_of(method, pixels)
    plain = method.key_encoder(pixels)
    shuffled_in_training = keys_of(method.train(), pixels)
    return {
        "shuffled": shuffled.cells,
        "plain": plain.cells,
        "in_training": shuffled_in_training.vector,
        "features": shuffled.features - plain.features,
    }


def test_shuffled_keys_come_back_to_their_images_but_with_other_batch_statistics():
    whole = DenseCL(small_network(norm=True), queue_length=10, key_norm="shuffle")
    for rank, result in enumerate(on_two_processes(shuffled_keys)):
        torch.testing.assert_close(result["shuffled"], result["plain"])
        torch.testing.assert_close(result["features"], torch.zeros_like(result["features"]), atol=1e-6, rtol=0)
        alone = keys_of(whole, some_views(0).pixels[rank * 3 : rank * 3 + 3]).vector
        assert not torch.allclose(result["in_training"], alone, atol=1e-4)


def roundtrip(rank: int) -> list[torch.Tensor]:
    local = torch.arange(6.0).reshape(3, 2) + 100 * rank
    return [gather(local), own_part(gather(local)) - local, torch.tensor(world_size())]


def test_gather_joins_in_the_order_of_the_ranks():
    for joined, difference, world in on_two_processes(roundtrip):
        assert joined[:, 0].tolist() == [0, 2, 4, 100, 102, 104]
        assert not difference.any()
        assert world == 2


@pytest.mark.parametrize("function", [gather, own_part])
def test_with_one_process_nothing_changes(function):
    values = torch.rand(3, 2)
    assert torch.equal(function(values), values)
