from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image

import densecl.evaluation.detector
from densecl.evaluation.fine_tuning import Descent
from densecl.finetuning.run import TunedRun, finetune
from densecl.images.scenes import Scenes
from densecl.model.backbone import create_backbone
from densecl.model.weights import save_backbone
from densecl.normalization import Normalization
from tests.evaluation.squares import write_coco


class Killed(BaseException):
    """Nothing runs after it that would not run after kill -9, because nothing catches it and no file is open."""


@pytest.fixture(scope="session")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny backbone as pretrain leaves it."""
    path = tmp_path_factory.mktemp("weights") / "backbone.safetensors"
    with torch.random.fork_rng():
        torch.manual_seed(0)
        save_backbone(
            create_backbone("resnet10t"), path, Normalization((0.5,) * 3, (0.25,) * 3), {"teacher_license": "mine"}
        )
    return path


@pytest.fixture(scope="session")
def squares(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Boxes in COCO's layout."""
    folder = tmp_path_factory.mktemp("squares")
    write_coco(folder)
    return folder


@pytest.fixture(scope="session")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Label maps, in folders."""
    folder = tmp_path_factory.mktemp("scenes")
    for split, count in (("train", 4), ("val", 2)):
        drawn = Scenes("train" if split == "train" else "test", size=48, count=count)
        for kind in ("images", "labels"):
            (folder / kind / split).mkdir(parents=True)
        for index in range(count):
            scene = drawn.scene(index)
            Image.fromarray(scene.image.permute(1, 2, 0).numpy()).save(folder / f"images/{split}/{index}.png")
            Image.fromarray(scene.labels.numpy()).save(folder / f"labels/{split}/{index}.png")
    return folder


@pytest.fixture(autouse=True)
def small_head(monkeypatch: pytest.MonkeyPatch) -> None:
    """A tenth of the time."""
    for name, value in {"PYRAMID_CHANNELS": 16, "HEAD_CHANNELS": 32, "SAMPLED_PROPOSALS": 16, "PROPOSALS": 20}.items():
        monkeypatch.setattr(densecl.evaluation.detector, name, value)


@pytest.fixture
def killed(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Makes the next run end in the midst of a step, counted from 0, as a killed process does."""

    def at(when: int) -> None:
        step = Descent.step

        def hook(self: Descent) -> torch.Tensor:
            if self.done == when:
                monkeypatch.setattr(Descent, "step", step)
                raise Killed
            return step(self)

        monkeypatch.setattr(Descent, "step", hook)

    return at


@pytest.fixture(scope="session")
def tune() -> Callable[..., TunedRun]:
    """`finetune` with small settings."""
    return functools.partial(finetune, image_size=(64, 64), steps=5, batch_size=2, learning_rate=1e-3)
