"""The softer forms of the dense loss, against the same written down in float64, and what they go together with."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from densecl.errors import UserError
from densecl.model import METHODS, DenseCL, create_backbone
from densecl.model import weighted_negatives as weighted_negatives_module
from densecl.model.info_nce import info_nce_over_cells, info_nce_over_weighted_cells
from densecl.model.propagation import propagated
from densecl.model.weighted_negatives import looks
from densecl.views import Views
from tests.model.test_against_reference import random_views
from tests.model.test_info_nce import compare, units


def plain_propagation(cells: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """y_i = sum_j max(cos(x_i, x_j), 0)^2 (W x_j + b), one cell after the other; then length 1."""
    images = []
    for image in cells:
        rows = []
        for cell in image:
            total = torch.zeros(len(bias), dtype=cells.dtype)
            for other in image:
                cosine = cell @ other / (cell.norm() * other.norm())
                total = total + max(cosine, torch.zeros((), dtype=cells.dtype)) ** 2 * (weight @ other + bias)
            rows.append(total / total.norm())
        images.append(torch.stack(rows))
    return torch.stack(images)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_propagation(dtype: torch.dtype) -> None:
    layer = nn.Linear(5, 5)
    cells = torch.randn(2, 6, 5, generator=torch.Generator().manual_seed(0)).to(dtype).requires_grad_()
    compare(
        lambda cells, weight, bias: propagated(cells, lambda vectors: vectors @ weight.T + bias),
        plain_propagation,
        cells,
        layer.weight.detach().to(dtype).requires_grad_(),
        layer.bias.detach().to(dtype).requires_grad_(),
    )


def plain_looks(query: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
    sides = [side.flatten(2).transpose(1, 2) for side in (query, key)]
    mean = torch.cat([side.flatten(0, 1) for side in sides]).mean(dim=0)
    return tuple((side - mean) / (side - mean).norm(dim=2, keepdim=True) for side in sides)  # type: ignore[return-value]


def plain_weighted(
    query: Tensor,
    key: Tensor,
    looks_of_query: Tensor,
    looks_of_key: Tensor,
    match: Tensor,
    not_negative: Tensor,
    temperature: float,
    first_image: int,
) -> Tensor:
    """-log( exp(q.k+ / t) / (exp(q.k+ / t) + sum_j w_j exp(q.k_j / t)) ), one query cell after the other."""
    losses = torch.zeros(query.shape[:2], dtype=query.dtype)
    for image in range(query.shape[0]):
        own = first_image + image
        for cell in range(query.shape[1]):
            positive = torch.exp(query[image, cell] @ key[own, match[image, cell]] / temperature)
            others = torch.zeros((), dtype=query.dtype)
            for other in range(key.shape[0]):
                for place in range(key.shape[1]):
                    here = other == own
                    if here and (not_negative[image, cell, place] or place == match[image, cell]):
                        continue
                    alike = max(float(looks_of_query[image, cell] @ looks_of_key[other, place]), 0.0)
                    others = others + (1 - alike**2) * torch.exp(query[image, cell] @ key[other, place] / temperature)
            losses[image, cell] = -torch.log(positive / (positive + others))
    return losses


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("part", [2**25, 1])  # bytes at a time: all images together, or one after the other
def test_weighted_negatives(dtype: torch.dtype, part: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weighted_negatives_module, "PART_BYTES", part)
    query, key = units(3, 4, 6).to(dtype).requires_grad_(), units(5, 6, 6, seed=1).to(dtype).requires_grad_()
    maps = [units(3, 7, 2, 2, seed=2).abs(), units(5, 7, 2, 3, seed=3).abs()]
    looks_of_query, looks_of_key = plain_looks(*maps)
    match = torch.randint(6, (3, 4), generator=torch.Generator().manual_seed(4))
    not_negative = torch.rand(3, 4, 6, generator=torch.Generator().manual_seed(5)) < 0.3

    def ours(query: Tensor, key: Tensor) -> Tensor:
        sides = looks_of_query.to(dtype), looks_of_key.to(dtype)
        return info_nce_over_weighted_cells(query, key, match, not_negative, *sides, 0.2, 1)

    def theirs(query: Tensor, key: Tensor) -> Tensor:
        return plain_weighted(query, key, looks_of_query, looks_of_key, match, not_negative, 0.2, 1)

    compare(ours, theirs, query, key)


def test_looks_are_the_features_without_their_mean() -> None:
    maps = units(3, 7, 2, 3, seed=2).abs(), units(3, 7, 2, 3, seed=3).abs()
    for ours, theirs in zip(looks(*maps), plain_looks(*maps), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_negatives_that_resemble_nothing_count_in_full() -> None:
    query, key = units(2, 3, 8), units(2, 3, 8, seed=1)
    match, not_negative = torch.zeros(2, 3, dtype=torch.long), torch.zeros(2, 3, 3, dtype=torch.bool)
    apart = F.one_hot(torch.arange(12), 12).double().reshape(2, 2, 3, 12)  # orthogonal
    weighted = info_nce_over_weighted_cells(query, key, match, not_negative, apart[0], apart[1], 0.2)
    torch.testing.assert_close(weighted, info_nce_over_cells(query, key, match, not_negative, 0.2))
    same = torch.ones(2, 3, 1, dtype=torch.float64)  # all alike: no negatives are left
    assert info_nce_over_weighted_cells(query, key, match, not_negative, same, same, 0.2).abs().max() < 1e-12


def views(seed: int) -> Views:
    return random_views(4, 32, 32, seed=seed, dtype=torch.float32)


def model(method: str, **settings: Any) -> DenseCL:
    torch.manual_seed(0)
    own = {"queue_length": 8} if METHODS[method].queue else {}
    backbone = create_backbone("test_resnet", output_stride=8)
    return DenseCL(backbone, method=method, dim=8, hidden_dim=16, matching="geometry", **{**own, **settings})


@pytest.mark.parametrize("method", ["moco", "simclr", "byol", "simsiam"])
def test_propagation_changes_the_dense_loss_alone_and_learns(method: str) -> None:
    settings = {"dense_negatives": "batch"} if METHODS[method].dense_negatives else {}
    plain, soft = (model(method, **settings, dense_softening=one) for one in ("none", "propagation"))
    before = plain.state_dict()
    added = {name for name in soft.state_dict() if name not in before}
    assert added == {"propagation.layers.0.weight", "propagation.layers.0.bias"}
    now = soft.state_dict()
    assert all(torch.equal(value, now[name]) for name, value in before.items() if torch.is_tensor(value))
    one, other = plain(views(0), views(1)), soft(views(0), views(1))
    assert torch.equal(one.global_loss, other.global_loss) and not torch.equal(one.dense_loss, other.dense_loss)
    other.loss.backward()
    assert soft.propagation is not None
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in soft.propagation.parameters())


@pytest.mark.parametrize("method", ["moco", "simclr"])
@pytest.mark.parametrize("negatives", ["batch", "others"])
def test_weights_of_negatives_lower_the_dense_loss(method: str, negatives: str) -> None:
    plain, soft = (
        model(method, dense_negatives=negatives, dense_softening=one) for one in ("none", "weighted-negatives")
    )
    assert plain.state_dict().keys() == soft.state_dict().keys()
    one, other = plain(views(0), views(1)), soft(views(0), views(1))
    assert torch.equal(one.global_loss, other.global_loss) and other.dense_loss < one.dense_loss
    other.loss.backward()


def test_both_act_on_every_stage_and_on_local_crops() -> None:
    for softening in ("propagation", "weighted-negatives"):
        made = model("simclr", dense_stages=(2, 4), dense_softening=softening)
        out = made(views(0), views(1), [random_views(4, 32, 32, seed=2, dtype=torch.float32)])
        out.loss.backward()
        assert out.loss.isfinite()


@pytest.mark.parametrize(
    ("method", "settings", "message"),
    [
        ("barlow", {"dense_softening": "propagation"}, "propagation: barlow does not compare cells by direction"),
        ("dino", {"dense_softening": "propagation"}, "dino does not compare"),
        ("byol", {"dense_softening": "weighted-negatives"}, "weighted-negatives: byol has no negatives"),
        (
            "moco",
            {"dense_softening": "weighted-negatives", "dense_negatives": "pooled"},
            "which a queue or pooled vectors do not have. Give dense_negatives batch or others",
        ),
    ],
)
def test_what_does_not_go_together(method: str, settings: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        model(method, **settings)
