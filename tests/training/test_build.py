from __future__ import annotations

import shutil

import pytest
import torch
from PIL import Image
from torch.utils.data import Subset

from densecl.config.compose import make_recipe
from densecl.config.facts import Reliance
from densecl.errors import UserError
from densecl.model import create_backbone, save_backbone
from densecl.normalization import IMAGENET, Normalization
from densecl.training import inspect
from densecl.training.build import build


def test_what_is_built_is_built_again_from_what_was_resolved(photos) -> None:
    recipe = make_recipe(
        data=str(photos), backbone="test_resnet", image_size=128, epochs=2, method="dino", local_crops=2
    )
    first, reasons = build(recipe, None, None, None)
    again, silent = build(first.recipe, None, None, None)
    assert again.recipe == first.recipe
    assert any(reason.startswith("--batch-size") for reason in reasons)
    assert not silent
    state, other = first.model.state_dict(), again.model.state_dict()
    assert all(torch.equal(state[name], other[name]) for name in state if isinstance(state[name], torch.Tensor))


@pytest.mark.parametrize(
    ("settings", "measures"),
    [
        ({}, []),
        ({"channels": 1}, ["mean"]),
        ({"channels": 1, "mean": (0.5,), "std": (0.5,)}, []),
        ({"brightness": "shift"}, ["mean"]),
        ({"brightness": "auto"}, ["offset"]),
    ],
)
def test_only_what_is_needed_is_measured(tiny, monkeypatch, settings: dict, measures: list[str]) -> None:
    measured = []
    monkeypatch.setattr(inspect, "measure_offset", lambda source: measured.append("offset") or (2.0, False))
    monkeypatch.setattr(
        inspect,
        "measure_mean_std",
        lambda source, seed: measured.append("mean") or Normalization((0.5,) * channels, (0.5,) * channels),
    )
    channels = settings.get("channels", 3)
    build(tiny(**{"brightness": "scale", **settings}), None, None, None)
    assert measured == measures


def test_what_was_found_of_the_network_and_the_machine(tiny) -> None:
    found = inspect.inspect(tiny(output_stride=8, image_size=64, local_crops=1, local_crop_size=32), None, None, None)
    network = found.facts.network
    assert (network.stride, network.grid, network.local_grid) == (8, (8, 8), (4, 4))
    assert network.batch_norm and network.batch_statistics
    assert not (network.always_batch_statistics or network.statistics_frozen or network.statistics_seen)
    assert found.facts.images == 24
    assert found.facts.machine.cores >= 1
    plain = inspect.inspect(tiny(backbone="test_vit", output_stride=None), None, None, None).facts.network
    assert not (plain.batch_norm or plain.batch_statistics)


def test_images_are_read_at_the_same_scale_when_the_size_of_small_views_is_read_back(tiny, monkeypatch):
    asked = []
    open_source = inspect.open_source

    def note(*arguments, least_side, **others):
        asked.append(least_side)
        return open_source(*arguments, least_side=least_side, **others)

    monkeypatch.setattr(inspect, "open_source", note)
    recipe = tiny(image_size=48, output_stride=16, local_crops=1)
    made, _ = build(recipe, None, None, None)
    assert made.recipe.local_crop_size == 64  # not the 21 pixels of three sevenths
    build(made.recipe, None, None, None)
    assert asked[0] == asked[1]


@pytest.mark.parametrize(
    ("settings", "mean", "reason"),
    [
        ({}, (0.1, 0.2, 0.3), "--mean 0.1 0.2 0.3 --std 0.4 0.5 0.6 (those of the starting weights)"),
        ({"mean": (0.5, 0.5, 0.5), "std": (1, 1, 1)}, (0.5, 0.5, 0.5), None),
        ({"init": None}, IMAGENET.mean, None),
    ],
)
def test_mean_and_deviation_are_those_of_the_starting_weights(tiny, tmp_path, settings, mean, reason):
    start = Normalization((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    save_backbone(create_backbone("test_resnet"), tmp_path / "backbone.safetensors", start)
    made, reasons = build(tiny(**{"init": str(tmp_path), **settings}), None, None, None)
    assert made.recipe.mean == made.normalization.mean == mean
    assert ("mean" in made.recipe.settled) == ("mean" not in settings)
    assert [line for line in reasons if "--mean" in line] == ([reason] if reason else [])


@pytest.mark.parametrize(
    ("settings", "looks"),
    [
        ({}, True),
        ({"init": None}, False),
        ({"jitter": (0, 0, 0, 0)}, True),
        ({"jitter": (0, 0, 0, 0), "grayscale_probability": 0.5}, False),
        ({"channels": 1}, False),
    ],
)
def test_what_the_start_relies_on_is_looked_at_where_a_rule_asks(tiny, tmp_path, monkeypatch, settings, looks):
    looked = []
    monkeypatch.setattr(
        inspect, "measure_reliance", lambda *given: looked.append(given) or Reliance(color=0.5, light=0.1)
    )
    save_backbone(create_backbone("test_resnet"), tmp_path / "backbone.safetensors", IMAGENET)
    made, _ = build(tiny(**{"init": str(tmp_path), **settings}), None, None, None)
    assert [given[2:] for given in looked] == ([(IMAGENET, 128)] if looks else [])
    assert (made.recipe.jitter == (0.4, 0.4, 0, 0)) == (looks and "jitter" not in settings)
    build(made.recipe, None, None, None)
    assert len(looked) == looks  # what was resolved is not looked at again


def test_other_channels_than_the_starting_weights_are_measured(tiny, tmp_path):
    start = Normalization((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    save_backbone(create_backbone("test_resnet"), tmp_path / "backbone.safetensors", start)
    made, reasons = build(tiny(init=str(tmp_path), channels=1), None, None, None)
    assert len(made.normalization.mean) == 1
    assert any("measured" in line for line in reasons)
    assert any("conv1.0.weight adapted to images of 1 channel" in line for line in reasons)


def test_what_a_start_lacks_is_a_warning(tiny, tmp_path):
    state = create_backbone("test_resnet").model.state_dict()
    del state["layer4.0.bn1.weight"]
    torch.save(state, tmp_path / "x.pth")
    _, reasons = build(tiny(init=str(tmp_path / "x.pth")), None, None, None)
    assert "warning: not in the file, and so untrained: layer4.0.bn1.weight (1 of 90 tensors)" in reasons


def test_what_is_left_out_of_the_data_is_among_what_is_told(tiny, photos, tmp_path):
    photos = shutil.copytree(photos, tmp_path / "photos")
    (photos / "IMG_0001.HEIC").touch()
    for number in range(24):
        Image.new("L", (72, 64), number % 2).save(photos / f"{number:02}_mask.png")
    made, reasons = build(tiny(data=str(photos)), None, None, None)
    assert len(made.source) == 24
    assert any("left out: 1 .heic" in reason for reason in reasons)
    assert any("left out: 24 label maps (*_mask)" in reason for reason in reasons)


def test_items_that_are_no_images_are_refused_before_the_run(tiny):
    with pytest.raises(UserError, match=r"item 0 of the data set \(Subset\) is of type str, 'a.jpg'"):
        build(tiny(data="dataset:Subset"), None, Subset(["a.jpg"] * 24, range(24)), None)


def test_how_large_views_show_things_is_measured(tiny) -> None:
    scale = inspect.inspect(tiny(image_size=32), None, None, None).facts.pixels.scale
    assert scale is not None and scale.use is None
    assert scale.smallest < scale.mean < scale.largest == pytest.approx(32 / (0.2 * 64 * 72) ** 0.5)
    scale = inspect.inspect(tiny(image_size=32, use_size=54), None, None, None).facts.pixels.scale
    assert scale is not None and scale.use == 0.75 and scale.mean == pytest.approx(0.75, rel=0.01)


def test_what_was_found_of_the_stages_of_the_dense_loss(tiny) -> None:
    asked = tiny(output_stride=None, image_size=64, dense_stage=(-3, 3), local_crops=1, local_crop_size=32)
    network = inspect.inspect(asked, None, None, None).facts.network
    assert [(stage.number, stage.grid) for stage in network.stages] == [(2, (8, 8)), (3, (4, 4))]
    assert network.stages[0].receptive_field < network.stages[1].receptive_field < 167
    assert (network.grid, network.local_grid) == ((4, 4), (2, 2))
    with pytest.raises(UserError, match="test_resnet has the stages 1 to 4"):
        inspect.inspect(tiny(dense_stage=(7,)), None, None, None)
