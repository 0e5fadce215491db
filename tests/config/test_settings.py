from __future__ import annotations

import re
from typing import Literal, get_args, get_origin, get_type_hints

import pytest

from densecl.config.checks import LAUNCHED
from densecl.config.convert import members, words_of
from densecl.config.recipe import Resolved
from densecl.config.rules import resting
from densecl.config.setting import meaning_of, seconds_in
from densecl.config.settings import defaults, field_names, meanings, setting_fields, setting_types


def test_every_setting_is_described_once_and_in_order() -> None:
    described = {name: meaning for settings in meanings().values() for name, meaning in settings.items()}
    assert list(described) == list(field_names())
    assert all(meaning.help.endswith((".", "...")) for meaning in described.values())
    assert meanings()["the method"]["grid"].help.startswith("Pool the feature map")


def test_every_word_of_a_setting_is_explained_and_no_other() -> None:
    for name, field in setting_fields().items():
        kinds = [kind for kind in members(setting_types()[name]) if get_origin(kind) is Literal]
        words = {word for kind in kinds for word in get_args(kind)} - {"auto"}
        explained = set(meaning_of(field).choices)
        assert explained - {"auto"} == words, name


def test_what_a_run_may_choose_is_what_is_left_open_and_has_a_rule() -> None:
    left_open = {name for name, kind in setting_types().items() if "auto" in words_of(kind)} - {"recipe"}
    assert left_open == {*resting(), *LAUNCHED}
    assert all(defaults()[name] == "auto" for name in left_open)


def test_resolved_settings_have_no_auto() -> None:
    hints = get_type_hints(Resolved)
    parameter = {name for name, kind in hints.items() if getattr(kind, "__parameters__", ())}
    assert {*resting(), *LAUNCHED} == parameter  # the only place of "auto", which Never takes in Resolved


def test_every_number_has_a_range() -> None:
    numbers = {
        name
        for name, kind in setting_types().items()
        if (int in (kind, *getattr(kind, "__args__", ())) or float in (kind, *getattr(kind, "__args__", ())))
        and not isinstance(defaults().get(name), bool)
    }
    assert all(meaning_of(setting_fields()[name]).range for name in numbers)


@pytest.mark.parametrize(("text", "seconds"), [("90s", 90), ("8m", 480), ("1.5h", 5400), ("2d", 172800), (" 3s ", 3)])
def test_time_limits(text: str, seconds: float) -> None:
    assert seconds_in(text) == seconds


@pytest.mark.parametrize("text", ["", "8", "m", "-1m", "8 weeks", "1h30m", "nanm"])
def test_wrong_time_limits(text: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(text)}$"):
        seconds_in(text)
