"""A folder of small images and the settings of a run that takes a second or two."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from densecl.config.compose import make_recipe
from densecl.config.recipe import Recipe


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 images of smooth random colors: neighboring places look alike, far ones do not."""
    folder = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    for number in range(24):
        coarse = Image.fromarray(rng.integers(0, 256, (6, 6, 3), dtype=np.uint8))
        coarse.resize((72, 64), Image.Resampling.BICUBIC).save(folder / f"{number:02}.png")
    return folder


def _write_labeled(folder: Path, split: str, pictures: list[np.ndarray], labels: list[np.ndarray]) -> None:
    for kind, arrays in (("images", pictures), ("labels", labels)):
        (folder / kind / split).mkdir(parents=True)
        for number, array in enumerate(arrays):
            Image.fromarray(array).save(folder / kind / split / f"{number}.png")


@pytest.fixture(scope="session")
def labeled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four images of smooth colors to learn from and four to score on. Where there is more red than blue is class 1."""
    folder = tmp_path_factory.mktemp("labeled")
    rng = np.random.default_rng(1)
    for split in ("train", "val"):
        coarse = [Image.fromarray(rng.integers(0, 256, (4, 4, 3), dtype=np.uint8)) for _ in range(4)]
        pictures = [np.array(one.resize((64, 48), Image.Resampling.BICUBIC)) for one in coarse]
        _write_labeled(folder, split, pictures, [(one[:, :, 0] > one[:, :, 2]).astype(np.uint8) for one in pictures])
    return folder


@pytest.fixture(scope="session")
def easily_labeled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images of one color each, which is their class. Any network tells them apart: retrieval is always right."""
    folder = tmp_path_factory.mktemp("easily")
    for split in ("train", "val"):
        pictures = [np.full((48, 48, 3), color, dtype=np.uint8) for color in ((250, 20, 0), (0, 30, 240))]
        _write_labeled(folder, split, pictures, [np.full((48, 48), label, dtype=np.uint8) for label in (0, 1)])
    return folder


@pytest.fixture
def tiny(photos: Path):
    """Makes a recipe of a tiny run; settings beat the defaults given here."""

    def make(**settings: Any) -> Recipe:
        defaults: dict[str, Any] = {
            "data": str(photos),
            "backbone": "test_resnet",
            "image_size": 32,
            "output_stride": 8,
            "batch_size": 4,
            "dim": 16,
            "method": "moco",
            "queue_length": 16,
            "matching": "features",
            "dense_negatives": "pooled",
            "key_momentum": 0.99,
            "optimizer": "sgd",
            "learning_rate": 0.05,
            "warmup_epochs": 0.0,
            "precision": "32",
            "channels_last": False,
            "workers": 0,
            "log_every": 1,
            "loggers": (),
        }
        if not settings.keys() & {"epochs", "steps", "time_limit"}:
            defaults["steps"] = 3
        return make_recipe(**{**defaults, **settings})

    return make
