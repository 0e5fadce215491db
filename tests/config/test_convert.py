from __future__ import annotations

from pathlib import Path

import pytest

from densecl.config.compose import make_recipe


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
        ("mean", ["auto"], "auto"),
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


def test_no_loggers() -> None:
    assert (
        make_recipe(data="images", loggers="none").loggers == make_recipe(data="images", loggers=["none"]).loggers == ()
    )
