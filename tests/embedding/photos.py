"""Small drawn photographs, and settings with which they are embedded quickly."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

SETTINGS = {"image_size": (48, 32), "workers": 0, "batch_size": 4, "device": "cpu"}


def draw(path: Path, seed: int) -> None:
    """A soft picture of 80 + `seed` by 60 pixels."""
    pixels = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    Image.fromarray(pixels).resize((80 + seed, 60), Image.Resampling.BILINEAR).save(path)
