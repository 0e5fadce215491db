from __future__ import annotations

import dataclasses
import os
import string
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from densecl import recipe as recipe_module
from densecl.errors import UserError
from densecl.recipe import (
    PAPER,
    Recipe,
    documentation,
    field_names,
    make_recipe,
    parse_time,
    read_recipe,
    read_settings,
    resolve_queue_length,
    write_recipe,
)

# --- layers -------------------------------------------------------------------------------------


@pytest.fixture
def config(tmp_path: Path):
    def write(text: str) -> Path:
        path = tmp_path / "config.yaml"
        path.write_text(text)
        return path

    return write


def test_defaults() -> None:
    assert make_recipe(data="images") == Recipe(data="images", epochs=200)


def test_paper_is_the_authors_values_to_the_letter() -> None:
    recipe = make_recipe(data="images", recipe="paper")
    expected = {
        "backbone": "resnet50",
        "image_size": 224,
        "batch_size": 256,
        "base_learning_rate": 0.3,  # at batch 256
        "learning_rate": "auto",
        "optimizer": "sgd",
        "momentum": 0.9,
        "weight_decay": 1e-4,
        "warmup_epochs": 0.0,
        "schedule_per": "epoch",
        "clip_gradient": None,
        "epochs": 800,
        "queue_length": 65536,
        "dim": 128,
        "hidden_dim": None,
        "grid": None,
        "temperature": 0.2,
        "temperature_max": None,
        "key_momentum": 0.999,
        "key_momentum_end": None,
        "key_norm": "auto",  # shuffle, wherever there is batch norm
        "matching": "features",
        "dense_negatives": "pooled",
        "dense_weight": 0.5,
        "dense_warmup_steps": 0,
        "symmetric": False,
        "crop_scale": (0.2, 1.0),
        "jitter": (0.4, 0.4, 0.4, 0.1),
        "jitter_probability": 0.8,
        "grayscale_probability": 0.2,
        "blur_probability": 0.5,
        "blur_sigma": (0.1, 2.0),
        "flip_probability": 0.5,
        "recipe": "paper",
    }
    assert {name: getattr(recipe, name) for name in expected} == expected


def test_explicit_beats_config_beats_named_recipe(config) -> None:
    file = config("recipe: paper\nbase_learning_rate: 0.2\nbatch_size: 64\n")
    recipe = make_recipe(file, data="images", batch_size=32)
    assert (recipe.recipe, recipe.queue_length) == ("paper", PAPER["queue_length"])
    assert recipe.base_learning_rate == 0.2
    assert recipe.batch_size == 32


#: As a run records it: all settings concrete, with a note of those that it chose.
RECORDED = """
data: /images
method: moco
optimizer: adamw
batch_size: 64
steps: 1000
base_learning_rate: 0.003
learning_rate: 0.0015
weight_decay: 0.02
key_momentum: 0.99
queue_length: 512
key_norm: shuffle
settled: [base_learning_rate, learning_rate, weight_decay, key_momentum, queue_length, key_norm]
"""


@pytest.mark.parametrize(
    ("given", "open_again"),
    [
        ({}, set()),
        ({"seed": 3}, set()),
        ({"batch_size": 64, "data": "/images"}, set()),  # nothing new
        ({"batch_size": 32}, {"learning_rate", "key_momentum", "queue_length", "key_norm"}),
        ({"base_learning_rate": 0.001}, {"learning_rate"}),
        ({"optimizer": "sgd"}, {"base_learning_rate", "learning_rate", "weight_decay"}),
        ({"epochs": 3}, {"key_momentum", "queue_length"}),
        ({"epochs": 3, "key_momentum": 0.9}, {"queue_length"}),
        ({"devices": 2}, {"key_norm"}),  # this batch size was given
        ({"backbone": "vit_small_patch16_224"}, {"base_learning_rate", "learning_rate", "key_norm"}),
    ],
)
def test_what_a_run_chose_is_chosen_anew_where_its_grounds_change(given: dict, open_again: set, config) -> None:
    recorded, recipe = make_recipe(config(RECORDED)), make_recipe(config(RECORDED), **given)
    now_open = {name for name in recorded.settled if getattr(recipe, name) == "auto"}
    assert now_open == open_again
    assert set(recipe.settled) == set(recorded.settled) - open_again - given.keys()
    for name in set(recorded.settled) - open_again - given.keys():
        assert getattr(recipe, name) == getattr(recorded, name)


def test_mean_and_deviation_are_asked_for_anew_with_other_starting_weights(config) -> None:
    recorded = config(
        "data: /images\ninit: /runs/one\nmean: [0.5, 0.5, 0.5]\nstd: [0.5, 0.5, 0.5]\nsettled: [mean, std]\n"
    )
    assert make_recipe(recorded).mean == (0.5, 0.5, 0.5)
    for new in ({"init": "/runs/other"}, {"init": None}, {"backbone": "resnet18"}):
        recipe = make_recipe(recorded, **new)
        assert recipe.mean is recipe.std is None and not recipe.settled


def test_a_setting_of_the_keys_asks_for_the_method_anew(config) -> None:
    recorded = config(
        "data: /images\nmethod: simclr\ntemperature: 0.1\nqueue_length: null\n"
        "settled: [method, temperature, queue_length]\n"
    )
    assert (make_recipe(recorded).method, make_recipe(recorded).temperature) == ("simclr", 0.1)
    for new in ({"queue_length": 512}, {"key_norm": "ema"}, {"dense_negatives": "cells"}, {"batch_size": 8}):
        recipe = make_recipe(recorded, **new)
        assert (recipe.method, recipe.temperature) == ("auto", "auto")
        assert recipe.queue_length == new.get("queue_length", "auto")


def test_a_batch_size_that_was_chosen_is_chosen_anew_with_what_rests_on_it(config) -> None:
    recorded = config(
        "recipe: auto\ndata: /images\nepochs: 3\nbatch_size: 32\nlearning_rate: 0.001\n"
        "settled: [batch_size, learning_rate]\n"
    )
    for new in ({"epochs": 100}, {"steps": 100}, {"data": "/others"}, {"devices": 3}, {"tile": 64}):
        recipe = make_recipe(recorded, **new)
        assert (recipe.batch_size, recipe.learning_rate) == ("auto", "auto")
    assert make_recipe(recorded, batch_size=32, epochs=100).learning_rate == 0.001
    assert make_recipe(recorded, recipe="paper").batch_size == 256


def test_keys_that_a_run_split_itself_may_be_resumed_on_more_devices() -> None:
    split = {"data": "images", "batch_size": 64, "devices": 2, "key_norm": "split"}
    assert make_recipe(**split, settled=("key_norm",)).key_norm == "split"
    with pytest.raises(UserError, match="nothing to split"):
        make_recipe(**split)


def test_the_paper_has_a_batch_size_of_its_own() -> None:
    assert make_recipe(data="images", recipe="paper").batch_size == 256


def test_what_the_user_chose_stays(config) -> None:
    mine = RECORDED.replace("learning_rate, learning_rate, weight", "learning_rate, weight")
    assert make_recipe(config(mine), batch_size=32).learning_rate == 0.0015


def test_two_learning_rates_are_one_too_many() -> None:
    with pytest.raises(UserError, match="learning_rate or base_learning_rate, not both"):
        make_recipe(data="images", learning_rate=0.1, base_learning_rate=0.1)


def test_nothing_to_split() -> None:
    with pytest.raises(UserError, match="nothing to split: 16 images at a time .* key_split=32. .* such as 8"):
        make_recipe(data="images", batch_size=32, devices=2, key_norm="split")


def test_explicit_recipe_beats_the_name_in_the_config(config) -> None:
    assert make_recipe(config("recipe: paper\n"), data="images", recipe="auto").queue_length == "auto"


def test_later_files_beat_earlier_ones(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("dim: 32\nseed: 1")
    (tmp_path / "b").write_text("dim: 64")
    recipe = make_recipe([tmp_path / "a", tmp_path / "b"], data="images")
    assert (recipe.dim, recipe.seed) == (64, 1)


@pytest.mark.parametrize(("name", "value"), [("steps", 7), ("time_limit", "8m"), ("epochs", 3)])
def test_a_length_replaces_one_of_another_kind(name: str, value: Any, config) -> None:
    for recipe in (
        make_recipe(data="images", recipe="paper", **{name: value}),
        make_recipe(config("epochs: 5\nsteps: null\ntime_limit: null"), data="images", **{name: value}),
    ):
        lengths = {length: getattr(recipe, length) for length in recipe_module.LENGTHS}
        assert lengths == {**dict.fromkeys(recipe_module.LENGTHS), name: value}


def test_method_densecl_is_moco_at_half(config) -> None:
    recipe = make_recipe(config("dense_weight: 0"), data="images", method="densecl")
    assert (recipe.method, recipe.dense_weight) == ("moco", 0.5)
    recipe = make_recipe(data="images", method="densecl", dense_weight=0.3)
    assert (recipe.method, recipe.dense_weight) == ("moco", 0.3)
    recipe = make_recipe(config("method: densecl"), data="images", dense_weight=0.1)
    assert (recipe.method, recipe.dense_weight) == ("moco", 0.1)


# --- files ----------------------------------------------------------------------------------------

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
    write_recipe(recipe, path)
    assert read_recipe(path) == recipe
    assert make_recipe(path) == recipe
    assert list(yaml.safe_load(path.read_text())) == list(field_names())


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


# --- types and ranges -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "typed", "value"),
    [
        ("image_size", "96", 96),
        ("image_size", 96.0, 96),
        ("weight_decay", "1e-6", 1e-6),
        ("dense_weight", 1, 1.0),
        ("queue_length", "auto", "auto"),
        ("queue_length", "512", 512),
        ("learning_rate", 1, 1.0),
        ("tile", "none", None),
        ("tile", None, None),
        ("init", "none", None),
        ("crop_scale", ["0.3", "1"], (0.3, 1.0)),
        ("mean", ["none"], None),
        ("loggers", "wandb", ("wandb",)),
        ("loggers", [], ()),
        ("precision", 32, "32"),
        ("data", Path("a/b"), "a/b"),
    ],
)
def test_values_come_to_the_type_of_the_field(name: str, typed: object, value: object) -> None:
    result = getattr(make_recipe(**{"data": "images", name: typed}), name)
    assert result == value
    assert type(result) is type(value)


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"dense_weight": 1.5}, "dense_weight must lie in 0..1, not 1.5."),
        ({"dense_weight": "nan"}, "dense_weight must lie in 0..1, not nan."),
        (
            {"method": "mocco"},
            "method takes auto, moco, densecl, simclr, byol, simsiam, barlow, vicreg or dino, not 'mocco'. Did you",
        ),
        (
            {"queue_length": "autoo"},
            "queue_length takes a whole number or auto or none, not 'autoo'. Did you mean 'auto'?",
        ),
        ({"queue_length": 0}, "queue_length must be at least 1, not 0."),
        ({"queue_length": 2.5}, "queue_length takes a whole number or auto or none, not '2.5'."),
        ({"image_size": True}, "image_size takes a whole number, not 'True'."),
        ({"symmetric": "yes"}, "symmetric takes true or false or auto, not 'yes'."),
        ({"jitter": (0.4, 0.4)}, "jitter takes 4 numbers, not '0.4 0.4'."),
        ({"jitter": (0.4, 0.4, 0.4, 0.6)}, "jitter takes brightness, contrast and saturation"),
        ({"crop_scale": (0.5, 0.2)}, "crop_scale takes a smallest and a largest share"),
        ({"mean": (0.5, 0.5, 0.5)}, "Give mean and std together"),
        ({"mean": (0.5,), "std": (0.5,)}, "mean takes one number a channel: 3, not 1."),
        ({"mean": (0, 0, 0), "std": (1, 0, 1)}, "std must be greater than 0 in every channel, not 1.0 0.0 1.0."),
        ({"grid": 1}, "grid must be at least 2"),
        ({"output_stride": 4}, "output_stride must be 8, 16 or 32, not 4."),
        (
            {"temperature": 0.2, "temperature_max": 0.1},
            "temperature_max must be at least temperature=0.2, not 0.1.",
        ),
        ({"local_crop_size": 96}, "local_crop_size=96 does nothing without local_crops."),
        (
            {"local_crop_size": "none", "local_crops": 2},
            "local_crop_size=None: the small views of local_crops need",
        ),
        ({"epochs": 3, "steps": 4}, "Give only one of epochs and steps"),
        ({"time_limit": "8"}, "time_limit takes a number and a unit"),
        ({"time_limit": "0m"}, "time_limit must be longer than nothing"),
        ({"batch_size": 5, "devices": 2}, "batch_size=5 cannot be shared evenly by 2 devices."),
        ({"seed": -1}, "seed must lie in"),
        ({"loggers": ("wandb", "wandb")}, "loggers names a logger twice"),
        ({"data": ""}, "data is missing"),
        ({"imagesize": 3}, "unknown setting 'imagesize'. Did you mean 'image_size'?"),
    ],
)
def test_wrong_settings_are_one_clear_line(settings: dict, complaint: str) -> None:
    with pytest.raises(UserError) as caught:
        make_recipe(**{"data": "images", **settings})
    assert str(caught.value).startswith(complaint)
    assert "\n" not in str(caught.value)


def test_the_size_of_small_views_is_chosen_anew_with_what_it_rests_on(tmp_path: Path) -> None:
    recorded = tmp_path / "recipe.yaml"
    with_small = Recipe(data="images", local_crops=2, local_crop_size=128, settled=("local_crop_size",))
    write_recipe(with_small, recorded)
    assert make_recipe(recorded).local_crop_size == 128
    for change in ({"local_crops": 0}, {"output_stride": 16}, {"grid": 7}):
        assert make_recipe(recorded, **change).local_crop_size == "auto"
    write_recipe(Recipe(data="images", local_crop_size=None, settled=("local_crop_size",)), recorded)
    assert make_recipe(recorded, local_crops=2).local_crop_size == "auto"


def test_every_number_has_a_range() -> None:
    defaults = {field.name: field.default for field in dataclasses.fields(Recipe)}
    numbers = {
        name
        for name, kind in recipe_module.setting_types().items()
        if (int in (kind, *getattr(kind, "__args__", ())) or float in (kind, *getattr(kind, "__args__", ())))
        and not isinstance(defaults[name], bool)
    }
    assert numbers <= set(recipe_module._RULES)


def test_a_recipe_made_directly_is_checked_too() -> None:
    with pytest.raises(UserError, match="batch_size must be at least 1"):
        Recipe(data="images", batch_size=0)
    with pytest.raises(UserError, match="temperature must be greater"):
        dataclasses.replace(Recipe(data="images"), temperature=0.0)


# --- the rest -------------------------------------------------------------------------------------


def test_every_setting_is_described_once_and_in_order() -> None:
    described = [name for settings in documentation().values() for name in settings]
    assert described == list(field_names())
    assert all(text.strip().endswith(".") for settings in documentation().values() for text in settings.values())
    assert documentation()["the method"]["grid"].startswith("Pool the feature map")


@pytest.mark.parametrize(("text", "seconds"), [("90s", 90), ("8m", 480), ("1.5h", 5400), ("2d", 172800), (" 3s ", 3)])
def test_time_limits(text: str, seconds: float) -> None:
    assert parse_time(text, "time_limit") == seconds


@pytest.mark.parametrize("text", ["", "8", "m", "-1m", "8 weeks", "1h30m", "nanm"])
def test_wrong_time_limits(text: str) -> None:
    with pytest.raises(UserError, match="time_limit takes"):
        parse_time(text, "time_limit")


def test_queue_length_follows_the_rule_of_thumb() -> None:
    table = {1: 256, 1_000: 256, 1_001: 2048, 10_000: 2048, 10_001: 8192, 40_000: 8192, 40_001: 32768}
    table |= {200_000: 32768, 200_001: 65536, 10**7: 65536}
    assert {images: resolve_queue_length(images) for images in table} == table


def test_no_loggers() -> None:
    assert (
        make_recipe(data="images", loggers="none").loggers == make_recipe(data="images", loggers=["none"]).loggers == ()
    )
