from __future__ import annotations

import pytest
import torch

from densecl.model import Normalisation, create_backbone, save_backbone
from densecl.training import parts


@pytest.mark.parametrize(
    ("capabilities", "bf16"),
    [
        ({"amx_bf16": True, "avx512_bf16": True}, (True, False)),
        ({"amx_bf16": False, "avx512_bf16": True}, (False, True)),  # bf16 is tried, but has to be clearly faster
        ({"avx2": True}, (False,)),
        ({}, (False,)),
    ],
)
def test_what_a_cpu_is_expected_to_be_fast_at(monkeypatch, capabilities, bf16):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities, raising=False)
    precisions, reason = parts._precisions()
    assert precisions == bf16
    assert reason.startswith("the CPU has")


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
    ("settings", "mean", "reason"),
    [
        ({}, (0.1, 0.2, 0.3), "--mean 0.1 0.2 0.3 --std 0.4 0.5 0.6 (those of the starting weights)"),
        ({"mean": (0.5, 0.5, 0.5), "std": (1, 1, 1)}, (0.5, 0.5, 0.5), None),
        ({"init": None}, parts.IMAGENET.mean, None),
    ],
)
def test_mean_and_deviation_are_those_of_the_starting_weights(tiny, tmp_path, settings, mean, reason):
    start = Normalisation((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    save_backbone(create_backbone("test_resnet"), tmp_path / "backbone.safetensors", start)
    made, reasons = parts.build(tiny(**{"init": str(tmp_path), **settings}), None, None, None)
    assert made.recipe.mean == made.normalisation.mean == mean
    assert ("mean" in made.recipe.settled) == ("mean" not in settings)
    assert [line for line in reasons if "--mean" in line] == ([reason] if reason else [])


def test_other_channels_than_the_starting_weights_are_measured(tiny, tmp_path):
    start = Normalisation((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    save_backbone(create_backbone("test_resnet"), tmp_path / "backbone.safetensors", start)
    made, reasons = parts.build(tiny(init=str(tmp_path), channels=1), None, None, None)
    assert len(made.normalisation.mean) == 1
    assert any("measured" in line for line in reasons)
    assert any("conv1.0.weight adapted to images of 1 channel(s)" in line for line in reasons)


def test_what_a_start_lacks_is_a_warning(tiny, tmp_path):
    state = create_backbone("test_resnet").model.state_dict()
    del state["layer4.0.bn1.weight"]
    torch.save(state, tmp_path / "x.pth")
    _, reasons = parts.build(tiny(init=str(tmp_path / "x.pth")), None, None, None)
    assert "warning: not in the file, and so untrained: layer4.0.bn1.weight (1 of 90 tensors)" in reasons
