from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from densecl.config.compose import make_recipe
from densecl.config.files import write_recipe
from densecl.config.optimization import LENGTHS
from densecl.config.presets import PAPER
from densecl.config.recipe import Recipe
from densecl.errors import UserError


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
        assert recipe.mean == recipe.std == "auto" and not recipe.settled


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
        lengths = {length: getattr(recipe, length) for length in LENGTHS}
        assert lengths == {**dict.fromkeys(LENGTHS), name: value}


def test_method_densecl_is_moco_at_half(config) -> None:
    recipe = make_recipe(config("dense_weight: 0"), data="images", method="densecl")
    assert (recipe.method, recipe.dense_weight) == ("moco", 0.5)
    recipe = make_recipe(data="images", method="densecl", dense_weight=0.3)
    assert (recipe.method, recipe.dense_weight) == ("moco", 0.3)
    recipe = make_recipe(config("method: densecl"), data="images", dense_weight=0.1)
    assert (recipe.method, recipe.dense_weight) == ("moco", 0.1)


def test_the_size_of_small_views_is_chosen_anew_with_what_it_rests_on(tmp_path: Path) -> None:
    recorded = tmp_path / "recipe.yaml"
    with_small = Recipe(data="images", local_crops=2, local_crop_size=128, settled=("local_crop_size",))
    write_recipe(with_small, recorded)
    assert make_recipe(recorded).local_crop_size == 128
    for change in ({"local_crops": 0}, {"output_stride": 16}, {"grid": 7}):
        assert make_recipe(recorded, **change).local_crop_size == "auto"
    write_recipe(Recipe(data="images", local_crop_size=None, settled=("local_crop_size",)), recorded)
    assert make_recipe(recorded, local_crops=2).local_crop_size == "auto"
