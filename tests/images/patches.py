"""Small drawn images that need no files, and pairs of their crops."""

import numpy as np
import torch
from torch.utils._pytree import tree_leaves

from densecl.images.decode import BadImage
from densecl.images.pairs import CropPairDataset
from densecl.images.sources import ImageSource
from densecl.views import Photometrics


def draw_photometrics(rng):
    return Photometrics(
        brightness=torch.tensor(rng.random()),
        contrast=torch.tensor(1.0),
        saturation=torch.tensor(1.0),
        hue=torch.tensor(0.0),
        order=torch.arange(4),
        grayscale=torch.tensor(False),
        blur_sigma=torch.tensor(0.0),
    )


class Patches(ImageSource):
    """Small images that differ, some of which are bad, some of sixteen bits."""

    def __init__(self, size, bad=(), deep=()):
        self.size, self.bad, self.deep = size, frozenset(bad), frozenset(deep)

    def __len__(self):
        return self.size

    def name(self, index):
        return f"patch {index}"

    def fingerprint(self):
        return f"{self.size} patches"

    def read(self, index):
        if index in self.bad:
            raise BadImage(f"reason {index}")
        pixels = np.random.default_rng(index).integers(0, 256, (3, 20 + index % 3, 24), dtype=np.uint8)
        return torch.from_numpy(pixels.astype(np.uint16) * 257 if index in self.deep else pixels)


def pairs_of(source, seed=0, **settings):
    settings = {"image_size": 8, "crop_scale": (0.2, 1.0), "flip_probability": 0.5} | settings
    return CropPairDataset(source, draw_photometrics=draw_photometrics, seed=seed, **settings)


def good(sample):
    assert sample.pair is not None
    return sample.pair


def equal(first, second):
    return all(
        torch.equal(a, b) and a.dtype == b.dtype if isinstance(a, torch.Tensor) else a == b
        for a, b in zip(tree_leaves(first), tree_leaves(second), strict=True)
    )
