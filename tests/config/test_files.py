from __future__ import annotations

import os
import string
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from densecl.config.compose import make_recipe
from densecl.config.files import read_recipe, read_settings, write_recipe
from densecl.config.recipe import Recipe
from densecl.config.settings import field_names
from densecl.errors import UserError

words = st.text(string.ascii_letters + string.digits + " /:#'\"-?*é{}[],&!|>%@\\", min_size=1, max_size=20).filter(
    lambda text: text.strip() != ""
)
shares = st.floats(0, 1)


@given(
    data=words,
    backbone=words,
    init=st.none() | words.filter(lambda text: text != "none"),
    dense_weight=shares,
    temperature=st.floats(1e-300, 1e300),
    queue_length=st.just("auto") | st.integers(1, 10**9),
    std=st.lists(st.floats(1e-9, 1e9), min_size=2, max_size=2).map(tuple),
    seed=st.integers(0, 2**32 - 1),
    symmetric=st.booleans(),
    precision=st.sampled_from(["auto", "32", "bf16"]),
    loggers=st.sampled_from([(), ("wandb",), ("tensorboard", "mlflow")]),
)
def test_a_written_recipe_reads_back_exactly(tmp_path_factory: pytest.TempPathFactory, **settings) -> None:
    recipe = Recipe(channels=2, mean=(0.0, 1.0), steps=3, **settings)
    path = tmp_path_factory.mktemp("recipe") / "recipe.yaml"
    write_recipe(recipe, path, ["densecl 0: a note"])
    assert read_recipe(path) == recipe
    assert make_recipe(path) == recipe
    # The name of the preset says nothing that the other lines do not.
    assert list(yaml.safe_load(path.read_text())) == [name for name in field_names() if name != "recipe"]
    assert path.read_text().startswith("# densecl 0: a note\n")


def test_write_leaves_the_old_file_when_it_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "recipe.yaml"
    write_recipe(Recipe(data="old"), path)

    def fail(*_: object) -> None:
        raise OSError("no disk")

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", fail)
        with pytest.raises(OSError, match="no disk"):
            write_recipe(Recipe(data="new"), path)
    assert read_recipe(path).data == "old"
    write_recipe(Recipe(data="new"), path)
    assert read_recipe(path).data == "new"
    assert [child.name for child in tmp_path.iterdir()] == ["recipe.yaml"]


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("imagesize: 3", "unknown setting 'imagesize'. Did you mean 'image_size'?"),
        ("- 1", "must hold lines such as"),
        ("a: [", "line 1 is not valid YAML"),
        ("a: 1\nb: {", "line 2 is not valid YAML"),
        ("!!python/object/apply:os.system ['true']", "is not valid YAML"),
        ("[" * 5000, "is not valid YAML"),
        ("\x00", "is not valid YAML"),
        ("batch_size: many", "batch_size takes a whole number or auto, not 'many'"),
        ("crop_scale: 3", "crop_scale takes 2 numbers"),
        ("crop_scale: [0.1, 0.2, 0.3]", "crop_scale takes 2 numbers"),
        ("seed: {a: 1}", "seed takes a whole number"),
        ("# " + "x" * 1_000_000, "too large"),
    ],
)
def test_bad_config_is_one_clear_line(text: str, complaint: str, config) -> None:
    with pytest.raises(UserError) as caught:
        read_settings(config(text))
    assert complaint in str(caught.value)
    assert "config.yaml" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_no_such_config(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nothing\.yaml: No such file"):
        read_settings(tmp_path / "nothing.yaml")


def test_config_that_is_not_text(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"\xff\xfe\x00\xd8")
    with pytest.raises(UserError, match="not valid YAML"):
        read_settings(tmp_path / "x")


def test_empty_config_and_hyphens(config) -> None:
    assert read_settings(config("")) == {}
    assert read_settings(config("image-size: 96")) == {"image_size": 96}


def test_incomplete_recipe_names_no_data(config) -> None:
    with pytest.raises(UserError, match="names no data"):
        read_recipe(config("dim: 3"))
