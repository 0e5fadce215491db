from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from densecl.errors import UserError, flag
from densecl.evaluation.given import make_settings
from densecl.evaluation.settings import Settings, meaning_of
from densecl.finetuning.settings import PredictSettings, TuningSettings


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


@pytest.mark.parametrize("kind", [Settings, TuningSettings, PredictSettings])
def test_every_setting_takes_its_default_again(kind: type) -> None:
    assert make_settings(kind, vars(kind())) == kind()


def test_what_a_flag_takes_a_call_takes_too() -> None:
    given = {"image_size": 96, "ignore": 3, "also": "Seq*", "label_fraction": 1, "train_split": Path("a.txt")}
    assert make_settings(Settings, given) == Settings(
        image_size=(96, 96), ignore=(3,), also=("Seq*",), label_fraction=1.0, train_split="a.txt"
    )
    several = {"image_size": [64, 48], "ignore": [1, 2], "label_fraction": [1, 0.5], "seeds": np.int64(2)}
    assert make_settings(Settings, several) == Settings(
        image_size=(64, 48), ignore=(1, 2), label_fraction=(1.0, 0.5), seeds=2
    )
    assert make_settings(Settings, {"image_size": "64x48"}).image_size == (64, 48)
    assert make_settings(TuningSettings, {"ignore": 0, "image_size": 32}).ignore == (0,)
    assert make_settings(PredictSettings, {"threshold": 0, "image_size": 64}).image_size == (64, 64)


@pytest.mark.parametrize(
    ("given", "complaint"),
    [
        ({"imagesize": 96}, "There is no setting --imagesize. Did you mean 'image_size'?"),
        ({"image_size": "big"}, "--image-size takes WIDTHxHEIGHT or one number, not 'big'."),
        ({"image_size": (1, 2, 3)}, "--image-size takes WIDTHxHEIGHT or one number, not (1, 2, 3)."),
        ({"image_size": True}, "--image-size takes WIDTHxHEIGHT or one number, not True."),
        ({"seeds": 1.5}, "--seeds takes a whole number, not 1.5."),
        ({"seeds": None}, "--seeds takes a whole number, not None."),
        ({"ignore": "water"}, "--ignore takes whole numbers, not 'water'."),
        ({"fine_tune": 1}, "--fine-tune takes True or False, not 1."),
    ],
)
def test_what_is_of_another_type_is_told(given: dict[str, Any], complaint: str) -> None:
    with pytest.raises(UserError) as raised:
        make_settings(Settings, given)
    assert raised.value.args[0] == complaint
