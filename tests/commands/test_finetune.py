"""The flags of `densecl finetune` and `densecl predict` are the fields of their settings."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import densecl.finetuning.predict
import densecl.finetuning.run
from densecl.cli import main
from densecl.errors import UserError, flag
from densecl.evaluation.settings import meaning_of
from densecl.finetuning.record import Asked
from densecl.finetuning.settings import PredictSettings, TuningSettings


@pytest.fixture
def calls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[tuple[tuple, dict]]:
    """What the functions were called with, instead of work. There are a run and data."""
    monkeypatch.chdir(tmp_path)
    Path("run").mkdir()
    Path("d").mkdir()
    Path("d/1.png").touch()
    asked = Asked(str(tmp_path / "run"), "segmentation", str(tmp_path / "d"), None, TuningSettings())
    Path("past").mkdir()
    Path("past/finetune.json").write_text(json.dumps({"asked": asked.plain()}))
    calls = []
    for module, name in ((densecl.finetuning.run, "finetune"), (densecl.finetuning.predict, "predict")):
        monkeypatch.setattr(module, name, lambda *given, **named: calls.append((given, named)))
    return calls


@pytest.mark.parametrize(
    ("line", "given", "named"),
    [
        ("finetune run --task detection --data d --out o", ("run", "detection", "d", Path("o")), {}),
        ("finetune --resume --out past", (None, None, None, Path("past")), {"resume": True}),
        (
            "finetune run --task segmentation --data d --out o --image-size 64x32 --class-names a b --ignore 3"
            " --checkpoint-minutes 2",
            ("run", "segmentation", "d", Path("o")),
            {"image_size": (64, 32), "class_names": ["a", "b"], "ignore": [3], "checkpoint_minutes": 2.0},
        ),
        ("predict run --data d --out o", ("run", "d", Path("o")), {}),
        (
            "predict run --data d --out o --threshold 0.3 --pictures 0",
            ("run", "d", Path("o")),
            {"threshold": 0.3, "pictures": 0},
        ),
    ],
)
def test_only_given_flags_are_handed_on(line: str, given: tuple, named: dict[str, Any], calls: list) -> None:
    assert main(line.split()) == 0
    assert calls == [(given, named)]


@pytest.mark.parametrize(("command", "settings"), [("finetune", TuningSettings), ("predict", PredictSettings)])
def test_every_setting_has_help(command: str, settings: type, capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "300")
    with pytest.raises(SystemExit):
        main([command, "--help"])
    text = capsys.readouterr().out
    for field in dataclasses.fields(settings):
        assert f"  {flag(field.name)}" in text and meaning_of(field).help in text


def test_help_needs_nothing_heavy() -> None:
    program = "import sys, densecl.commands.finetune, densecl.commands.predict; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, text=True).stdout.strip() == "False"


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"threshold": 2.0}, "threshold must lie in 0..1"),
        ({"pictures": -1}, "pictures must be at least 0"),
        ({"image_size": (0, 4)}, "has no pixels"),
    ],
)
def test_settings_of_predict_out_of_range(settings: dict, complaint: str) -> None:
    with pytest.raises(UserError, match=complaint):
        PredictSettings(**settings)
