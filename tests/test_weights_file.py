"""Of which network weights say they are, without torch."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from densecl.config.compose import make_recipe
from densecl.weights_file import stated_architecture, weights_file


@pytest.fixture
def run(tmp_path: Path) -> Path:
    folder = tmp_path / "run"
    folder.mkdir()
    save_file({"x": torch.zeros(1)}, folder / "backbone.safetensors", {"architecture": "test_resnet"})
    return folder


def test_a_result_states_it(run: Path) -> None:
    assert weights_file(run) == run / "backbone.safetensors"
    assert stated_architecture(run) == stated_architecture(run / "backbone.safetensors") == "test_resnet"


def test_so_does_a_folder_of_the_hub(tmp_path: Path) -> None:
    torch.save({"x": torch.zeros(1)}, tmp_path / "pytorch_model.bin")
    assert stated_architecture(tmp_path) is None
    (tmp_path / "config.json").write_text(json.dumps({"architecture": "resnet18", "num_classes": 10}))
    assert stated_architecture(tmp_path) == "resnet18"
    (tmp_path / "config.json").write_text(json.dumps({"architecture": ["resnet18"]}))
    assert stated_architecture(tmp_path) is None


@pytest.mark.parametrize("content", [b"", b"\x00" * 20, b"\xff" * 8 + b"{}", b"PK\x03\x04"])
def test_what_is_no_safetensors_states_nothing(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "x.safetensors").write_bytes(content)
    assert stated_architecture(tmp_path / "x.safetensors") is None
    assert stated_architecture(tmp_path / "nowhere") is stated_architecture("imagenet") is None


def test_a_backbone_that_nobody_names_is_that_of_the_starting_weights(run: Path, tmp_path: Path) -> None:
    assert make_recipe(data="images", init=str(run)).backbone == "test_resnet"
    assert make_recipe(data="images", init=str(run), recipe="paper").backbone == "test_resnet"
    assert make_recipe(data="images", init=str(run), backbone="resnet18").backbone == "resnet18"
    assert make_recipe(data="images", init="imagenet").backbone == make_recipe(data="images").backbone == "resnet50"
    (tmp_path / "mine.yaml").write_text(f"init: {run}")
    assert make_recipe(tmp_path / "mine.yaml", data="images").backbone == "test_resnet"
    (tmp_path / "mine.yaml").write_text("backbone: resnet34")
    assert make_recipe(tmp_path / "mine.yaml", data="images", init=str(run)).backbone == "resnet34"
