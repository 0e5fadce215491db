"""Receptive fields against those known from papers, and from layers counted by hand."""

from __future__ import annotations

import copy
import math
import time

import pytest
import torch
from torch import nn

from densecl.model import Backbone, create_backbone
from densecl.model.receptive_field import receptive_fields


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("resnet18", [11, 43, 99, 211, 435]),  # 7 + 4 of the pool; then each 3x3 adds twice its stride
        ("resnet50", [427]),  # facts of the paper: 1.9 x 224
        ("efficientnet_lite0", [851]),
        ("efficientnet_b0", [851]),  # squeeze-and-excitation tells nothing of places
        ("vit_tiny_patch16_224", [math.inf]),
    ],
)
def test_known_receptive_fields(name: str, fields: list[float]) -> None:
    backbone = create_backbone(name)
    if len(fields) > 1:
        fields = [7, *fields[1:]]  # the first map stands before the pool
    assert receptive_fields(backbone, range(-len(fields), 0)) == fields


class Net(nn.Module):
    """3x3, dilated 3x3, 5x5 with stride 2, pool 2x2: 1 + 2 + 6 + 4 + 2 pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(3, 4, 3, padding=1),
            nn.BatchNorm2d(4),
            nn.ReLU(inplace=True),
            nn.Conv2d(4, 4, 3, padding=3, dilation=3),
            nn.GELU(),
            nn.Conv2d(4, 6, 5, stride=2, padding=2),
            nn.MaxPool2d(2),
        )

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return self.layers(pixels)


@pytest.mark.parametrize("weights", ["random", "zero", "dead"])
def test_layers_counted_by_hand_whatever_their_weights(weights: str) -> None:
    net = Net()
    if weights != "random":
        for parameter in net.parameters():
            nn.init.constant_(parameter, 0.0 if weights == "zero" else -1.0)
    assert receptive_fields(Backbone(net)) == [15]


def test_it_leaves_everything_as_it_was() -> None:
    net = Net()
    net.layers[1].eval()
    backbone = Backbone(net)
    before, modes = copy.deepcopy(backbone.state_dict()), [part.training for part in backbone.modules()]
    random = torch.get_rng_state()
    receptive_fields(backbone)
    assert torch.equal(random, torch.get_rng_state())
    assert all(torch.equal(value, before[name]) for name, value in backbone.state_dict().items())
    assert modes == [part.training for part in backbone.modules()]
    assert all(parameter.grad is None and parameter.requires_grad for parameter in backbone.parameters())


def test_a_model_that_takes_no_strips() -> None:
    class Strict(Net):
        def forward(self, pixels: torch.Tensor) -> torch.Tensor:
            assert pixels.shape[2] == pixels.shape[3]
            return super().forward(pixels)

    assert receptive_fields(Backbone(Strict())) == [math.inf]


def test_it_is_quick() -> None:
    backbone = create_backbone("resnet50")
    start = time.process_time()
    receptive_fields(backbone)
    assert time.process_time() - start < 3  # 0.2 s on a quiet core
