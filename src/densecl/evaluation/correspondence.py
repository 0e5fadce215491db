"""Match accuracy of a backbone on view pairs that are the same for every backbone. Needs no labels."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from densecl.augment import PhotometricSettings, augment, draw_photometrics
from densecl.borrowed import evaluating
from densecl.errors import UserError
from densecl.images.batch import collate
from densecl.images.pairs import CropPairDataset
from densecl.images.sources import ImageSource
from densecl.model.correspondence import Correspondence, correspondence
from densecl.normalization import Normalization
from densecl.views import Views

#: What parts the pairs of views: the share of the smaller crop that the other covers, and how many times as long the
#: sides of the larger one are.
OVERLAP = 0.5
MAGNIFICATION = 1.5


class MatchScores(NamedTuple):
    """How well cells find their place in another view, in percent."""

    accuracy: float  # of matches that can be judged
    chance: float  # what guessing would score
    mutual: float  # share of cells that are their match's match
    entropy: float  # of the matches: 100 = all key cells are used alike, near 0 = collapse
    small_overlap: (
        float  # accuracy on pairs of views that share less than half of the smaller one; nan if there are none
    )
    large_overlap: float
    same_scale: float  # accuracy on pairs that show things at nearly the same size
    other_scale: float  # ... and at sizes that differ by half or more


def fixed_view_pairs(
    source: ImageSource,
    *,
    image_size: int,
    mean: Sequence[float],
    std: Sequence[float],
    count: int = 256,
    crop_scale: tuple[float, float] = (0.2, 1.0),
    seed: int = 0,
) -> tuple[Views, Views]:
    """Query and key views of `count` images spread over the source, fixed by `seed`.

    Crops, flips and colors are drawn as for training with the paper's settings: if the colors were left
    alone, matching by color would do, and an untrained network would look good. They are held in memory:
    24 image_size^2 count bytes in all for RGB.

    Raises:
        UserError: an image cannot be used. (Another in its place would make the pairs depend on the machine.)
    """
    channels = len(mean)
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
    normalization = Normalization(tuple(mean), tuple(std))
    return augment(batch.pairs.first, normalization), augment(batch.pairs.second, normalization)


def backbone_correspondence(
    backbone: nn.Module, query: Views, key: Views, *, radius: float = 0.7, batch_size: int = 32
) -> Correspondence:
    """`model.correspondence` of a backbone's feature maps, in evaluation mode and without gradient.

    Args:
        backbone: any module that returns a feature map "batch channels rows cols"; left as it was.
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
    """`backbone_correspondence` in numbers. The arguments are its own."""
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
    """Share of the smaller crop that both views show."""
    least, most = torch.maximum(query.box, key.box), torch.minimum(query.box, key.box)
    shared = (most[:, 2:] - least[:, :2]).clamp(min=0).prod(dim=1)
    return shared / torch.minimum(_area(query), _area(key))


def magnifications(query: Views, key: Views) -> Float[Tensor, "batch"]:
    """How many times as large one view shows things as the other, at least 1: the root of the ratio of areas."""
    areas = torch.stack([_area(query), _area(key)])
    return (areas.amax(dim=0) / areas.amin(dim=0)).sqrt()


def _area(views: Views) -> Float[Tensor, "batch"]:
    return (views.box[:, 2:] - views.box[:, :2]).prod(dim=1)
