from __future__ import annotations

import pytest
import torch
from torch import nn

import densecl.evaluation.learn_pixels
from densecl.evaluation.dense import upsample
from densecl.evaluation.learn_pixels import label_pixels, learn_pixels
from densecl.model.backbone import Backbone
from densecl.normalization import Normalization


@pytest.mark.parametrize(("height", "width"), [(50, 70), (7, 200), (64, 64), (3, 2), (1, 1)])
@pytest.mark.parametrize("most", [2**24, 200, 1])
def test_strips_are_what_upsampling_at_once_gives(
    height: int, width: int, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(densecl.evaluation.learn_pixels, "MOST_SCORES", most)
    scores = torch.randn(5, 6, 8, generator=torch.Generator().manual_seed(height))
    expected = upsample(scores[None], height, width)[0].argmax(dim=0)
    assert (label_pixels(scores, height, width) != expected).float().mean() < 0.001  # rounding


def test_images_that_do_not_fit_into_memory_are_read_again(monkeypatch: pytest.MonkeyPatch) -> None:
    backbone = Backbone(nn.Conv2d(3, 4, 4, 4))
    generator = torch.Generator().manual_seed(0)
    train = [
        (
            torch.randint(0, 256, (3, 16, 16), generator=generator, dtype=torch.uint8),
            torch.randint(0, 2, (16, 16), generator=generator),
        )
        for _ in range(4)
    ]
    losses = []
    for most in (2**30, 0):
        monkeypatch.setattr(densecl.evaluation.learn_pixels, "MOST_KEPT", most)
        with torch.random.fork_rng():
            torch.manual_seed(0)
            normalization = Normalization((0.5,) * 3, (0.5,) * 3)
            learning = learn_pixels(backbone, train, classes=2, normalization=normalization, steps=2, batch_size=2)
            losses.append([learning.loss_at(step).item() for step in range(2)])
    assert losses[0] == losses[1]
