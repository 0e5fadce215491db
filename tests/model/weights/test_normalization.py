from __future__ import annotations

import json
from pathlib import Path

import pytest
import safetensors
import safetensors.torch
import torch

from densecl.model.backbone import create_backbone
from densecl.model.weights import initialize_from, save_backbone
from densecl.normalization import Normalization

NORMALIZATION = Normalization((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))


def test_a_start_brings_the_normalization_of_its_own_file(tmp_path: Path) -> None:
    (tmp_path / "run/checkpoints").mkdir(parents=True)
    backbone = create_backbone("test_resnet")
    save_backbone(backbone, tmp_path / "run/backbone.safetensors", NORMALIZATION)
    torch.save({"model": {"query_encoder." + name: one for name, one in backbone.model.state_dict().items()}},
               tmp_path / "run/checkpoints/last.ckpt")  # fmt: skip
    for place in ("run", "run/backbone.safetensors", "run/checkpoints/last.ckpt"):
        start = initialize_from(create_backbone("test_resnet"), tmp_path / place)
        assert (start.normalization, start.whose) == (NORMALIZATION, "those of the starting weights")
    gray = initialize_from(create_backbone("test_resnet", channels=1), tmp_path / "run")
    assert gray.normalization is None  # of three channels, for images of one


def test_a_start_from_timms_weights_brings_their_normalization(monkeypatch: pytest.MonkeyPatch) -> None:
    name = "tf_efficientnet_lite0"
    monkeypatch.setattr("densecl.model.weights.start._download", lambda backbone: backbone.model)
    start = initialize_from(create_backbone(name), "imagenet")
    assert start.normalization == Normalization((0.5,) * 3, (0.5,) * 3) and "lite0" in start.whose
    assert initialize_from(create_backbone(name, channels=4), "imagenet").normalization is None


@pytest.mark.parametrize(
    ("architecture", "prefix", "mean"),
    [
        ("test_resnet.r160_in1k", "model.", 0.5),  # the tag says it
        ("test_resnet", "", 0.5),  # all tags agree, and it looks like a file of timm's
        ("test_resnet", "model.", None),  # somebody's training
    ],
)
def test_a_file_that_says_nothing(architecture: str, prefix: str, mean: float | None, tmp_path: Path) -> None:
    state = create_backbone("test_resnet").model.state_dict()
    torch.save({prefix + name: one for name, one in state.items()}, tmp_path / "x.pth")
    start = initialize_from(create_backbone(architecture), tmp_path / "x.pth")
    assert (start.normalization and start.normalization.mean[0]) == mean


def test_the_configuration_beside_a_file_of_timm(tmp_path: Path) -> None:
    safetensors.torch.save_file(create_backbone("test_resnet").model.state_dict(), tmp_path / "model.safetensors")
    for content, mean in (
        (json.dumps({"pretrained_cfg": {"mean": [0.3] * 3, "std": [0.2] * 3}}), 0.3),
        (json.dumps({"pretrained_cfg": {"mean": [0.3] * 3, "std": [0, 1, 1]}}), 0.5),
        (json.dumps({"pretrained_cfg": {"mean": "x"}}), 0.5),
        (json.dumps({"pretrained_cfg": 7}), 0.5),
        ("[" * 10_000, 0.5),
        ("no JSON", 0.5),
        (" " * 1_000_001, 0.5),
    ):
        (tmp_path / "config.json").write_text(content)
        start = initialize_from(create_backbone("test_resnet"), tmp_path)
        assert start.normalization is not None and start.normalization.mean == (mean,) * 3, content[:40]
