"""torchvision's ResNets and detectors, really loaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torchvision
from safetensors.torch import load_file
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone

import densecl
from densecl.errors import UserError
from densecl.exports import targets
from densecl.exports.targets import torchvision_detection
from densecl.exports.targets.torchvision import RESNETS, _dilation, _layers
from densecl.model.backbone import create_backbone
from tests.exports.tiny import weights


@pytest.fixture(scope="module")
def resnet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return weights(tmp_path_factory.mktemp("run") / "backbone.safetensors", "resnet18")


def test_a_resnet(resnet: Path, tmp_path: Path) -> None:
    done = densecl.export(resnet, "torchvision", tmp_path / "out")
    (found,) = done.findings
    assert found.matched == found.total == 120 and found.difference is not None and found.difference < 1e-3
    code = (tmp_path / "out/LOAD.md").read_text().split("```python\n")[1].split("```")[0]
    names: dict = {}
    exec(code.replace("FOLDER", str(tmp_path / "out")), names)  # the lines of the page work as they stand
    assert torch.equal(names["model"].conv1.weight, load_file(resnet)["conv1.weight"])
    assert names["model"].fc.out_features == 10


def test_a_detector(resnet: Path, tmp_path: Path) -> None:
    done = densecl.export(resnet, "torchvision-detection", tmp_path / "out")
    assert [one.how.split(", ")[1] for one in done.findings] == ["FasterRCNN", "MaskRCNN", "RetinaNet"]
    assert all(one.matched == 120 for one in done.findings)
    code = (tmp_path / "out/LOAD.md").read_text().split("```python\n")[1].split("```")[0]
    names: dict = {"CLASSES": 2}
    exec(code.replace("FOLDER", str(tmp_path / "out")), names)
    body = names["model"].backbone.body
    assert torch.equal(body.layer4[1].bn2.running_var, load_file(resnet)["layer4.1.bn2.running_var"])
    assert all(parameter.requires_grad for parameter in body.parameters())
    assert names["model"].transform.image_mean == [0.41, 0.43, 0.39]


def test_a_frozen_batch_norm_is_found(resnet: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def frozen(**options: object) -> torch.nn.Module:
        return resnet_fpn_backbone(**options | {"norm_layer": torchvision.ops.FrozenBatchNorm2d})

    monkeypatch.setattr(torchvision_detection, "resnet_fpn_backbone", frozen)
    with pytest.raises(UserError, match="failed its check"):
        densecl.export(resnet, "torchvision-detection", tmp_path / "out")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("stride", "dilated"), [(8, [False, True, True]), (16, [False, False, True]), (32, [False] * 3)]
)
def test_dilation_is_timms(stride: int, dilated: list[bool]) -> None:
    ours: Any = timm.create_model("resnet50", num_classes=0, output_stride=stride).eval()
    found = _dilation(stride)
    theirs: Any = torchvision.models.resnet50(replace_stride_with_dilation=found)
    theirs.fc = torch.nn.Identity()
    theirs.load_state_dict(ours.state_dict())
    pixels = torch.randn(1, 3, 32, 64)
    with torch.inference_mode():
        torch.testing.assert_close(_layers(theirs.eval(), pixels)[-1], ours.forward_features(pixels))
    assert found == dilated


def test_basic_blocks_have_no_dilation(tmp_path: Path) -> None:
    source = weights(tmp_path / "a.safetensors", "resnet18", output_stride=16)
    done = densecl.export(source, "torchvision", tmp_path / "out")
    assert "runs this network at 32" in done.notes[0] and done.findings[0].matched == 120


@pytest.mark.parametrize("to", ["torchvision", "torchvision-detection"])
@pytest.mark.parametrize(
    ("name", "channels", "why"),
    [
        ("test_vit", 3, "it takes ResNets such as resnet18 and resnet50. Take --to timm"),
        ("resnet18d", 3, "Its ResNets have another stem or other blocks. Take --to timm"),
        ("resnet18", 1, "take images of 3 channels, these weights 1. Take --to timm"),
    ],
)
def test_what_does_not_fit(to: str, name: str, channels: int, why: str, tmp_path: Path) -> None:
    refusal = targets.load(to).refusal(create_backbone(name, channels=channels))
    assert refusal is not None and why in refusal


@pytest.mark.parametrize("name", RESNETS)
def test_the_networks_have_the_same_tensors(name: str) -> None:
    with torch.device("meta"):
        ours = timm.create_model(name, num_classes=0).state_dict()
        theirs = getattr(torchvision.models, name)().state_dict()
    shapes = {key: tensor.shape for key, tensor in theirs.items() if not key.startswith("fc.")}
    assert {key: tensor.shape for key, tensor in ours.items()} == shapes
