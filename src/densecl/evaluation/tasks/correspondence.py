"""Correspondence: does a cell find the same place in another view of the image? It needs no labels.

Every backbone is judged on the same pairs of views.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from typing import ClassVar, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from densecl.augment import PhotometricSettings, augment, draw_photometrics
from densecl.borrowed import evaluating
from densecl.errors import UserError
from densecl.evaluation.dense import device_of
from densecl.evaluation.labeled import ImagesAlone, is_labeled, open_labeled
from densecl.evaluation.results import ALL, Result
from densecl.evaluation.settings import BATCH_SIZE
from densecl.evaluation.tasks.task import Context, Task
from densecl.evaluation.weights import Weights
from densecl.images.batch import collate
from densecl.images.pairs import CropPairDataset
from densecl.images.sources import ImageSource, open_source
from densecl.model.backbone import Backbone
from densecl.model.correspondence import Correspondence, correspondence
from densecl.normalization import Normalization
from densecl.views import Views

#: Pairs of views, and the side of a view in pixels, unless others are asked for.
PAIRS = 256
VIEW_SIZE = 128

#: Pairs are also scored apart by these two: the fraction of the smaller crop that the other one covers, and how many
#: times as large one of them shows things.
OVERLAP = 0.5
MAGNIFICATION = 1.5


class MatchScores(NamedTuple):
    """How well cells find their place in another view, in percent.

    The last four are the accuracy on some of the pairs of views, and nan if there are none of these.
    """

    accuracy: float  # of the matches that can be judged
    chance: float  # chance level: the accuracy of guessing
    mutual: float  # fraction of cells that are the match of their own match
    entropy: float  # of the matches; 100: all key cells are matched equally often, near 0: collapse
    small_overlap: float  # the views share less than half of the smaller one
    large_overlap: float
    same_scale: float  # the views show things at nearly the same size
    other_scale: float  # the sizes differ by half or more


class CorrespondenceTask(Task):
    use = "cells find each other, as for matching or tracking"
    columns: ClassVar = {
        "accuracy": "accuracy",
        "chance": "chance\nlevel",
        "mutual": "mutual",
        "entropy": "entropy",
        "small_overlap": "overlap\n< 1/2",
        "large_overlap": "overlap\n≥ 1/2",
        "same_scale": "scale\n< 1.5",
        "other_scale": "scale\n≥ 1.5",
    }

    def open(self, context: Context) -> None:
        self.side = self.settings.square(VIEW_SIZE)
        self.source = images_alone(context)

    def judge(self, weights: Weights, backbone: Backbone, seeds: Sequence[int]) -> Iterator[Result]:
        backbone.grid_at(self.side)  # raises for a size that the model does not take
        device = device_of(backbone)
        for seed in seeds:
            query, key = (
                Views(*(some.to(device) for some in views))
                for views in fixed_view_pairs(
                    self.source,
                    image_size=self.side,
                    normalization=weights.normalization,
                    count=self.settings.images or PAIRS,
                    seed=seed,
                )
            )
            scores = match_scores(backbone, query, key, batch_size=self.settings.batch_size or BATCH_SIZE)
            yield Result(self.name, weights.name, seed, ALL, scores._asdict())


def images_alone(context: Context) -> ImageSource:
    """The images of a folder. Of a labeled folder: those to score on, whose label maps are not opened."""
    if context.settings.test_split is not None or is_labeled(context.data):
        files = open_labeled(context.data, context.settings.test_split, channels=context.channels)
        return open_source(ImagesAlone(files), channels=context.channels)
    return open_source(context.data, channels=context.channels)


def fixed_view_pairs(
    source: ImageSource,
    *,
    image_size: int,
    normalization: Normalization,
    count: int = 256,
    crop_scale: tuple[float, float] = (0.2, 1.0),
    photometrics: PhotometricSettings | None = None,
    seed: int = 0,
) -> tuple[Views, Views]:
    """Query and key views of `count` images spread over the source, fixed by `seed`.

    Crops, flips and colors are drawn as for training with the paper's settings, unless `photometrics` has others. If
    the colors were left alone, cells could be matched by color, and an untrained network would look good. All views are
    held in memory: for RGB 24 image_size^2 count bytes.

    Raises:
        UserError: an image cannot be used. Another one in its place would give other pairs on another machine.
    """
    channels = len(normalization.mean)
    if photometrics is None:
        photometrics = PhotometricSettings.for_image_size(image_size, channels=channels)
    pairs = CropPairDataset(
        source,
        image_size=image_size,
        crop_scale=crop_scale,
        flip_probability=0.5,
        draw_photometrics=functools.partial(draw_photometrics, settings=photometrics),
        seed=seed,
    )
    count = min(count, len(source))
    batch = collate([pairs[0, number * len(source) // count] for number in range(count)])
    if batch.bad:
        raise UserError(f"{batch.bad[0].name} cannot be used: {batch.bad[0].reason}")
    return augment(batch.pairs.first, normalization), augment(batch.pairs.second, normalization)


def backbone_correspondence(
    backbone: nn.Module, query: Views, key: Views, *, radius: float = 0.7, batch_size: int = 32
) -> Correspondence:
    """`model.correspondence` of a backbone's feature maps, in evaluation mode and without gradient.

    Args:
        backbone: any module that returns a feature map "batch channels rows cols". It is left as it was.
        query: views, on the backbone's device.
        key: other views of the same images.
        radius: how far a right match may be off, in diagonals of the larger cell.
        batch_size: views that go through the backbone at a time.
    """
    with evaluating(backbone):
        query_features, key_features = (
            torch.cat([backbone(some).float() for some in views.pixels.split(batch_size)]) for views in (query, key)
        )
    return correspondence(query_features, key_features, query, key, radius)


def match_scores(backbone: nn.Module, query: Views, key: Views, *, batch_size: int = 32) -> MatchScores:
    """The numbers of `backbone_correspondence`, whose arguments these are."""
    found = backbone_correspondence(backbone, query, key, batch_size=batch_size)
    overlap, magnification = overlaps(query, key), magnifications(query, key)

    def accuracy(pairs: Bool[Tensor, "batch"]) -> float:
        return 100 * (found.hits[pairs].sum() / found.judged[pairs].sum()).item()

    return MatchScores(
        accuracy=100 * found.accuracy.item(),
        chance=100 * found.chance.item(),
        mutual=100 * found.mutual_rate.item(),
        entropy=100 * found.entropy.item(),
        small_overlap=accuracy(overlap < OVERLAP),
        large_overlap=accuracy(overlap >= OVERLAP),
        same_scale=accuracy(magnification < MAGNIFICATION),
        other_scale=accuracy(magnification >= MAGNIFICATION),
    )


def overlaps(query: Views, key: Views) -> Float[Tensor, "batch"]:
    """Fraction of the smaller crop that both views show."""
    least, most = torch.maximum(query.box, key.box), torch.minimum(query.box, key.box)
    shared = (most[:, 2:] - least[:, :2]).clamp(min=0).prod(dim=1)
    return shared / torch.minimum(_area(query), _area(key))


def magnifications(query: Views, key: Views) -> Float[Tensor, "batch"]:
    """How many times as large one view shows things as the other: the root of the ratio of the areas, at least 1."""
    areas = torch.stack([_area(query), _area(key)])
    return (areas.amax(dim=0) / areas.amin(dim=0)).sqrt()


def _area(views: Views) -> Float[Tensor, "batch"]:
    return (views.box[:, 2:] - views.box[:, :2]).prod(dim=1)
