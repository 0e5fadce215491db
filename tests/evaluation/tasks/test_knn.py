from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from sklearn.neighbors import KNeighborsClassifier
from torch import nn

from densecl.errors import UserError
from densecl.evaluation.tasks.knn import classify_by_neighbors, vote
from densecl.normalization import Normalization

STANDARD = {"normalization": Normalization((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))}
COLORS = torch.tensor([[250, 0, 0], [0, 250, 0], [0, 0, 250], [250, 250, 0]], dtype=torch.uint8)


class Cells(nn.Module):
    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return nn.functional.avg_pool2d(pixels, 4)


def images(count: int, shown: int = 4) -> list[tuple[torch.Tensor, int]]:
    """Images of four classes in turn, in the color of their class, or of their class modulo `shown`."""
    return [(COLORS[n % 4 % shown][:, None, None].expand(3, 8, 8), n % 4) for n in range(count)]


def test_classes_painted_into_the_features_score_100() -> None:
    for found, _ in classify_by_neighbors(Cells(), images(120), seeds=(0, 1), batch_size=50, **STANDARD):
        assert found.accuracy == 100 and 10 < found.chance < 50


def test_half_right_features_score_what_was_planted() -> None:
    # Classes 0 and 2 look the same, 1 and 3 too, and the first of each pair are three times as many.
    planted = [item for item in images(400, shown=2) for _ in range(3 if item[1] < 2 else 1)]
    found = classify_by_neighbors(Cells(), planted, seeds=range(5), **STANDARD)
    assert sum(each.accuracy for each, _ in found) / 5 == pytest.approx(75, abs=5)


def test_noise_scores_chance() -> None:
    generator = torch.Generator().manual_seed(0)
    noise = [(torch.randint(0, 256, (3, 8, 8), generator=generator, dtype=torch.uint8), n % 4) for n in range(500)]
    found = classify_by_neighbors(Cells(), noise, seeds=range(4), **STANDARD)
    assert sum(each.accuracy for each, _ in found) / 4 == pytest.approx(25, abs=7)


def test_votes_are_those_of_the_formula() -> None:
    generator = torch.Generator().manual_seed(0)
    queries, keys = (nn.functional.normalize(torch.randn(count, 4, generator=generator), dim=1) for count in (30, 50))
    labels = torch.randint(0, 3, (50,), generator=generator)
    found = vote(queries, keys, labels, k=7, temperature=0.5)
    for query, answer in zip(queries, found.tolist(), strict=True):
        near = sorted(zip((keys @ query).tolist(), labels.tolist(), strict=True), reverse=True)[:7]
        votes = [sum(math.exp(cosine / 0.5) for cosine, label in near if label == which) for which in range(3)]
        assert votes[answer] == pytest.approx(max(votes))


def test_votes_are_those_of_scikit_learn() -> None:
    generator = torch.Generator().manual_seed(1)
    queries, keys = (nn.functional.normalize(torch.randn(count, 6, generator=generator), dim=1) for count in (80, 200))
    labels = torch.randint(0, 5, (200,), generator=generator)
    reference = KNeighborsClassifier(11, metric="cosine", weights=lambda distances: np.exp((1 - distances) / 0.07))
    reference.fit(keys.numpy(), labels.numpy())
    assert vote(queries, keys, labels, k=11).tolist() == reference.predict(queries.numpy()).tolist()


def test_one_image_is_not_enough() -> None:
    with pytest.raises(UserError, match="not two images"):
        classify_by_neighbors(Cells(), images(1), **STANDARD)
