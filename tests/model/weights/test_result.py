from __future__ import annotations

import json
import math
import struct
from pathlib import Path
from typing import Any

import pytest
import safetensors
import safetensors.torch
import timm
import torch
import torchvision
from torch import nn

from densecl.errors import UserError
from densecl.model.backbone import Backbone, create_backbone
from densecl.model.weights import initialize_from, load_backbone, read_metadata, save_backbone
from densecl.normalization import Normalization

NORMALIZATION = Normalization((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))


def test_file_loads_into_timm_and_torchvision_with_every_key(tmp_path):
    backbone = create_backbone("resnet18", output_stride=16)
    save_backbone(backbone, tmp_path / "backbone.safetensors", NORMALIZATION)
    state = safetensors.torch.load_file(tmp_path / "backbone.safetensors")
    timm.create_model("resnet18", num_classes=0).load_state_dict(state)
    missing, unexpected = torchvision.models.resnet18().load_state_dict(state, strict=False)
    assert set(missing) == {"fc.weight", "fc.bias"} and not unexpected
    assert [path.name for path in tmp_path.iterdir()] == ["backbone.safetensors"]


@pytest.mark.parametrize(("name", "stride"), [("resnet18", 16), ("vit_tiny_patch16_224", None)])
def test_the_file_alone_is_enough_to_load_it(tmp_path, name, stride):
    backbone = create_backbone(name, channels=4, output_stride=stride)
    of_four = Normalization((0.1, 0.2, 0.3, 0.4), (0.4, 0.5, 0.6, 0.7))
    save_backbone(backbone, tmp_path / "backbone.safetensors", of_four)
    for place in (tmp_path, tmp_path / "backbone.safetensors"):
        loaded, normalization = load_backbone(place)
        assert normalization == of_four
        pixels = torch.randn(1, 4, 96, 96)
        assert torch.equal(loaded.eval()(pixels), backbone.eval()(pixels))


def test_a_module_of_ones_own_is_loaded_into_an_instance(tmp_path):
    module = nn.Conv2d(3, 5, 4, stride=4)
    save_backbone(Backbone(module), tmp_path / "backbone.safetensors", NORMALIZATION)
    loaded, _ = load_backbone(tmp_path, nn.Conv2d(3, 5, 4, stride=4))
    assert torch.equal(loaded.model.weight, module.weight)
    with pytest.raises(UserError, match="does not fit"):
        load_backbone(tmp_path, nn.Conv2d(3, 6, 4, stride=4))


@pytest.mark.parametrize("wrap", [torch.compile, nn.DataParallel, lambda one: torch.compile(nn.DataParallel(one))])
def test_what_is_wrapped_around_a_module_is_not_in_the_file(tmp_path: Path, wrap) -> None:
    module = nn.Conv2d(3, 5, 4, stride=4)
    backbone = Backbone(nn.Identity())
    backbone.model = wrap(module)  # without the compiler, which takes its time
    save_backbone(backbone, tmp_path / "backbone.safetensors", NORMALIZATION)
    nn.Conv2d(3, 5, 4, stride=4).load_state_dict(safetensors.torch.load_file(tmp_path / "backbone.safetensors"))


def test_a_file_is_loaded_into_a_wrapped_module(tmp_path: Path) -> None:
    module = nn.Conv2d(3, 5, 4, stride=4)
    backbone = Backbone(nn.DataParallel(module))
    assert backbone.name == "Conv2d"
    save_backbone(backbone, tmp_path / "backbone.safetensors", NORMALIZATION)
    loaded, _ = load_backbone(tmp_path, nn.DataParallel(nn.Conv2d(3, 5, 4, stride=4)))
    assert torch.equal(loaded.model.get_parameter("module.weight"), module.weight)


def test_what_is_not_there_is_said_with_what_to_take(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints/last.ckpt").touch()
    with pytest.raises(UserError, match="has no backbone.safetensors yet. End it with resume=True, or start another"):
        load_backbone(tmp_path)


def test_files_that_are_not_ours_are_told_apart(tmp_path):
    with pytest.raises(UserError, match="no such file"):
        load_backbone(tmp_path)
    safetensors.torch.save_file({"weight": torch.zeros(2)}, tmp_path / "other.safetensors")
    with pytest.raises(UserError, match="does not say what it holds"):
        load_backbone(tmp_path / "other.safetensors")
    (tmp_path / "text.safetensors").write_text("hello")
    with pytest.raises(UserError, match="cannot be read as weights"):
        load_backbone(tmp_path / "text.safetensors")


def test_metadata_is_readable_without_densecl(tmp_path):
    save_backbone(create_backbone("resnet18", output_stride=16), tmp_path / "b.safetensors", NORMALIZATION)
    with safetensors.safe_open(tmp_path / "b.safetensors", framework="pt") as file:
        metadata = file.metadata()
    assert metadata["architecture"] == "resnet18"
    assert json.loads(metadata["mean"]) == [0.1, 0.2, 0.3] and json.loads(metadata["std"]) == [0.4, 0.5, 0.6]


def test_where_weights_come_from(tmp_path: Path) -> None:
    path, backbone = tmp_path / "b.safetensors", create_backbone("test_resnet")
    save_backbone(backbone, path, NORMALIZATION)
    metadata = read_metadata(path)
    assert metadata is not None and metadata.provenance == {}  # as a file of an older version
    save_backbone(backbone, path, NORMALIZATION, {"method": "moco", "steps": "7", "something": "else"})
    metadata = read_metadata(path)
    assert metadata is not None and metadata.provenance == {"method": "moco", "steps": "7"}


def test_the_same_weights_give_the_same_bytes(tmp_path: Path) -> None:
    backbone = create_backbone("test_resnet")
    for number in range(6):
        save_backbone(backbone, tmp_path / f"{number}.safetensors", NORMALIZATION)
    contents = {path.read_bytes() for path in tmp_path.iterdir()}
    (content,) = contents
    (size,) = struct.unpack("<Q", content[:8])
    assert size % 8 == 0 and list(json.loads(content[8 : 8 + size])["__metadata__"]) == [
        "architecture",
        "format",
        "in_channels",
        "mean",
        "output_stride",
        "std",
    ]


def test_names_of_any_script_are_written(tmp_path: Path) -> None:
    module = nn.Sequential()
    module.add_module('größe"\\\x07漢', nn.Conv2d(3, 5, 4, stride=4))
    save_backbone(Backbone(module, name="Größe \x1b"), tmp_path / "b.safetensors", NORMALIZATION)
    assert safetensors.torch.load_file(tmp_path / "b.safetensors").keys() == module.state_dict().keys()
    with safetensors.safe_open(tmp_path / "b.safetensors", framework="pt") as file:
        assert file.metadata()["architecture"] == "Größe \x1b"


def test_the_callers_random_numbers_stay(tmp_path: Path) -> None:
    save_backbone(create_backbone("test_resnet"), tmp_path / "backbone.safetensors", NORMALIZATION)
    before = torch.random.get_rng_state()
    load_backbone(tmp_path)
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The tensors of a file, and what it says of itself."""
    path = tmp_path_factory.mktemp("saved") / "b.safetensors"
    save_backbone(create_backbone("test_resnet"), path, NORMALIZATION)
    with safetensors.safe_open(path, framework="pt") as file:
        return {"tensors": safetensors.torch.load_file(path), "metadata": file.metadata()}


@pytest.mark.parametrize(
    ("said", "problem"),
    [
        ({"mean": "[0.1, 0.2]"}, "mean is '.*', but must be 3 finite numbers"),
        ({"mean": "[NaN, 0, 0]"}, "mean is"),
        ({"mean": "[Infinity, 0, 0]"}, "mean is"),
        ({"mean": "[true, 0, 0]"}, "mean is"),
        ({"mean": '"abc"'}, "mean is"),
        ({"mean": "["}, "mean is"),
        ({"mean": "[" * 100_000}, "mean is"),
        ({"mean": f"[1{'0' * 400}, 0, 0]"}, "mean is"),
        ({"mean": f"[1{'0' * 5000}, 0, 0]"}, "mean is"),
        ({"mean": None}, "mean is missing"),
        ({"std": "[0, 1, 1]"}, "std is '.*', but must be 3 finite numbers above 0"),
        ({"std": "[-1, 1, 1]"}, "std is"),
        ({"in_channels": "-3"}, "in_channels is '-3', but must be a whole number from 1 to 4096"),
        ({"in_channels": "0"}, "in_channels is"),
        ({"in_channels": '"x"'}, "in_channels is"),
        ({"in_channels": "1000000000"}, "in_channels is"),
        ({"in_channels": "3.0"}, "in_channels is"),
        ({"in_channels": "true"}, "in_channels is"),
        ({"in_channels": "4"}, "mean is '.*', but must be 4 finite numbers"),
        ({"in_channels": "4", "mean": "[0, 0, 0, 0]", "std": "[1, 1, 1, 1]"}, "16x3x3x3 instead of 16x4x3x3"),
        ({"output_stride": "7"}, "output_stride is '7', but must be 8, 16, 32 or null"),
        ({"output_stride": "true"}, "output_stride is"),
        ({"output_stride": "[8]"}, "output_stride is"),
        ({"architecture": "test_vit", "output_stride": "8"}, "does not fit"),
        ({"architecture": "resnet18"}, r"does not fit resnet18: .* \(\d+ such differences\)"),
        ({"architecture": "vit_giant_patch14_224"}, "does not fit vit_giant_patch14_224"),  # 4 GB, never allocated
        ({"architecture": "test_resnet.no_such_tag"}, "which timm does not know"),
        ({"architecture": "test_resnet.a.b"}, "which timm does not know"),
        ({"architecture": "hf-hub:timm/resnet18.a1_in1k"}, "which timm does not know"),
        ({"architecture": "local-dir:/tmp"}, "which timm does not know"),
        ({"architecture": "../x"}, "which timm does not know"),
        ({"architecture": ""}, "which timm does not know"),
        ({"architecture": "\x1b[31mred\n"}, r"of a \?\[31mred\?, which timm does not know"),
        ({"architecture": None}, "does not say what it holds"),
    ],
)
def test_what_a_file_says_of_itself_is_checked(
    said: dict[str, str | None], problem: str, saved: dict[str, Any], tmp_path: Path
) -> None:
    metadata = {name: value for name, value in {**saved["metadata"], **said}.items() if value is not None}
    safetensors.torch.save_file(saved["tensors"], tmp_path / "m.safetensors", metadata)
    with pytest.raises(UserError, match=f"m.safetensors.*{problem}") as caught:
        load_backbone(tmp_path / "m.safetensors")
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 300


def test_a_tag_does_not_matter_to_the_file(saved: dict[str, Any], tmp_path: Path) -> None:
    metadata = {**saved["metadata"], "architecture": "test_resnet.r160_in1k"}
    safetensors.torch.save_file(saved["tensors"], tmp_path / "m.safetensors", metadata)
    assert load_backbone(tmp_path / "m.safetensors")[0].name == "test_resnet.r160_in1k"


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_weights_with_nan_are_refused(bad: float, tmp_path: Path) -> None:
    backbone = create_backbone("test_resnet")
    backbone.model.get_parameter("layer2.0.conv1.weight").data[0, 0, 0, 0] = bad
    save_backbone(backbone, tmp_path / "b.safetensors", NORMALIZATION)
    torch.save(backbone.model.state_dict(), tmp_path / "b.pth")
    with pytest.raises(UserError, match="b.safetensors: its tensor layer2.0.conv1.weight holds NaN or infinities"):
        load_backbone(tmp_path / "b.safetensors")
    for name in ("b.safetensors", "b.pth"):
        with pytest.raises(UserError, match=f"{name}: its tensor layer2.0.conv1.weight holds NaN or infinities"):
            initialize_from(create_backbone("test_resnet"), tmp_path / name)
