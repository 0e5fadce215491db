from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from sklearn.linear_model import LogisticRegression
from torch import nn

from densecl.errors import UserError
from densecl.evaluation.dense import Labeled, LabeledMaps, Segmentation, judge
from densecl.evaluation.tasks.segmentation import RIDGE, fit_linear
from densecl.normalization import Normalization

CLASSES, SIZE, CELL = 4, 32, 8
STANDARD = {"normalization": Normalization((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))}


def scored(backbone: nn.Module, train: Sequence[Labeled], test: Sequence[Labeled], **settings: Any) -> Segmentation:
    """The linear classifier's scores on `test`."""
    judged = judge(backbone, train, test, {"linear": fit_linear}, classes=CLASSES, **STANDARD, **settings)
    return judged["linear"]["all"]


class Painted(nn.Module):
    """Features that tell the class of a cell: the mean pixel of the cell, in which the label is painted."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(3)  # would move its statistics if it were left in training mode

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return self.norm(nn.functional.avg_pool2d(pixels, CELL))


def painted(count: int, *, seed: int, paint: bool) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Images of vertical bands of classes; painted with a color of their class, or noise."""
    generator = torch.Generator().manual_seed(seed)
    colors = torch.tensor([[0, 0, 0], [250, 0, 0], [0, 250, 0], [0, 0, 250]], dtype=torch.uint8)
    items = []
    for _ in range(count):
        # One class an image, so that bilinear interpolation has no edge to blur.
        labels = torch.full((SIZE, SIZE), int(torch.randint(CLASSES, (), generator=generator)))
        if paint:
            image = colors[labels].permute(2, 0, 1)
        else:
            image = torch.randint(0, 256, (3, SIZE, SIZE), generator=generator, dtype=torch.uint8)
        items.append((image.contiguous(), labels))
    return items


def test_labels_painted_into_the_features_score_100() -> None:
    backbone = Painted()
    before = {name: tensor.clone() for name, tensor in backbone.state_dict().items()}
    result = scored(backbone, painted(40, seed=0, paint=True), painted(20, seed=1, paint=True))
    assert result.miou == 100 and result.pixel_accuracy == 100
    assert result.per_class_iou == (100,) * CLASSES
    assert backbone.training and backbone.norm.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in backbone.state_dict().items())


def test_noise_scores_chance() -> None:
    result = scored(Painted(), painted(100, seed=0, paint=False), painted(100, seed=1, paint=False))
    assert 15 < result.pixel_accuracy < 35  # a quarter of the pixels belongs to each class
    assert result.miou < 20


def test_the_result_is_the_same_each_time() -> None:
    sets = painted(10, seed=0, paint=False), painted(5, seed=1, paint=False)
    torch.manual_seed(1)
    first = scored(Painted(), *sets)
    torch.manual_seed(2)
    second = scored(Painted(), *sets, batch_size=3)
    assert torch.equal(first.confusion, second.confusion)


def test_ignored_pixels_count_neither_in_training_nor_in_the_score() -> None:
    train, test = painted(40, seed=0, paint=True), painted(20, seed=1, paint=True)
    for _, labels in (*train, *test):
        labels[:, :8] = 200  # an ignored class that would be wrong everywhere
        labels[:, 8] = 255  # ignored without being told
    result = scored(Painted(), train, test, ignore=[200])
    assert result.miou == 100
    assert result.confusion.sum() == 20 * SIZE * (SIZE - 9)
    with pytest.raises(UserError, match="labeled image 0 holds the label 200, but there are 4 classes.*ignore=200"):
        scored(Painted(), train, test)


def test_a_constant_channel_does_no_harm() -> None:
    class Constant(Painted):
        def forward(self, pixels: torch.Tensor) -> torch.Tensor:
            features = super().forward(pixels)
            return torch.cat([features, torch.full_like(features[:, :1], 7.0)], dim=1)

    result = scored(Constant(), painted(40, seed=0, paint=True), painted(20, seed=1, paint=True))
    assert result.miou == 100


def test_wrong_sets_are_refused() -> None:
    good = painted(2, seed=0, paint=True)
    with pytest.raises(UserError, match="no labeled images to learn from"):
        scored(Painted(), [], good)
    with pytest.raises(UserError, match="no labeled images to learn from"):
        scored(Painted(), good, [])
    uneven = [*good, (good[0][0][:, :24], good[0][1][:24])]
    with pytest.raises(UserError, match="one size"):
        scored(Painted(), uneven, good)


def test_the_optimum_is_that_of_logistic_regression() -> None:
    # scikit-learn sums the losses where ours is their mean, and halves the squares.
    generator = torch.Generator().manual_seed(0)
    mixed = torch.randn(6, 5, generator=generator, dtype=torch.float64).float()
    features = torch.einsum("bdrc,ed->berc", torch.randn(8, 5, 4, 4, generator=generator), mixed) + 3
    labels = torch.randint(0, 3, (8, 4, 4), generator=generator).to(torch.uint8)  # a pixel, a cell: no upsampling
    classify = fit_linear(LabeledMaps(features, labels), 3)

    cells = features.permute(0, 2, 3, 1).flatten(0, 2).double()
    cells = (cells - cells.mean(dim=0)) / cells.std(dim=0, correction=0)
    reference = LogisticRegression(C=1 / (2 * RIDGE * len(cells)), tol=1e-10, max_iter=10_000)
    expected = torch.from_numpy(reference.fit(cells.numpy(), labels.flatten().numpy()).predict_proba(cells.numpy()))
    found = classify(features).permute(0, 2, 3, 1).flatten(0, 2).softmax(dim=1)
    torch.testing.assert_close(found.double(), expected, atol=2e-3, rtol=0)


def test_nothing_labelled() -> None:
    void = [(image, torch.full_like(labels, 255)) for image, labels in painted(2, seed=0, paint=True)]
    good = painted(2, seed=0, paint=True)
    with pytest.raises(UserError, match="training set has no labeled pixel"):
        scored(Painted(), void, good)
    with pytest.raises(UserError, match="test set has no labeled pixel"):
        scored(Painted(), good, void)
