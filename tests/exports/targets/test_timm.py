"""timm loads the folder in all its ways, and knows the normalization and the settings of the network."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from timm.data import resolve_model_data_config

import densecl
from densecl.model.backbone import create_backbone
from densecl.model.weights import read_metadata, save_backbone
from densecl.normalization import Normalization
from tests.exports.tiny import ODD, ORIGIN, weights


@pytest.mark.parametrize(
    ("name", "channels", "output_stride", "left_out"),
    [
        ("test_resnet", 4, 16, 0),
        ("test_vit", 3, None, 2),  # the last norm
        ("test_convnext", 3, None, 2),
        ("test_efficientnet", 3, None, 0),
        ("test_nfnet", 3, None, 0),
    ],
)
def test_every_way(name: str, channels: int, output_stride: int | None, left_out: int, tmp_path: Path) -> None:
    backbone = create_backbone(name, channels=channels, output_stride=output_stride)
    source = tmp_path / "a.safetensors"
    save_backbone(backbone, source, Normalization((0.1, 0.2, 0.3, 0.4)[:channels], (1.0, 0.9, 0.8, 0.7)[:channels]))
    done = densecl.export(source, "timm", tmp_path / "out")
    whole, parts = done.findings
    assert whole.left_out == () and whole.matched == whole.total == len(backbone.model.state_dict())
    assert whole.difference == parts.difference == 0 and parts.largest > 0

    ours, normalization = densecl.load_backbone(source)
    theirs: Any = timm.create_model(f"local-dir:{tmp_path}/out", pretrained=True, num_classes=7).eval()
    data = resolve_model_data_config(theirs)
    assert (tuple(data["mean"]), tuple(data["std"])) == normalization and data["input_size"][0] == channels
    pixels = torch.randn(2, channels, 96, 160)
    with torch.inference_mode():
        maps = theirs.forward_intermediates(pixels, norm=name == "test_vit", intermediates_only=True)
        assert torch.equal(maps[-1], ours.eval()(pixels))
        assert theirs(pixels).shape == (2, 7)


def test_the_file_says_where_it_comes_from(tmp_path: Path) -> None:
    densecl.export(weights(tmp_path / "a.safetensors"), "timm", tmp_path / "out")
    metadata = read_metadata(tmp_path / "out/model.safetensors")
    assert metadata is not None and metadata.provenance == ORIGIN and metadata.normalization == ODD
    said = json.loads((tmp_path / "out/config.json").read_text())
    assert "license" not in said["pretrained_cfg"]  # that of timm's own weights
    again = densecl.export(tmp_path / "out/model.safetensors", "timm", tmp_path / "again")  # an export is weights, too
    assert again.findings[0].difference == 0


def test_what_timm_says_when_it_loads_stands_in_the_page(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    densecl.export(weights(tmp_path / "a.safetensors", "mobilenetv3_small_050"), "timm", tmp_path / "out")
    said = {}
    for word, settings in (("Unexpected keys", {"features_only": True}), ("Missing keys", {"num_classes": 10})):
        caplog.clear()
        with caplog.at_level("INFO", "timm"):
            timm.create_model(f"local-dir:{tmp_path}/out", pretrained=True, **settings)
        (said[word],) = [line for line in caplog.messages if "keys" in line]
        assert said[word].startswith(word) and word in (tmp_path / "out/LOAD.md").read_text()
    keys = {word: {key.split(".")[0] for key in re.findall(r"[\w.]+(?=[,)])", line)} for word, line in said.items()}
    assert keys == {"Unexpected keys": {"conv_head"}, "Missing keys": {"classifier"}}
