from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from densecl.images.scenes import CLASSES, HIDDEN, Scenes, draw_scene, write_scenes
from densecl.images.sources import open_source


def test_a_scene_depends_on_seed_split_and_index_alone() -> None:
    first = draw_scene("train", 3, size=48, seed=5)
    np.random.default_rng(0).random(100)
    torch.manual_seed(1)
    again = Scenes("train", size=48, seed=5, count=4).scene(3)
    assert all(torch.equal(one, other) for one, other in zip(first, again, strict=True))
    for other in (
        draw_scene("test", 3, size=48, seed=5),
        draw_scene("train", 4, size=48, seed=5),
        draw_scene("train", 3, size=48, seed=6),
    ):
        assert (first.labels != other.labels).float().mean() > 0.1


def test_a_scene_looks_the_same_at_every_size() -> None:
    small, large = draw_scene("train", 0, size=64), draw_scene("train", 0, size=128)
    assert (small.labels == large.labels[1::2, 1::2]).float().mean() > 0.97
    assert (small.boxes[:, :4] - large.boxes[:, :4] / 2).abs().max() <= 1.5


def test_boxes_bound_what_is_labelled() -> None:
    for index in range(30):
        scene = draw_scene("train", index, size=64)
        assert scene.image.dtype == torch.uint8 and scene.image.shape == (3, 64, 64)
        covered = torch.zeros(64, 64, dtype=torch.bool)
        for x0, y0, x1, y1, label in scene.boxes.tolist():
            inside = scene.labels[y0:y1, x0:x1] == label
            # The box is tight: every edge touches the class.
            assert inside[0].any() and inside[-1].any() and inside[:, 0].any() and inside[:, -1].any()
            covered[y0:y1, x0:x1] = True
        # What has no box is small: mostly hidden objects.
        left_out = ((scene.labels > 0) & ~covered).sum()
        assert left_out <= HIDDEN * np.pi * (1.45 * 0.3 * 64) ** 2


def test_every_class_occurs_about_equally_often_among_the_objects() -> None:
    labels = torch.cat([draw_scene("train", index, size=24).boxes[:, 4] for index in range(300)])
    shares = torch.bincount(labels, minlength=len(CLASSES))[1:] / len(labels)
    assert labels.min() >= 1 and len(shares) == len(CLASSES) - 1
    assert (shares * len(shares) - 1).abs().max() < 0.35


def test_the_mean_color_of_objects_says_nothing_about_their_class() -> None:
    scenes = [draw_scene("train", index, size=32) for index in range(400)]
    pixels = torch.cat([scene.image.flatten(1).T for scene in scenes]).double()
    labels = torch.cat([scene.labels.flatten() for scene in scenes]).long()
    pixels = (pixels - pixels.mean(dim=0)) / pixels.std(dim=0)
    # Linear regression of the one-hot class on the color: how much of its variance does the color explain?
    design = torch.cat([pixels, torch.ones(len(pixels), 1)], dim=1)
    target = torch.nn.functional.one_hot(labels, len(CLASSES)).double()
    residual = target - design @ torch.linalg.lstsq(design, target).solution
    explained = 1 - residual.var(dim=0) / target.var(dim=0)
    assert explained.max() < 0.01


def test_scenes_are_a_data_set_of_images() -> None:
    scenes = Scenes("test", size=32, count=3)
    source = open_source(scenes)
    assert len(source) == 3
    assert torch.equal(source.read(2), scenes.image(2)) and torch.equal(scenes[2], scenes.image(2))
    assert torch.equal(scenes.labels(1), scenes.scene(1).labels) and torch.equal(scenes.boxes(1), scenes.scene(1).boxes)
    with pytest.raises(IndexError, match="3 of 3"):
        scenes[3]


def test_written_scenes_are_the_drawn_ones(tmp_path: Path) -> None:
    write_scenes(tmp_path, "train", size=24, seed=2, count=3)
    names = ["00000.png", "00001.png", "00002.png"]
    assert sorted(path.name for path in (tmp_path / "images").iterdir()) == names
    assert sorted(path.name for path in (tmp_path / "labels").iterdir()) == names
    scene = draw_scene("train", 1, size=24, seed=2)
    assert torch.equal(torch.from_numpy(np.array(Image.open(tmp_path / "labels" / names[1]))), scene.labels)
    assert torch.equal(open_source(tmp_path / "images").read(1), scene.image)
