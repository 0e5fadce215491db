"""How the cells of all images lie in feature space: apart, in clusters, in how many directions. It needs no labels.

Dai et al. 2025 put these numbers together as DSE, which follows the mIoU of dense features better than others do:
`dense_structure_estimates`. It compares weights with each other; for one alone it has no meaning.
"""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Iterator, Sequence
from typing import ClassVar, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from densecl.augment import PhotometricSettings
from densecl.borrowed import evaluating
from densecl.evaluation.dense import device_of
from densecl.evaluation.results import ALL, Result
from densecl.evaluation.settings import BATCH_SIZE
from densecl.evaluation.tasks.clustering import k_means, nearest_centroid
from densecl.evaluation.tasks.correspondence import VIEW_SIZE, fixed_view_pairs, images_alone
from densecl.evaluation.tasks.retrieval import unit_cells
from densecl.evaluation.tasks.task import Context, Task
from densecl.evaluation.weights import Weights
from densecl.model.backbone import Backbone

#: Images that are looked at, unless another number is asked for.
IMAGES = 256

#: Clusters of K-means. The number of kinds of things is not known.
CLUSTERS = 24

#: Whole images in their own colors: what a detector sees, other than the views of the training.
PLAIN = PhotometricSettings(jitter_probability=0.0, grayscale_probability=0.0, blur_probability=0.0)
WHOLE = (1.0, 1.0)


class Structure(NamedTuple):
    """How L2-normalized cells lie in feature space."""

    apart: float  # mean distance of a cell to the nearest centroid of another cluster, 0 to 2, times 100
    within: float  # mean standard deviation of a cluster along its axes, times 100
    rank: float  # effective rank: exp of the entropy of the singular values, 1 to the number of channels


class StructureTask(Task):
    use = "how cells lie in feature space, as a hint where there are no labels"
    columns: ClassVar = {
        "rank": "effective\nrank",
        "apart": "clusters\napart",
        "within": "spread\nwithin",
    }

    def open(self, context: Context) -> None:
        self.side = self.settings.square(VIEW_SIZE)
        self.source = images_alone(context)

    def judge(self, weights: Weights, backbone: Backbone, seeds: Sequence[int]) -> Iterator[Result]:
        backbone.grid_at(self.side)  # raises for a size that the model does not take
        views, _ = fixed_view_pairs(
            self.source,
            image_size=self.side,
            normalization=weights.normalization,
            count=self.settings.images or IMAGES,
            crop_scale=WHOLE,
            photometrics=dataclasses.replace(PLAIN, channels=len(weights.normalization.mean)),
        )
        pixels = views.pixels.to(device_of(backbone))
        with evaluating(backbone):
            some = [unit_cells(backbone(part).float()) for part in pixels.split(self.settings.batch_size or BATCH_SIZE)]
        cells = torch.cat(some)
        for seed in seeds:
            yield Result(self.name, weights.name, seed, ALL, structure(cells, seed=seed)._asdict())


def structure(cells: Float[Tensor, "cells channels"], *, clusters: int = CLUSTERS, seed: int = 0) -> Structure:
    """The structure of L2-normalized cells.

    The paper takes the mean of a cluster's singular values, which grows with the number of its cells. Here they are
    divided by the root of that number, so that they are standard deviations, whatever the number of images.

    Args:
        cells: unit vectors of cells, at least two.
        clusters: of K-means; at least two, and no more than there are cells.
        seed: draws the start of K-means.
    """
    centroids = k_means(cells, min(clusters, len(cells)), seed)
    own = nearest_centroid(cells, centroids)
    distances = torch.cdist(cells, centroids).scatter(1, own[:, None], torch.inf)
    apart = distances.amin(dim=1).mean()
    members = [cells[own == number] for number in own.unique().tolist()]
    within = [torch.linalg.svdvals(some - some.mean(dim=0)).div(len(some) ** 0.5).mean() for some in members]
    return Structure(100 * apart.item(), 100 * torch.stack(within).mean().item(), effective_rank(cells))


def effective_rank(vectors: Float[Tensor, "vectors channels"]) -> float:
    """exp of the entropy of the singular values [RankMe, Garrido et al. 2023]: how many directions are in use.

    The singular values are the roots of the eigenvalues of the smaller of the two matrices of products, which takes a
    fraction of the time. In double precision the roots are exact to 1e-8 of the largest one.
    """
    exact = vectors.double()
    products = exact.T @ exact if len(exact) > exact.shape[1] else exact @ exact.T
    values = torch.linalg.eigvalsh(products).clamp(min=0).sqrt()
    return torch.special.entr(values / values.sum()).sum().exp().item()


def dense_structure_estimates(structures: Sequence[Structure]) -> list[float]:
    """DSE of weights that are compared with each other: apart - within + weight * rank.

    The weight makes both terms vary equally: the standard deviation of (apart - within) over that of rank.

    Args:
        structures: one of each weights, at least two.
    """
    separations = [one.apart - one.within for one in structures]
    ranks = [one.rank for one in structures]
    spread = statistics.stdev(ranks)
    weight = statistics.stdev(separations) / spread if spread else 0.0
    return [separation + weight * rank for separation, rank in zip(separations, ranks, strict=True)]
