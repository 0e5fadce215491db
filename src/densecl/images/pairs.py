"""Two random crops of an image. They depend on (seed, epoch, index) alone, so the number of workers changes nothing."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.utils.data import Dataset

from densecl.images.crops import areas_of_use, draw_crop, draw_crop_of_use, take_crop
from densecl.images.decode import BadImage
from densecl.images.maps import KeptMaps, cells_of_view
from densecl.images.sources import ImageSource
from densecl.images.streams import random_stream
from densecl.views import Crop, CropPair, Photometrics

#: Replacements tried for one bad image. If 5 % of the images are bad, all 16 are bad once in 10^21 samples.
ATTEMPTS = 16


#: Stands for a view that nobody needs.
NO_CROP = Crop(
    torch.zeros(1, 1, 1, dtype=torch.uint8),
    torch.zeros(4),
    torch.tensor(False),
    Photometrics(
        brightness=torch.tensor(1.0),
        contrast=torch.tensor(1.0),
        saturation=torch.tensor(1.0),
        hue=torch.tensor(0.0),
        order=torch.arange(4),
        grayscale=torch.tensor(False),
        blur_sigma=torch.tensor(0.0),
    ),
)


class BadRecord(NamedTuple):
    """An image that could not be used."""

    name: str
    reason: str
    attempt: int  # 0 for the image that was asked for, n for its nth replacement


class Sample(NamedTuple):
    """Two views of one image, and the bad images that were tried before it."""

    pair: CropPair | None  # None: no replacement could be used either
    bad: tuple[BadRecord, ...]


class LocalCrops(NamedTuple):
    """The local crops of multi-crop: how many, their side in pixels, their area, and their colors."""

    count: int
    image_size: int
    crop_scale: tuple[float, float]
    draw_photometrics: Callable[[np.random.Generator], Photometrics]


class Taught(NamedTuple):
    """A teacher's kept maps, and the rows and columns that its cells of a view shall have."""

    maps: KeptMaps
    grid: tuple[int, int]


class CropPairDataset(Dataset[Sample]):
    """Two random crops of each image, which is decoded once. Items are asked for by (epoch, index).

    Args:
        source: the images.
        image_size: side of a view in pixels.
        crop_scale: fraction of the image's area that a crop covers, smallest and largest.
        flip_probability: fraction of views mirrored left to right.
        draw_photometrics: draws the color changes of a view, which are applied later. Where workers are spawned
            rather than forked it must be picklable: `functools.partial`, not a lambda.
        seed: with epoch and index, fixes the sample.
        local_crops: further local crops of each image. They are drawn last, so the pair is the same without them.
        use_size: the longer side at which a network will see the image. All crops then show things about that large,
            and only the spread of `crop_scale` counts (`areas_of_use`). None: crops are fractions of the image.
        single: draw the first view alone; the second is `NO_CROP`.
        taught: give the first view's cells of a teacher's map, too. An image without a map counts as bad.
    """

    def __init__(
        self,
        source: ImageSource,
        *,
        image_size: int,
        crop_scale: tuple[float, float],
        flip_probability: float,
        draw_photometrics: Callable[[np.random.Generator], Photometrics],
        seed: int,
        local_crops: LocalCrops | None = None,
        use_size: int | None = None,
        single: bool = False,
        taught: Taught | None = None,
    ) -> None:
        self.source = source
        self.image_size = image_size
        self.crop_scale = crop_scale
        self.flip_probability = flip_probability
        self.draw_photometrics = draw_photometrics
        self.seed = seed
        self.local_crops = local_crops
        self.use_size = use_size
        self.single = single
        self.taught = taught
        #: Called with an image's index before it is read, and with None afterwards.
        self.on_read: Callable[[int | None], None] = _ignore

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, place: tuple[int, int]) -> Sample:
        epoch, index = place
        bad = []
        used = index
        for attempt in range(ATTEMPTS + 1):
            if attempt > 0:
                used = int(random_stream(self.seed, epoch, index, attempt).integers(len(self.source)))
            self.on_read(used)
            try:
                image = self.source.read(used)
                features = () if self.taught is None else (self.taught.maps.read(used),)
            except BadImage as error:
                bad.append(BadRecord(self.source.name(used), str(error), attempt))
                continue
            finally:
                self.on_read(None)
            rng = random_stream(self.seed, epoch, index)
            large = self.image_size, self.crop_scale, self.draw_photometrics
            first = self._view(image, rng, *large)
            second = NO_CROP if self.single else self._view(image, rng, *large)
            local = ()
            if self.local_crops is not None:
                count, size, scale, draw = self.local_crops
                local = tuple(self._view(image, rng, size, scale, draw) for _ in range(count))
            taught = tuple(self._cells(one, first, image) for one in features)
            return Sample(CropPair(first, second, torch.tensor(used), local, taught), tuple(bad))
        return Sample(None, tuple(bad))

    def _view(
        self,
        image: torch.Tensor,
        rng: np.random.Generator,
        size: int,
        scale: tuple[float, float],
        draw_photometrics: Callable[[np.random.Generator], Photometrics],
    ) -> Crop:
        height, width = image.shape[1:]
        if self.use_size is None:
            box = draw_crop(rng, height, width, scale)
        else:
            box = draw_crop_of_use(rng, height, width, areas_of_use(height, width, size, scale, self.use_size))
        flipped = bool(rng.random() < self.flip_probability)
        pixels = take_crop(image, box, flipped, size)
        return Crop(pixels, box, torch.tensor(flipped), draw_photometrics(rng))

    def _cells(self, features: Tensor, view: Crop, image: Tensor) -> Float[Tensor, "dim rows cols"]:
        assert self.taught is not None
        return cells_of_view(features, view.box, bool(view.flipped), image.shape[1:], self.taught.grid)


def _ignore(index: int | None) -> None:
    pass
