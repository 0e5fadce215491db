"""What users of other tools type."""

from __future__ import annotations

import pytest

from densecl.config.compose import make_recipe
from densecl.config.settings import field_names
from densecl.errors import UserError, flag
from densecl.synonyms import ADVICE, NAMES, meant

FLAGS = [flag(name) for name in (*field_names(), "out", "resume")]


@pytest.mark.parametrize(
    ("typed", "setting"),
    [
        *(("--lr", "--learning-rate"), ("--model", "--backbone"), ("--arch", "--backbone"), ("--gpus", "--devices")),
        *(("--bs", "--batch-size"), ("--wd", "--weight-decay"), ("--epoch", "--epochs"), ("--ema", "--key-momentum")),
        *(
            ("--amp", "--precision"),
            ("--img_size", "--image-size"),
            ("--num-workers", "--workers"),
            ("--IMGSZ", "--image-size"),
        ),
    ],
)
def test_a_flag_of_other_tools(typed: str, setting: str) -> None:
    assert meant(typed, FLAGS) == f" Did you mean '{setting}'?"


def test_every_synonym_stands_once_and_hides_no_setting() -> None:
    words = [word for others in NAMES.values() for word in others.split()] + list(ADVICE)
    assert not set(words) & {*field_names()}
    settings = {*field_names(), "out", "resume"}
    pretraining = [word for name, others in NAMES.items() if name in settings for word in others.split()]
    assert len(pretraining) == len(set(pretraining))


def test_only_what_there_is_is_suggested() -> None:
    assert meant("--lr", ["--seed", "--out"]) == ""
    assert meant("--sede", ["--seed", "--out"]) == " Did you mean '--seed'?"
    assert "RUN/train.log" in meant("--verbose", FLAGS)


def test_in_python_and_in_files_the_same_names_are_suggested() -> None:
    with pytest.raises(UserError, match="unknown setting 'lr'. Did you mean 'learning_rate'?"):
        make_recipe(data="x", lr=0.1)
