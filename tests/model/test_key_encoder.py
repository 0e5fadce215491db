"""The momentum encoder by itself: its update, its modes, and its batch norm."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from densecl.model import METHODS, Backbone
from densecl.model.encoder import Encoder, create_encoder
from densecl.model.key_encoder import MomentumEncoder


class NormNet(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(nn.Conv2d(3, 4, 4, stride=4), nn.BatchNorm2d(4))


def query_encoder() -> Encoder:
    torch.manual_seed(0)
    return create_encoder(Backbone(NormNet()), METHODS["moco"], hidden_dim=5, dim=3).double()


def pixels(images: int, seed: int = 0) -> Tensor:
    return torch.randn(images, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def random() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def changed(encoder: Encoder) -> Encoder:
    """The encoder with other weights and statistics."""
    with torch.no_grad():
        for value in [*encoder.parameters(), *(one for one in encoder.buffers() if one.is_floating_point())]:
            value.add_(torch.rand_like(value))
    return encoder


def test_it_starts_as_a_copy_that_gets_no_gradient() -> None:
    query = query_encoder()
    key = MomentumEncoder(query, norm=None, split=32)
    assert key.state_dict().keys() == query.state_dict().keys()
    assert all(torch.equal(value, query.state_dict()[name]) for name, value in key.state_dict().items())
    assert not any(weight.requires_grad for weight in key.parameters())
    assert all(weight.requires_grad for weight in query.parameters())
    before = copy.deepcopy(key.state_dict())
    changed(query)
    assert all(torch.equal(value, before[name]) for name, value in key.state_dict().items())


@pytest.mark.parametrize("norm", ["shuffle", "split", "ema", None])
@pytest.mark.parametrize("steps", [0, 3, 1000])
def test_an_update_keeps_the_momentums_fraction(norm: Any, steps: int) -> None:
    query = query_encoder()
    key = MomentumEncoder(query, norm=norm, split=2)
    changed(query)
    before = copy.deepcopy(key.state_dict())
    key.momentum_update(query, 0.8, steps)
    weights = {name for name, _ in key.named_parameters()}
    for name, value in key.state_dict().items():
        if name in weights:
            kept = 0.8
        elif norm == "ema" and value.is_floating_point():
            kept = min(0.8, 1 - 2 / (steps + 2))  # at first the nth update counts n times
        else:
            kept = 1.0
        expected = kept * before[name] + (1 - kept) * query.state_dict()[name]
        torch.testing.assert_close(value, expected.to(value.dtype), msg=name)


@pytest.mark.parametrize(("norm", "key_trains"), [("shuffle", True), ("split", True), ("ema", False), (None, True)])
def test_its_batch_norm_is_in_the_query_encoders_mode_unless_it_averages(norm: Any, key_trains: bool) -> None:
    query = query_encoder()
    key = MomentumEncoder(query, norm=norm, split=32)
    for training in (True, False):
        query.train(training)
        key.keys(pixels(4), query, random())
        assert {part.training for part in key.modules()} == {training and key_trains}
    query.train()
    query.backbone.get_submodule("model.1").eval()  # as an owner does who freezes it
    key.keys(pixels(4), query, random())
    assert not key.backbone.get_submodule("model.1").training


def test_split_normalizes_sub_batches_and_puts_the_images_back() -> None:
    query = query_encoder()
    key, images = MomentumEncoder(query, norm="split", split=2), pixels(4)
    found = key.keys(images, query, random())
    order = torch.randperm(4, generator=random())
    for part in order.chunk(2):
        torch.testing.assert_close(found.vector[part], key(images[part]).vector)
    whole = MomentumEncoder(query, norm="split", split=4).keys(images, query, random())
    torch.testing.assert_close(whole.vector, key(images).vector)
    assert not torch.allclose(found.vector, whole.vector)


def test_it_explains_itself() -> None:
    assert "norm=split, split=16" in str(MomentumEncoder(query_encoder(), norm="split", split=16))
