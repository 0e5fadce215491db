from __future__ import annotations

import copy
import itertools
import math

import pytest
import torch
from torch import nn

from densecl.errors import UserError
from densecl.model import DenseCL, Distillation, Follower, Guidance
from densecl.model.backbone import Backbone
from densecl.model.distillation import (
    ANCHOR_FORMS,
    TEACHER_OBJECTIVES,
    cosine,
    on_the_finer_grid,
    relational,
    standardized,
)
from densecl.model.frozen import Frozen
from densecl.normalization import IMAGENET, Normalization
from densecl.views import Views

PLAIN = Normalization((0.0,) * 3, (1.0,) * 3)
HALF = Normalization((0.5,) * 3, (0.25,) * 3)


def network(features: int, seed: int = 1) -> Backbone:
    """A network of one convolution."""
    torch.manual_seed(seed)
    return Backbone(nn.Conv2d(3, features, 4, 4), name="one layer")


def frozen(features: int = 5, seed: int = 1, **settings) -> Frozen:
    return Frozen(network(features, seed=seed), **{"normalization": PLAIN, "views": PLAIN, **settings})


def angle(one: list[float], other: list[float]) -> float:
    """The cosine between two vectors, the long way."""
    product = sum(a * b for a, b in zip(one, other, strict=True))
    return product / math.sqrt(sum(a * a for a in one) * sum(b * b for b in other))


@pytest.fixture
def cells() -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    return torch.randn(2, 6, 4, dtype=torch.float64), torch.randn(2, 6, 4, dtype=torch.float64)


def test_cosine_is_its_formula(cells) -> None:
    ours, theirs = (one.tolist() for one in cells)
    pairs = [pair for images in zip(ours, theirs, strict=True) for pair in zip(*images, strict=True)]
    similarities = [angle(*pair) for pair in pairs]
    assert cosine(*cells).item() == pytest.approx(1 - sum(similarities) / 12, abs=1e-12)
    assert cosine(cells[0], 3 * cells[0]).item() == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("dim", [4, 3])
def test_relational_is_its_formula(cells, dim: int) -> None:
    student, target = cells[0], cells[1][:, :, :dim]
    differences = [
        (angle(a, b) - angle(c, d)) ** 2
        for ours, theirs in zip(student.tolist(), target.tolist(), strict=True)
        for (a, c), (b, d) in itertools.product(zip(ours, theirs, strict=True), repeat=2)
    ]
    assert relational(student, target).item() == pytest.approx(sum(differences) / 72, abs=1e-12)
    turned = torch.linalg.qr(torch.randn(4, 4, dtype=torch.float64)).Q
    assert relational(student, 2 * student @ turned).item() == pytest.approx(0, abs=1e-12)


def test_every_objective_is_a_sum_of_comparisons_and_has_a_gradient() -> None:
    features = torch.randn(2, 7, 3, 3)
    losses = {}
    for name, comparisons in TEACHER_OBJECTIVES.items():
        torch.manual_seed(0)
        follower = Follower(frozen(), 7, comparisons, head=True, name="it")
        own = features.clone().requires_grad_()
        losses[name] = follower(own, torch.ones(2, 3, 16, 16) * torch.rand(2, 1, 16, 16)).loss
        losses[name].backward()
        assert own.grad is not None and own.grad.abs().sum() > 0
        assert (follower.head is not None) == (name != "relational")  # an idle head would stall several processes
    assert set(losses) == {"cosine", "relational", "both"}


def test_both_is_the_sum() -> None:
    features, pixels = torch.randn(2, 7, 4, 4), torch.rand(2, 3, 16, 16)
    made = [Follower(frozen(), 7, one, head=True, name="it") for one in TEACHER_OBJECTIVES.values()]
    assert made[0].head is not None and made[2].head is not None
    made[2].head.load_state_dict(made[0].head.state_dict())
    one, two, both = (follower(features, pixels).loss.item() for follower in made)
    assert both == pytest.approx(one + two, abs=1e-6)


def test_standardized_is_its_formula() -> None:
    torch.manual_seed(0)
    maps = 3 + 5 * torch.randn(2, 4, 3, 3, dtype=torch.float64)
    maps[:, 2] = 7.0  # the same in all cells
    made = standardized(maps).transpose(0, 1).flatten(1).tolist()
    for feature, (ours, theirs) in enumerate(zip(made, maps.transpose(0, 1).flatten(1).tolist(), strict=True)):
        mean = sum(theirs) / 18
        deviation = math.sqrt(sum((value - mean) ** 2 for value in theirs) / 18)
        expected = [0.0] * 18 if feature == 2 else [(value - mean) / deviation for value in theirs]
        assert ours == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_with_standardized_features_their_scale_and_offset_do_not_matter(scale: float) -> None:
    torch.manual_seed(0)
    features, taught, pixels = torch.randn(2, 7, 4, 4), torch.randn(2, 5, 4, 4), torch.rand(2, 3, 16, 16)
    other = scale * (taught * torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0])[:, None, None] + 10)
    for comparisons in TEACHER_OBJECTIVES.values():
        follower = Follower(frozen(), 7, comparisons, head=True, name="it", standardize=True)
        one, two = (follower(features, pixels, target).loss.item() for target in (taught, other))
        assert one == pytest.approx(two, rel=1e-3)
    assert standardized(torch.zeros(1, 2, 1, 1)).abs().sum() == 0  # no deviation at all is no NaN
    assert standardized(torch.full((4, 8, 5, 5), 0.1)).abs().sum() == 0  # nor is rounding a deviation


@pytest.mark.parametrize("value", [math.inf, math.nan])
def test_what_is_not_finite_is_not_hidden_by_standardizing(value: float) -> None:
    maps = torch.randn(2, 4, 3, 3)
    maps[0, 2, 1, 1] = value
    assert not standardized(maps).isfinite().all()  # a target of zeros would teach nothing, and no alarm would tell


def test_relations_are_those_of_standardized_features_on_both_sides() -> None:
    torch.manual_seed(0)
    features, taught = torch.rand(2, 7, 3, 3, requires_grad=True), torch.randn(2, 5, 3, 3)  # as after a ReLU
    follower = Follower(frozen(), 7, TEACHER_OBJECTIVES["relational"], head=True, name="it", standardize=True)
    made = follower(features, torch.rand(2, 3, 16, 16), taught).loss
    own, target = (standardized(one).flatten(2).transpose(1, 2) for one in (features, taught))
    assert made.item() == pytest.approx(relational(own, target).item(), abs=1e-6)
    assert follower(features, torch.rand(2, 3, 16, 16), 3 * features.detach() + 1).loss.item() < 1e-8  # can be reached


def test_maps_meet_on_the_finer_grid_in_each_direction() -> None:
    torch.manual_seed(0)
    wide, tall = torch.randn(2, 3, 2, 6), torch.randn(2, 5, 4, 3)
    one, other = on_the_finer_grid(wide, tall)
    assert one.shape == (2, 24, 3) and other.shape == (2, 24, 5)
    constant, _ = on_the_finer_grid(torch.full((1, 2, 1, 1), 7.0), torch.zeros(1, 1, 3, 3))
    torch.testing.assert_close(constant, torch.full((1, 9, 2), 7.0))
    same, _ = on_the_finer_grid(wide, wide)
    assert torch.equal(same, wide.flatten(2).transpose(1, 2))


def test_a_frozen_network_sees_the_views_as_it_was_trained_to() -> None:
    images = torch.rand(2, 4, 8, 8)
    four = Normalization((0.1, 0.2, 0.3, 0.4), (0.5, 0.6, 0.7, 0.8))
    mean, std = (torch.tensor(values)[:, None, None] for values in four)
    views = (images - mean) / std
    seen = frozen(normalization=IMAGENET, views=four, channels=[3, 0, 0]).seen(views)
    own_mean, own_std = (torch.tensor(values)[:, None, None] for values in IMAGENET)
    torch.testing.assert_close(seen, (images[:, [3, 0, 0]] - own_mean) / own_std)


def test_the_same_normalization_changes_no_bit() -> None:
    views = torch.randn(2, 3, 8, 8)
    assert frozen(normalization=HALF, views=HALF).seen(views) is views


def test_a_frozen_network_has_a_size_of_its_own() -> None:
    views = torch.rand(2, 3, 16, 16)
    assert frozen(size=32)(views).shape == (2, 5, 8, 8)
    assert frozen()(views).shape == (2, 5, 4, 4)


def test_what_is_frozen_is_no_part_of_the_model() -> None:
    student = network(6, seed=2)
    teacher = Follower(frozen(), 6, TEACHER_OBJECTIVES["both"], head=True, name="it")
    start = Frozen(copy.deepcopy(student), normalization=PLAIN, views=PLAIN)
    anchor = Follower(start, 6, ANCHOR_FORMS["gram"], head=False, name="the start")
    model = Distillation(student, Guidance(teacher=teacher, teacher_weight=1.0, anchor=anchor, anchor_weight=2.0))
    assert {name.rpartition(".")[0] for name, _ in model.named_parameters()} == {
        "backbone.model",
        "guidance.teacher.head",
    }
    assert not list(model.buffers())
    output = model.train()(torch.rand(2, 3, 16, 16))
    output.loss.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    assert all(parameter.grad is None for one in model.guidance.frozen for parameter in one.network.parameters())
    assert not any(one.network.training for one in model.guidance.frozen)


def test_the_loss_is_its_formula() -> None:
    student, pixels = network(6, seed=2), torch.rand(2, 3, 16, 16)
    teacher = Follower(frozen(), 6, TEACHER_OBJECTIVES["cosine"], head=True, name="it")
    start = frozen(6, seed=3)
    anchor = Follower(start, 6, ANCHOR_FORMS["cells"], head=False, name="the start")
    guidance = Guidance(teacher=teacher, teacher_weight=0.25, anchor=anchor, anchor_weight=3.0)
    features = student(pixels)
    guided = guidance(features, pixels, torch.tensor(8.0))
    ours, theirs = features.flatten(2).transpose(1, 2), start(pixels).flatten(2).transpose(1, 2)
    assert guided.anchor_loss is not None and guided.moved is not None and guided.teacher_loss is not None
    assert guided.moved.item() == pytest.approx(cosine(ours, theirs).item(), abs=1e-6)
    assert guided.anchor_loss.item() == pytest.approx(guided.moved.item(), abs=1e-6)
    expected = 0.75 * 8 + 0.25 * guided.teacher_loss.item() + 3 * guided.anchor_loss.item()
    assert guided.loss.item() == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("form", ["gram", "cells"])
def test_an_anchor_is_0_at_the_start(form) -> None:
    student = network(6)
    start = Frozen(copy.deepcopy(student), normalization=HALF, views=HALF)
    anchor = Follower(start, 6, ANCHOR_FORMS[form], head=False, name="the start")
    pixels = torch.rand(2, 3, 16, 16)
    loss, moved = anchor(student(pixels), pixels)
    assert moved is not None
    assert loss.item() == pytest.approx(0, abs=1e-6) and moved.item() == pytest.approx(0, abs=1e-6)


def test_beside_a_method_the_first_view_is_followed_without_pooling() -> None:
    def views(seed: int) -> Views:
        pixels = torch.rand(4, 3, 16, 16, generator=torch.Generator().manual_seed(seed))
        return Views(pixels, torch.tensor([[0.0, 0.0, 16.0, 16.0]] * 4), torch.zeros(4, dtype=torch.bool))

    teacher = Follower(frozen(), 6, TEACHER_OBJECTIVES["relational"], head=True, name="it")
    settings = {"method": "simclr", "dim": 8, "hidden_dim": 8, "grid": 2, "matching": "geometry"}
    torch.manual_seed(0)
    plain = DenseCL(network(6, seed=2), **settings)
    guided = copy.deepcopy(plain)
    guided.guidance = Guidance(teacher=teacher, teacher_weight=0.5)
    before, after = plain(views(0), views(1)), guided(views(0), views(1))
    assert before.guided is None and after.guided is not None
    expected = teacher(plain.backbone(views(0).pixels), views(0).pixels).loss.item()
    assert after.guided.teacher_loss.item() == pytest.approx(expected, abs=1e-6)
    assert after.loss.item() == pytest.approx(0.5 * before.loss.item() + 0.5 * expected, abs=1e-6)
    assert after.global_loss == before.global_loss


def test_other_frozen_weights_than_those_of_a_checkpoint_are_told() -> None:
    def follower(seed: int) -> Follower:
        return Follower(frozen(seed=seed), 6, TEACHER_OBJECTIVES["cosine"], head=True, name="--teacher x")

    state = follower(1).state_dict()
    follower(1).load_state_dict(state)
    with pytest.raises(UserError, match="The weights of teacher x are not those that the run began with"):
        follower(2).load_state_dict(state)
