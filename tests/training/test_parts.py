from __future__ import annotations

import shutil

import pytest
import torch
from PIL import Image
from torch.utils.data import Subset

from densecl.errors import UserError
from densecl.model import create_backbone, save_backbone
from densecl.normalization import Normalization
from densecl.recipe import make_recipe
from densecl.training import parts


def test_images_are_read_at_the_same_scale_when_the_size_of_small_views_is_read_back(tiny, monkeypatch):
    asked = []
    open_source = parts.open_source

    def note(*arguments, least_side, **others):
        asked.append(least_side)
        return open_source(*arguments, least_side=least_side, **others)

    monkeypatch.setattr(parts, "open_source", note)
    recipe = tiny(image_size=48, output_stride=16, local_crops=1)
    made, _ = parts.build(recipe, None, None, None)
    assert made.recipe.local_crop_size == 64  # not the 21 pixels of three sevenths
    parts.build(made.recipe, None, None, None)
    assert asked[0] == asked[1]


@pytest.mark.parametrize(
    ("fast", "gpu", "given", "precision", "channels_last"),
    [
        (True, False, {}, "bf16", True),
        (False, False, {}, "32", False),
        (False, True, {}, "32", True),
        (True, False, {"precision": "32"}, "32", False),
        (False, False, {"precision": "bf16"}, "bf16", True),
        (True, False, {"channels_last": False}, "bf16", False),
    ],
)
@pytest.mark.parametrize("devices", [1, 2])
def test_precision_and_layout_follow_the_processor(
    tiny, monkeypatch, devices: int, fast: bool, gpu: bool, given: dict, precision: str, channels_last: bool
) -> None:
    monkeypatch.setattr(parts, "fast_in_bf16", lambda: (fast, "so it is"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    recipe = tiny(**{"precision": "auto", "channels_last": "auto", "devices": devices, **given})
    made, reasons = parts.build(recipe, None, None, None)
    assert (made.recipe.precision, made.recipe.channels_last) == (precision, channels_last)
    assert (f"--precision {precision} (so it is)" in reasons) == ("precision" not in given)


@pytest.mark.parametrize(
    ("given", "key_norm"),
    [
        ({}, "split"),
        ({"devices": 2}, "shuffle"),
        ({"accumulate": 2}, "shuffle"),  # four images at a time need no splitting
        ({"key_norm": "shuffle"}, "shuffle"),
        ({"backbone": "test_vit", "output_stride": None}, "auto"),  # no batch norm
        ({"recipe": "auto"}, "shuffle"),
    ],
)
def test_on_one_device_the_papers_keys_see_the_papers_number_of_images(photos, given: dict, key_norm: str) -> None:
    settings = {"recipe": "paper", "backbone": "test_resnet", "image_size": 32, "output_stride": 8, "batch_size": 8}
    settings |= {"key_split": 4, "queue_length": 16, "dim": 8, "workers": 0, "steps": 1}
    made, reasons = parts.build(make_recipe(data=str(photos), **{**settings, **given}), None, None, None)
    assert made.recipe.key_norm == key_norm
    assert made.recipe.precision == "32" or given.get("recipe") == "auto"
    assert any("--key-norm split (into 4 images" in reason for reason in reasons) == (key_norm == "split")
    if key_norm == "split":
        assert not any("key-split does nothing" in reason for reason in reasons)
    parts.build(made.recipe, None, None, None)  # which may be read back


@pytest.mark.parametrize(
    ("settings", "mean", "reason"),
    [
        ({}, (0.1, 0.2, 0.3), "--mean 0.1 0.2 0.3 --std 0.4 0.5 0.6 (those of the starting weights)"),
        ({"mean": (0.5, 0.5, 0.5), "std": (1, 1, 1)}, (0.5, 0.5, 0.5), None),
        ({"init": None}, parts.IMAGENET.mean, None),
    ],
)
def test_mean_and_deviation_are_those_of_the_starting_weights(tiny, tmp_path, settings, mean, reason):
    start = Normalization((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    save_backbone(create_backbone("test_resnet"), tmp_path / "backbone.safetensors", start)
    made, reasons = parts.build(tiny(**{"init": str(tmp_path), **settings}), None, None, None)
    assert made.recipe.mean == made.normalization.mean == mean
    assert ("mean" in made.recipe.settled) == ("mean" not in settings)
    assert [line for line in reasons if "--mean" in line] == ([reason] if reason else [])


def test_other_channels_than_the_starting_weights_are_measured(tiny, tmp_path):
    start = Normalization((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    save_backbone(create_backbone("test_resnet"), tmp_path / "backbone.safetensors", start)
    made, reasons = parts.build(tiny(init=str(tmp_path), channels=1), None, None, None)
    assert len(made.normalization.mean) == 1
    assert any("measured" in line for line in reasons)
    assert any("conv1.0.weight adapted to images of 1 channel(s)" in line for line in reasons)


def test_what_a_start_lacks_is_a_warning(tiny, tmp_path):
    state = create_backbone("test_resnet").model.state_dict()
    del state["layer4.0.bn1.weight"]
    torch.save(state, tmp_path / "x.pth")
    _, reasons = parts.build(tiny(init=str(tmp_path / "x.pth")), None, None, None)
    assert "warning: not in the file, and so untrained: layer4.0.bn1.weight (1 of 90 tensors)" in reasons


def test_what_is_left_out_of_the_data_is_among_what_is_told(tiny, photos, tmp_path):
    photos = shutil.copytree(photos, tmp_path / "photos")
    (photos / "IMG_0001.HEIC").touch()
    for number in range(24):
        Image.new("L", (72, 64), number % 2).save(photos / f"{number:02}_mask.png")
    made, reasons = parts.build(tiny(data=str(photos)), None, None, None)
    assert len(made.source) == 24
    assert any("left out: 1 .heic" in reason for reason in reasons)
    assert any("left out: 24 label maps (*_mask)" in reason for reason in reasons)


def test_items_that_are_no_images_are_refused_before_the_run(tiny):
    with pytest.raises(UserError, match=r"item 0 of the data set \(Subset\) is of type str, 'a.jpg'"):
        parts.build(tiny(data="dataset:Subset"), None, Subset(["a.jpg"] * 24, range(24)), None)
