from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

import densecl
from densecl.cli import main
from densecl.config.compose import make_recipe
from densecl.config.files import write_recipe
from densecl.errors import UserError
from densecl.training import run


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, Path, dict[str, Any]]]:
    """What the training room was asked for, instead of a run. In a folder that has images and weights."""
    monkeypatch.chdir(tmp_path)
    for folder in ("images", "photos"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "1.png").touch()
    (tmp_path / "weights.pth").touch()
    runs = []
    monkeypatch.setattr(run, "pretrain", lambda recipe, out, **options: runs.append((recipe, out, options)))
    return runs


def test_settings_reach_the_recipe(runs: list) -> None:
    densecl.pretrain("images", "out", image_size=96, steps=3)
    ((recipe, out, options),) = runs
    assert (recipe.data, recipe.image_size, recipe.steps, recipe.epochs) == (
        str(Path("images").absolute()),
        96,
        3,
        None,
    )
    assert out == Path("out")
    assert options == {"resume": False, "dataset": None, "backbone": None}


def test_a_dataset_and_a_module_are_handed_over_beside_the_recipe(runs: list) -> None:
    dataset, module = TensorDataset(torch.zeros(2, 3, 8, 8)), nn.Conv2d(3, 4, 3)
    densecl.pretrain(dataset, "out", backbone=module)
    ((recipe, _, options),) = runs
    assert (recipe.data, recipe.backbone) == ("dataset:TensorDataset", "module:Conv2d")
    assert options["dataset"] is dataset
    assert options["backbone"] is module


@pytest.mark.parametrize(("line", "what"), [("data: dataset:Mine", "dataset"), ("backbone: module:Mine", "module")])
def test_a_recipe_made_with_python_objects_needs_them_again(line: str, what: str, tmp_path: Path, runs: list) -> None:
    (tmp_path / "recipe.yaml").write_text(f"data: images\n{line}\n" if what == "module" else line)
    with pytest.raises(UserError, match=f"made in Python with a {what}"):
        densecl.pretrain(None, "out", config=tmp_path / "recipe.yaml")
    assert runs == []


def test_resume_starts_from_the_settings_of_the_run(tmp_path: Path, runs: list) -> None:
    recorded = make_recipe(data=str(tmp_path / "images"), queue_length=512, dim=32, steps=4)
    write_recipe(recorded, tmp_path / "recipe.yaml")
    (tmp_path / "config").write_text("dim: 64\n")
    assert main(["pretrain", "--out", str(tmp_path), "--resume"]) == 0
    assert main(["pretrain", "--out", str(tmp_path), "--resume", "--config", str(tmp_path / "config"), "--seed=3"]) == 0
    assert runs[0][0] == recorded
    last = runs[1][0]
    assert (last.queue_length, last.dim, last.seed, last.steps) == (512, 64, 3, 4)


def test_paths_are_recorded_as_seen_from_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, runs: list) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    densecl.pretrain("photos/../images/", "~/run", init="weights.pth")
    recipe, out, _ = runs[0]
    assert (recipe.data, recipe.init) == (str(tmp_path / "images"), str(tmp_path / "weights.pth"))
    assert out == tmp_path / "home" / "run"
    (tmp_path / "some").mkdir()
    (tmp_path / "some" / "1.jpg").touch()
    (tmp_path / "config").write_text("data: some/**/*.jpg\ninit: imagenet\n")
    densecl.pretrain(None, "out", config="config")
    recipe = runs[1][0]
    assert (recipe.data, recipe.init) == (str(tmp_path / "some/**/*.jpg"), "imagenet")


def test_a_class_is_no_module(runs: list) -> None:
    with pytest.raises(UserError, match="An instance|an instance of it"):
        densecl.pretrain("images", "out", backbone=nn.Conv2d)  # pyright: ignore[reportArgumentType]
    assert runs == []


def test_nothing_to_resume(tmp_path: Path, runs: list) -> None:
    with pytest.raises(UserError, match="there is no run in .*nosuch yet. Give data"):
        densecl.pretrain(None, tmp_path / "nosuch", resume=True)
    assert runs == []
