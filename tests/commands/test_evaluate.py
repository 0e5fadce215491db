"""The flags of `densecl evaluate` are the fields of `Settings`."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

import densecl.evaluation.compare
from densecl.cli import main
from densecl.errors import flag
from densecl.evaluation.settings import Settings, meaning_of

LINE = "evaluate run random --task knn --data images"


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[tuple[tuple, dict]]:
    """What `densecl.evaluate` was called with, instead of an evaluation."""
    calls = []
    (tmp_path / "images").mkdir()  # whether there are data is asked before
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(densecl.evaluation.compare, "evaluate", lambda *given, **named: calls.append((given, named)))
    return calls


def test_only_given_flags_are_handed_on(calls: list) -> None:
    assert main(LINE.split()) == 0
    assert calls == [((["run", "random"], ["knn"], "images"), {})]


@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        ("--seeds 5 --first-seed 2", {"seeds": 5, "first_seed": 2}),
        ("--image-size 48x32", {"image_size": (48, 32)}),
        ("--image-size 64", {"image_size": (64, 64)}),
        ("--output-stride 8 --batch-size 4 --images 9", {"output_stride": 8, "batch_size": 4, "images": 9}),
        ("--train-split a --test-split b.txt", {"train_split": "a", "test_split": "b.txt"}),
        ("--classes 3 --ignore 7 9 --also a* b*", {"classes": 3, "ignore": [7, 9], "also": ["a*", "b*"]}),
        ("--label-fraction 0.1 --fine-tune", {"label_fraction": [0.1], "fine_tune": True}),
        ("--label-fraction 0.1 1", {"label_fraction": [0.1, 1.0]}),
        ("--baseline random", {"baseline": ["random"]}),
        ("--baseline random random", {"baseline": ["random", "random"]}),
        ("--steps 3 --learning-rate 1e-3", {"steps": 3, "learning_rate": 0.001}),
        ("--backbone resnet18 --json found.json", {"backbone": "resnet18", "json": "found.json"}),
    ],
)
def test_every_kind_of_flag(typed: str, expected: dict[str, Any], calls: list) -> None:
    assert main(f"{LINE} {typed}".split()) == 0
    ((_, named),) = calls
    assert named == expected


def test_every_setting_has_help(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    with pytest.raises(SystemExit):
        main(["evaluate", "--help"])
    text = capsys.readouterr().out
    for field in dataclasses.fields(Settings):
        assert f"  {flag(field.name)}" in text and meaning_of(field).help.split("\n")[0] in text


@pytest.mark.parametrize(
    ("typed", "complaint"),
    [
        ("--seeds many", "invalid int value: 'many'"),
        ("--learning-rate high", "invalid float value: 'high'"),
        ("--image-size 3x4x5", "expected WIDTHxHEIGHT or one number, not '3x4x5'"),
        ("--ignore", "expected at least one argument"),
    ],
)
def test_values_that_are_none(typed: str, complaint: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(f"{LINE} {typed}".split()) == 2
    assert complaint in capsys.readouterr().err
