"""The folder for the hub: timm's, with a model card that the hub can read."""

from __future__ import annotations

from pathlib import Path

import timm
import yaml

import densecl
from densecl.model.backbone import create_backbone
from densecl.model.weights import save_backbone
from tests.exports.tiny import ODD, weights


def test_the_card(tmp_path: Path) -> None:
    done = densecl.export(weights(tmp_path / "a.safetensors"), "huggingface", tmp_path / "out")
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {"README.md", "LOAD.md", "config.json", "model.safetensors"}
    assert [one.difference for one in done.findings[:2]] == [0, 0]
    _, front, text = (tmp_path / "out/README.md").read_text().split("---\n")
    said = yaml.safe_load(front)
    assert said["library_name"] == "timm" and "license" not in said
    assert "Method: vicreg" in text and "cc-by-nc-4.0" in text and "mean [0.41, 0.43, 0.39]" in text
    assert "whose license may bind these weights" in text and "To be chosen" in text
    assert timm.create_model(f"local-dir:{tmp_path}/out", pretrained=True).num_features


def test_a_license_from_a_file_is_no_yaml(tmp_path: Path) -> None:
    source = tmp_path / "a.safetensors"
    save_backbone(create_backbone("test_vit"), source, ODD, {"license": "mit\n---\n# x: [1"})
    densecl.export(source, "huggingface", tmp_path / "out")
    _, front, text = (tmp_path / "out/README.md").read_text().split("---\n", 2)
    assert yaml.safe_load(front)["license"] == "mit\\n---\\n# x: [1" and "\n# x" not in text
