"""The trial step against a real one: its memory, and that it leaves the random numbers alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import densecl
from densecl.checking.cost import _Saved, measure
from densecl.config.compose import make_recipe
from densecl.training.build import build
from densecl.training.environment import settle_devices
from tests.images.folders import Items

PIXELS = np.random.default_rng(0).integers(0, 256, (24, 48, 48, 3), dtype=np.uint8)
IMAGES = Items(list(PIXELS))


def test_bytes_that_the_backward_pass_needs() -> None:
    """sigmoid keeps its result, the product keeps both factors: the input is one of them."""
    x, weight = torch.ones(10, requires_grad=True), torch.ones(10, requires_grad=True)
    with _Saved([weight]) as saved:
        (x.sigmoid() * weight).sum()
    assert saved.bytes == 40  # the result of sigmoid, once; the weight is not counted


@pytest.mark.parametrize("method", ["simclr", "moco"])
def test_the_time_and_memory_of_a_step_grow_with_the_batch(method: str) -> None:
    found = []
    for size in (8, 16):
        recipe = make_recipe(
            data="dataset:x", backbone="resnet10t", image_size=32, output_stride=8, batch_size=size, steps=3,
            method=method, queue_length=None if method == "simclr" else 16, dim=8, workers=0, precision="32",
        )  # fmt: skip
        parts, _ = build(settle_devices(recipe), None, IMAGES, None)
        state = sum(one.nbytes for one in parts.model.state_dict().values() if isinstance(one, torch.Tensor))
        cost = measure(parts)
        assert cost.memory > state and cost.step_seconds > 0
        found.append(cost.memory - state)
    assert 1.2 < found[1] / found[0] < 2


def test_check_leaves_the_callers_random_numbers(capsys: pytest.CaptureFixture[str]) -> None:
    torch.manual_seed(3)
    before = torch.get_rng_state()
    densecl.check(IMAGES, backbone="resnet10t", image_size=32, output_stride=8, batch_size=4, steps=3, workers=0)
    assert torch.equal(torch.get_rng_state(), before)
