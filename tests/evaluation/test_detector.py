from __future__ import annotations

import pytest
import torch

from densecl.evaluation.detector import Pyramid
from densecl.model.backbone import create_backbone


@pytest.mark.parametrize(
    ("name", "strides"),
    [("resnet10t", [4, 8, 16, 32]), ("vit_tiny_patch16_224", [16]), ("convnext_atto", [4, 8, 16, 32])],
)
def test_the_pyramid_of_any_backbone(name: str, strides: list[int]) -> None:
    frozen = Pyramid(create_backbone(name), fine_tune=False).train()
    assert frozen.strides == strides
    assert frozen.training and not frozen.backbone.training
    assert not any(parameter.requires_grad for parameter in frozen.backbone.parameters())
    maps = frozen(torch.zeros(2, 3, 64, 96))
    assert [tuple(some.shape[2:]) for some in maps.values()][:-1] == [(64 // s, 96 // s) for s in strides]
    assert Pyramid(create_backbone(name), fine_tune=True).train().backbone.training
