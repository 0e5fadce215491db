"""How long it takes to change the colors of a batch: `densecl.augment` beside torchvision, which goes image by image.

python benchmarks/augment.py [threads]
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

import numpy as np
import torch
from torch.utils.data import default_collate
from torchvision.transforms import v2

from densecl.augment import PhotometricSettings, augment, draw_photometrics
from densecl.normalization import IMAGENET
from densecl.views import Crop

BATCH = 64
MEAN, STD = IMAGENET


def milliseconds(function: Callable[[], object], repeats: int = 7) -> float:
    """Time of the quickest of some calls; the first call only warms up."""
    times = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return 1000 * min(times[1:])


def random_crops(size: int) -> Crop:
    """Crops of noise that await the paper's colors and blur."""
    rng = np.random.default_rng(0)
    settings = PhotometricSettings.for_image_size(size)
    pixels = torch.from_numpy(rng.integers(0, 256, (BATCH, 3, size, size), dtype=np.uint8))
    photometrics = default_collate([draw_photometrics(rng, settings) for _ in range(BATCH)])
    return Crop(pixels, torch.zeros(BATCH, 4), torch.zeros(BATCH, dtype=torch.bool), photometrics)


def torchvision_pipeline(size: int) -> v2.Compose:
    """The paper's colors and blur, as users of torchvision write them."""
    return v2.Compose(
        [
            v2.RandomApply([v2.ColorJitter(0.4, 0.4, 0.4, 0.1)], p=0.8),
            v2.RandomGrayscale(p=0.2),
            v2.RandomApply([v2.GaussianBlur(size // 20 * 2 + 1, (0.1 * size / 224, 2.0 * size / 224))], p=0.5),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(MEAN, STD),
        ]
    )


def main() -> None:
    torch.set_num_threads(int(sys.argv[1]) if len(sys.argv) > 1 else 2)
    rng, settings = np.random.default_rng(0), PhotometricSettings()
    draws = milliseconds(lambda: [draw_photometrics(rng, settings) for _ in range(1000)])
    print(f"draw_photometrics: {draws:.0f} us a view; {torch.get_num_threads()} threads, batch {BATCH}")
    for size in (96, 224):
        crop, pipeline = random_crops(size), torchvision_pipeline(size)
        ours = milliseconds(lambda crop=crop: augment(crop, MEAN, STD))
        theirs = milliseconds(lambda crop=crop, pipeline=pipeline: [pipeline(image) for image in crop.pixels])
        print(f"{size} px: densecl {ours:.0f} ms, torchvision {theirs:.0f} ms")


if __name__ == "__main__":
    main()
