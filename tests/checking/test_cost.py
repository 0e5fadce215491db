"""The trial step against a real one: its memory, and that it leaves the random numbers alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import densecl
from densecl.checking import cost
from densecl.checking.cost import _Saved, measure
from densecl.config.compose import make_recipe
from densecl.training.build import build
from densecl.training.environment import settle_devices
from tests.checking.test_check import tiny
from tests.images.folders import Items

PIXELS = np.random.default_rng(0).integers(0, 256, (24, 48, 48, 3), dtype=np.uint8)
IMAGES = Items(list(PIXELS))


def test_bytes_that_the_backward_pass_needs() -> None:
    """sigmoid keeps its result, the product keeps both factors: the input is one of them."""
    x, weight = torch.ones(10, requires_grad=True), torch.ones(10, requires_grad=True)
    with _Saved([weight]) as saved:
        (x.sigmoid() * weight).sum()
    assert saved.bytes == 40  # the result of sigmoid, once; the weight is not counted


def test_a_few_images_tell_of_the_whole_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the backward pass needs, scaled from 4 images to 16, is what 16 need."""
    found = []
    for images in (4, 16):
        monkeypatch.setattr(cost, "IMAGES", images)
        recipe = make_recipe(data="dataset:x", backbone="module:x", image_size=32, batch_size=16, steps=3, workers=0)
        parts, _ = build(settle_devices(recipe), None, IMAGES, tiny(4))
        model = parts.model
        state = sum(one.nbytes for one in model.state_dict().values() if isinstance(one, torch.Tensor))
        trained = sum(one.nbytes for one in model.parameters() if one.requires_grad)
        measured = measure(parts)
        found.append(measured.memory - state - 3 * trained)  # AdamW: gradients and two moments
        assert 0 < measured.step_seconds < 60 and measured.free > 0
    assert found[0] == pytest.approx(found[1], rel=0.15)


def test_check_leaves_the_callers_random_numbers(capsys: pytest.CaptureFixture[str]) -> None:
    backbone = tiny(4)
    before = torch.get_rng_state()
    densecl.check(IMAGES, backbone=backbone, image_size=32, batch_size=4, steps=3, workers=0)
    assert torch.equal(torch.get_rng_state(), before)
