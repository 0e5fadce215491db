"""Match accuracy of a backbone on view pairs that are the same for every backbone. Needs no labels."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
from torch import nn

from densecl.augment import PhotometricSettings, augment, draw_photometrics
from densecl.errors import UserError
from densecl.evaluation.frozen import evaluating
from densecl.images.loader import CropPairDataset, collate
from densecl.images.sources import ImageSource
from densecl.model.correspondence import Correspondence, correspondence
from densecl.views import Views


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

    Crops, flips and colours are drawn as for training with the paper's settings: if the colours were left
    alone, matching by colour would do, and an untrained network would look good. They are held in memory:
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
    return augment(batch.pairs.first, mean, std), augment(batch.pairs.second, mean, std)


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
