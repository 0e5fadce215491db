from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from sklearn.cluster import KMeans

from densecl.evaluation.dense import LabeledMaps
from densecl.evaluation.tasks import clustering
from densecl.evaluation.tasks.clustering import fit_clusters, k_means, nearest_centroid


def test_separate_groups_are_found() -> None:
    generator = torch.Generator().manual_seed(0)
    centers = 10 * torch.eye(6)
    points = centers.repeat_interleave(20, dim=0) + 0.1 * torch.randn(120, 6, generator=generator)
    for seed in range(3):
        groups = nearest_centroid(points, k_means(points, 6, seed)).reshape(6, 20)
        assert (groups == groups[:, :1]).all() and len(groups[:, 0].unique()) == 6


def test_as_good_as_the_best_partition() -> None:
    # Every way to part seven points into two groups, tried.
    points = torch.randn(7, 3, generator=torch.Generator().manual_seed(1))

    def spread(groups: torch.Tensor) -> float:
        parts = [points[groups == group] for group in (0, 1)]
        return sum(((part - part.mean(dim=0)) ** 2).sum().item() for part in parts if len(part))

    best = min(spread(torch.tensor(groups)) for groups in itertools.product((0, 1), repeat=7))
    found = [spread(nearest_centroid(points, k_means(points, 2, seed))) for seed in range(8)]
    assert min(found) == pytest.approx(best) and max(found) < 2 * best


def test_from_the_same_start_it_ends_where_scikit_learn_does(monkeypatch: pytest.MonkeyPatch) -> None:
    points = torch.randn(300, 5, generator=torch.Generator().manual_seed(2))
    start = points[:9].clone()
    monkeypatch.setattr(clustering, "_spread", lambda *_: start)
    expected = KMeans(9, init=np.asarray(start), n_init=1, tol=0, algorithm="lloyd").fit(np.asarray(points))
    found = k_means(points, 9, seed=0, iterations=300)
    torch.testing.assert_close(found, torch.from_numpy(expected.cluster_centers_), atol=1e-4, rtol=0)
    assert torch.equal(nearest_centroid(points, found), torch.from_numpy(expected.labels_).long())


def test_the_start_is_drawn_by_the_seed() -> None:
    points = torch.randn(200, 4, generator=torch.Generator().manual_seed(0))
    first, same, other = (k_means(points, 8, seed, iterations=1) for seed in (0, 0, 1))
    assert torch.equal(first, same) and not torch.equal(first, other)


def test_more_clusters_than_different_points() -> None:
    points = torch.eye(3).repeat(4, 1)
    assert nearest_centroid(points, k_means(points, 8, 0)).unique().numel() == 3


def test_many_clusters_may_have_one_class() -> None:
    # Four directions, two of them of class 1: the vote of their pixels decides, not a one-to-one assignment.
    directions = torch.eye(4)
    labels = torch.tensor([0, 1, 1, 2])
    features = directions[torch.arange(40) % 4].reshape(40, 4, 1, 1)
    maps = LabeledMaps(features, labels[torch.arange(40) % 4].to(torch.uint8)[:, None, None])
    classify = fit_clusters(maps, 3, clusters=4)
    assert classify(directions[:, :, None, None]).argmax(dim=1).flatten().tolist() == labels.tolist()
