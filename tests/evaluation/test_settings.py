from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from densecl.errors import UserError, flag
from densecl.evaluation.settings import Settings, meaning_of


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        *(
            ({field.name: least - 1}, f"{flag(field.name)} must be at least {least}, not {least - 1}.")
            for field in dataclasses.fields(Settings)
            if (least := meaning_of(field).least) is not None
        ),
        ({"classes": 256}, "labels are eight-bit"),
        ({"image_size": (0, 9)}, "has no pixels"),
        ({"image_size": (9, 8193)}, "--image-size 8193 is too large: at most 8192."),
        ({"label_fraction": 0.0}, "must lie above 0 and not above 1, not 0."),
        ({"label_fraction": (0.5, 1.5)}, "must lie above 0 and not above 1, not 1.5."),
        ({"label_fraction": ()}, "--label-fraction takes at least one number."),
        ({"learning_rate": float("nan")}, "must be a number above 0, not nan."),
        ({"ignore": (3, -1)}, "--ignore -1: labels lie in 0..255."),
    ],
)
def test_values_out_of_range(settings: dict[str, Any], complaint: str) -> None:
    with pytest.raises(UserError) as raised:
        Settings(**settings)
    assert complaint in raised.value.args[0]


def test_the_seeds() -> None:
    assert list(Settings().all_seeds) == [0, 1, 2]
    assert list(Settings(seeds=2, first_seed=5).all_seeds) == [5, 6]


def test_label_fractions() -> None:
    assert Settings().label_fractions == (1.0,) and Settings(label_fraction=0.5).label_fractions == (0.5,)
    one, several = Settings(label_fraction=[0.5]), Settings(label_fraction=[0.5, 0.1, 0.5])
    assert one == Settings(label_fraction=0.5)
    assert several.label_fractions == (0.5, 0.1)
    assert one.of_labels(0.5) == "" and several.of_labels(0.125) == " with 12.5 % of the labels"


def test_squares() -> None:
    assert Settings().square(128) == 128 and Settings(image_size=(64, 64)).square(128) == 64
    with pytest.raises(UserError, match="image_size=\\(40, 32\\): this task takes squares"):
        Settings(image_size=(40, 32)).square(128)


def test_only_given_settings_of_training_are_handed_on() -> None:
    assert Settings().training() == {}
    given = {"steps": 3, "batch_size": 2, "learning_rate": 0.1}
    assert Settings(seeds=1, **given).training() == given
