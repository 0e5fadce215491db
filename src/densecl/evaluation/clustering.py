"""Over-clustering: K-means on cells without labels, then each cluster takes the class that is most common in it."""

from __future__ import annotations

import functools
from collections.abc import Collection, Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor, nn

from densecl.evaluation.dense import Classify, Labeled, LabeledMaps, Segmentation, judge
from densecl.evaluation.retrieval import labeled_cells, unit_cells

#: Training cells that are clustered. (Twice as many, and 50 iterations, gave the same mIoU to 0.2 on CamVid.)
CLUSTERED_CELLS = 32_768

ITERATIONS = 20

#: For each cluster, cells among which K-means looks for a start.
CANDIDATES = 16


def clustering_segmentation(
    backbone: nn.Module,
    train: Sequence[Labeled],
    test: Sequence[Labeled],
    *,
    classes: int,
    mean: Sequence[float],
    std: Sequence[float],
    ignore: Collection[int] = (),
    batch_size: int = 32,
    seed: int = 0,
) -> Segmentation:
    """Cluster the cells of `train` and score the clusters' classes on `test` (`fit_clusters`).

    Arguments and errors are those of `dense.judge`; `seed` draws where K-means begins.
    """
    judged = judge(
        backbone,
        train,
        test,
        {"clustering": functools.partial(fit_clusters, seed=seed)},
        classes=classes,
        mean=mean,
        std=std,
        ignore=ignore,
        batch_size=batch_size,
    )
    return judged["clustering"]["all"]


def fit_clusters(train: LabeledMaps, classes: int, *, seed: int = 0, clusters: int = 500) -> Classify:
    """K-means on unit vectors of training cells; a cell has the class that most pixels of its cluster have.

    The assignment is many to one: several clusters may have the same class, and a class may have none. It is made on
    the training set, so that scoring on another set, or on a part of one, asks whether the clusters mean something.
    """
    cells, shares = labeled_cells(train, classes, CLUSTERED_CELLS, seed)
    centroids = k_means(cells, min(clusters, len(cells)), seed)
    mass = torch.zeros(len(centroids), classes, device=cells.device)
    mass.index_add_(0, nearest_centroid(cells, centroids), shares)
    one_hot = F.one_hot(mass.argmax(dim=1), classes).float()

    def classify(features: Float[Tensor, "batch channels rows cols"]) -> Float[Tensor, "batch classes rows cols"]:
        batch, _, rows, cols = features.shape
        labels = one_hot[nearest_centroid(unit_cells(features), centroids)]
        return labels.reshape(batch, rows, cols, classes).permute(0, 3, 1, 2)

    return classify


def k_means(
    points: Float[Tensor, "cells dim"], clusters: int, seed: int, iterations: int = ITERATIONS
) -> Float[Tensor, "{clusters} dim"]:
    """Lloyd's algorithm from a k-means++ start; a cluster that loses all its points keeps its centroid.

    Stops when no point changes its cluster, or after `iterations`.
    """
    centroids = _spread(points, clusters, seed)
    before: Tensor | None = None
    for _ in range(iterations):
        nearest = nearest_centroid(points, centroids)
        if before is not None and torch.equal(nearest, before):
            break
        before = nearest
        counts = torch.bincount(nearest, minlength=clusters)[:, None]
        sums = torch.zeros_like(centroids).index_add_(0, nearest, points)
        centroids = torch.where(counts > 0, sums / counts.clamp(min=1), centroids)
    return centroids


def nearest_centroid(
    points: Float[Tensor, "cells dim"], centroids: Float[Tensor, "clusters dim"]
) -> Int64[Tensor, "cells"]:
    """By Euclidean distance; the points' own lengths are the same for every centroid and left out."""
    half_squares = centroids.square().sum(dim=1) / 2
    return torch.cat([(some @ centroids.T - half_squares).argmax(dim=1) for some in points.split(8192)])


def _spread(points: Float[Tensor, "cells dim"], clusters: int, seed: int) -> Float[Tensor, "{clusters} dim"]:
    """k-means++ on a part of the points: each next centroid is one drawn by its squared distance to those so far."""
    generator = torch.Generator().manual_seed(seed)
    candidates = torch.randperm(len(points), generator=generator)[: CANDIDATES * clusters]
    points = points[candidates.to(points.device)]
    draws = torch.rand(clusters, generator=generator, dtype=torch.float64).to(points.device)
    squares = points.square().sum(dim=1)
    chosen = torch.zeros(clusters, dtype=torch.int64, device=points.device)
    distances = torch.ones_like(squares)
    for number in range(clusters):
        # In double precision: the sum over many points must not swallow the single ones.
        cumulative = distances.double().cumsum(dim=0)
        chosen[number] = torch.searchsorted(cumulative, draws[number] * cumulative[-1]).clamp(max=len(points) - 1)
        newest = points[chosen[number]]
        apart = (squares + newest.square().sum() - 2 * points @ newest).clamp(min=0)
        distances = apart if number == 0 else torch.minimum(distances, apart)
    return points[chosen]
