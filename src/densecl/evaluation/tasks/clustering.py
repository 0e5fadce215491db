"""Over-clustering: K-means on cells without labels. Then each cluster takes its most common class."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor

from densecl.evaluation.dense import Classify, LabeledMaps
from densecl.evaluation.tasks.probe import ProbeTask
from densecl.evaluation.tasks.retrieval import labeled_cells, unit_cells

#: At most this many training cells are clustered. Twice as many and 50 iterations gave the same mIoU to 0.2 on CamVid.
CLUSTERED_CELLS = 32_768

ITERATIONS = 20

#: K-means chooses its start among this many cells for each cluster.
CANDIDATES = 16


class ClusteringTask(ProbeTask):
    use = "groups that form without labels, as for sorting"

    def fit(self, train: LabeledMaps, classes: int, seed: int) -> Classify:
        return fit_clusters(train, classes, seed=seed)

    def is_drawn(self, cells: int) -> bool:
        return True  # K-means starts from drawn cells


def fit_clusters(train: LabeledMaps, classes: int, *, seed: int = 0, clusters: int = 500) -> Classify:
    """K-means on unit vectors of training cells. A cell has the class that most pixels of its cluster have.

    Several clusters may have the same class, and a class may have none. The classes are assigned on the training set,
    so that the score on other images shows whether the clusters mean something.
    """
    cells, fractions = labeled_cells(train, classes, CLUSTERED_CELLS, seed)
    centroids = k_means(cells, min(clusters, len(cells)), seed)
    mass = torch.zeros(len(centroids), classes, device=cells.device)
    mass.index_add_(0, nearest_centroid(cells, centroids), fractions)
    one_hot = F.one_hot(mass.argmax(dim=1), classes).float()

    def classify(features: Float[Tensor, "batch channels rows cols"]) -> Float[Tensor, "batch classes rows cols"]:
        batch, _, rows, cols = features.shape
        labels = one_hot[nearest_centroid(unit_cells(features), centroids)]
        return labels.reshape(batch, rows, cols, classes).permute(0, 3, 1, 2)

    return classify


def k_means(
    points: Float[Tensor, "cells dim"], clusters: int, seed: int, iterations: int = ITERATIONS
) -> Float[Tensor, "{clusters} dim"]:
    """Lloyd's algorithm from a k-means++ start. A cluster that loses all its points keeps its centroid.

    It stops when no point changes its cluster, or after `iterations`.
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
    """By Euclidean distance. The length of a point is left out, because it is the same for every centroid."""
    half_squares = centroids.square().sum(dim=1) / 2
    return torch.cat([(some @ centroids.T - half_squares).argmax(dim=1) for some in points.split(8192)])


def _spread(points: Float[Tensor, "cells dim"], clusters: int, seed: int) -> Float[Tensor, "{clusters} dim"]:
    """k-means++ on some of the points: each centroid is drawn by its squared distance to those before it."""
    generator = torch.Generator().manual_seed(seed)
    candidates = torch.randperm(len(points), generator=generator)[: CANDIDATES * clusters]
    points = points[candidates.to(points.device)]
    draws = torch.rand(clusters, generator=generator, dtype=torch.float64).to(points.device)
    squares = points.square().sum(dim=1)
    chosen = torch.zeros(clusters, dtype=torch.int64, device=points.device)
    distances = torch.ones_like(squares)
    for number in range(clusters):
        # In double precision, because a float32 sum over many points loses the small terms.
        cumulative = distances.double().cumsum(dim=0)
        chosen[number] = torch.searchsorted(cumulative, draws[number] * cumulative[-1]).clamp(max=len(points) - 1)
        newest = points[chosen[number]]
        apart = (squares + newest.square().sum() - 2 * points @ newest).clamp(min=0)
        distances = apart if number == 0 else torch.minimum(distances, apart)
    return points[chosen]
