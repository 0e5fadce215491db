from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torchmetrics.classification import MulticlassJaccardIndex

from densecl.errors import UserError
from densecl.evaluation import dense
from densecl.evaluation.dense import Fit, LabeledMaps, confusion_matrix, judge, label_fractions, score
from densecl.evaluation.labeled import VOID
from densecl.evaluation.tasks.clustering import fit_clusters
from densecl.evaluation.tasks.retrieval import fit_retrieval
from densecl.evaluation.tasks.segmentation import fit_linear
from densecl.normalization import Normalization

CLASSES, SIZE, CELL = 4, 32, 8
STANDARD = {"normalization": Normalization((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))}
PROBES: dict[str, Fit] = {"linear": fit_linear, "retrieval": fit_retrieval, "clustering": fit_clusters}
COLORS = torch.tensor([[250, 250, 250], [250, 0, 0], [0, 250, 0], [0, 0, 250]], dtype=torch.uint8)


class Cells(nn.Module):
    """The mean pixel of each cell, in which the label may be painted."""

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return nn.functional.avg_pool2d(pixels, CELL)


def drawn(
    count: int, *, seed: int, shown: int = CLASSES, noise: bool = False
) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Images of one class each, in its color; of the classes from `shown` on, that of class 0 of `shown`."""
    generator = torch.Generator().manual_seed(seed)
    items = []
    for number in range(count):
        label = number % CLASSES
        image = COLORS[label % shown][:, None, None].expand(3, SIZE, SIZE).clone()
        if noise:
            image = torch.randint(0, 256, (3, SIZE, SIZE), generator=generator, dtype=torch.uint8)
        items.append((image, torch.full((SIZE, SIZE), label)))
    return items


@pytest.mark.parametrize("name", PROBES)
def test_labels_painted_into_the_features_score_100(name: str) -> None:
    judged = judge(Cells(), drawn(40, seed=0), drawn(20, seed=1), {name: PROBES[name]}, classes=CLASSES, **STANDARD)
    assert judged[name]["all"].miou == 100 and judged[name]["all"].pixel_accuracy == 100


@pytest.mark.parametrize("name", PROBES)
def test_noise_scores_chance(name: str) -> None:
    sets = drawn(100, seed=0, noise=True), drawn(100, seed=1, noise=True)
    found = judge(Cells(), *sets, {name: PROBES[name]}, classes=CLASSES, **STANDARD)[name]["all"]
    assert 15 < found.pixel_accuracy < 35  # a quarter of the pixels belongs to each class
    assert found.miou < 22


@pytest.mark.parametrize("name", PROBES)
def test_half_right_features_score_what_was_planted(name: str) -> None:
    # Classes 0 and 2 look the same, 1 and 3 too. Three times as much of 0 and of 1 is learned from, so they win.
    train = [item for item in drawn(40, seed=0, shown=2) for _ in range(3 if item[1][0, 0] < 2 else 1)]
    found = judge(Cells(), train, drawn(20, seed=1, shown=2), {name: PROBES[name]}, classes=CLASSES, **STANDARD)
    assert found[name]["all"].per_class_iou == pytest.approx((50, 50, 0, 0))
    assert found[name]["all"].miou == pytest.approx(25) and found[name]["all"].pixel_accuracy == 50


def test_parts_of_the_test_set_are_scored_apart() -> None:
    test = drawn(8, seed=0)
    for index in (1, 2):
        test[index] = (test[index][0], (test[index][1] + 1) % CLASSES)  # labeled wrongly
    found = judge(
        Cells(),
        drawn(40, seed=0),
        test,
        {"linear": fit_linear},
        classes=CLASSES,
        subsets={"good": {0, 3, 4, 5}, "bad": {1, 2}},
        batch_size=3,
        **STANDARD,
    )["linear"]
    assert [found[part].pixel_accuracy for part in ("all", "good", "bad")] == [75, 100, 0]


def test_several_probes_share_one_pass() -> None:
    class Counting(Cells):
        images = 0

        def forward(self, pixels: torch.Tensor) -> torch.Tensor:
            self.images += len(pixels)
            return super().forward(pixels)

    backbone = Counting()
    judged = judge(backbone, drawn(9, seed=0), drawn(5, seed=1), PROBES, classes=CLASSES, batch_size=4, **STANDARD)
    assert set(judged) == set(PROBES) and backbone.images == 14


def test_feature_maps_beyond_memory_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dense, "MAX_FEATURE_BYTES", 9 * 3 * 16 * 4)
    judge(Cells(), drawn(9, seed=0), drawn(4, seed=1), PROBES, classes=CLASSES, **STANDARD)
    with pytest.raises(UserError, match="feature maps of 10 images would take .*image_size"):
        judge(Cells(), drawn(10, seed=0), drawn(4, seed=1), PROBES, classes=CLASSES, **STANDARD)


def test_sixteen_bit_images_have_the_range_of_eight_bit_ones() -> None:
    wide = [(image.to(torch.int32).mul(257).to(torch.uint16), label) for image, label in drawn(4, seed=0)]
    one, other = (
        dense.extract(Cells(), images, STANDARD["normalization"], CLASSES, (), 4) for images in (drawn(4, seed=0), wide)
    )
    torch.testing.assert_close(one.features, other.features)


def test_fractions_of_labels_in_cells() -> None:
    labels = torch.tensor([[[0, 0, 1, VOID], [0, 1, VOID, VOID]]], dtype=torch.uint8)
    fractions = label_fractions(labels, 3, 1, 2)
    assert fractions[0, :, 0].tolist() == [[0.75, 0], [0.25, 0.25], [0, 0]]


def test_taking_some_images() -> None:
    maps = LabeledMaps(torch.arange(3.0)[:, None, None, None], torch.arange(3, dtype=torch.uint8)[:, None, None])
    assert maps.take([2, 0]).features.flatten().tolist() == [2, 0]
    assert maps.take([2, 0]).labels.flatten().tolist() == [2, 0]


@given(st.integers(2, 6), st.integers(0, 10_000))
def test_iou_agrees_with_sets_of_pixels(classes: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    # Of the classes some may be missing, in the labels, the predictions or both.
    labels = torch.randint(-1, classes, (2, 5, 4), generator=generator)
    predicted = torch.randint(0, max(1, classes - 1), (2, 5, 4), generator=generator)
    result = score(confusion_matrix(predicted, labels.where(labels >= 0, VOID), classes))
    pairs = [
        (label, guess)
        for label, guess in zip(labels.flatten().tolist(), predicted.flatten().tolist(), strict=True)
        if label >= 0
    ]
    expected = []
    for one in range(classes):
        both = sum(label == guess == one for label, guess in pairs)
        either = sum(one in pair for pair in pairs)
        expected.append(100 * both / either if either else math.nan)
    assert result.per_class_iou == pytest.approx(expected, nan_ok=True)
    theirs = MulticlassJaccardIndex(classes, ignore_index=VOID, average="none")
    theirs.update(predicted, labels.where(labels >= 0, VOID))
    assert [0 if math.isnan(value) else value / 100 for value in result.per_class_iou] == pytest.approx(
        theirs.compute().tolist()
    )
    known = [value for value in expected if not math.isnan(value)]
    assert result.miou == pytest.approx(sum(known) / len(known))
    assert result.pixel_accuracy == pytest.approx(100 * sum(a == b for a, b in pairs) / len(pairs))


def test_the_counts_of_each_image_add_up_to_the_score() -> None:
    sets = drawn(8, seed=0, noise=True), drawn(10, seed=1, noise=True)
    probes = {"kept": fit_retrieval, "not": fit_retrieval}
    parts = {"some": {1, 4, 7}}
    found = judge(Cells(), *sets, probes, classes=CLASSES, subsets=parts, by_image={"kept"}, batch_size=4, **STANDARD)
    for subset, images in (("all", 10), ("some", 3)):
        tally, miou = found["kept"][subset].by_image, found["kept"][subset].miou
        assert len(tally) == images and tally.scores(np.ones((1, images), dtype=int))[0] == pytest.approx(miou)
        assert found["not"][subset].by_image is None and found["not"][subset].miou == miou
