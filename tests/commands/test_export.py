"""The flags of `densecl export` are the arguments of `densecl.export`."""

from __future__ import annotations

import inspect
from pathlib import Path

import pytest

import densecl
import densecl.exports.export
from densecl.cli import main
from densecl.exports.export import Exported
from densecl.exports.targets import TARGETS
from densecl.exports.verify import Finding


def test_what_is_handed_on_and_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("run").mkdir()
    Path("a.pth").touch()
    calls = []

    def export(*given: object, **named: object) -> Exported:
        calls.append((given, named))
        finding = Finding("timm 1, a way", 3, 3, ("a", "b", "c"), 2e-6, 12.34)
        return Exported(Path("o\x1bt"), [finding, Finding("no way", None, 0)], ("note: x",))

    monkeypatch.setattr(densecl.exports.export, "export", export)
    assert main(["export", "run", "--to", "timm", "--out", "there"]) == 0
    assert main(["export", "a.pth", "--to", "onnx", "--out", "there", "--backbone", "resnet18"]) == 0
    assert calls == [(("run", "timm", "there"), {}), (("a.pth", "onnx", "there"), {"backbone": "resnet18"})]
    said = capsys.readouterr()
    assert "Exporting a.pth to onnx ... This can take minutes.\n" in said.err
    lines = said.out.splitlines()
    assert lines[:4] == [
        "note: x",
        "checked: timm 1, a way: 3 of 3 tensors, 3 of ours not used (a, b, ...), largest difference 2e-06 in values up"
        " to 12.3",
        "not checked: no way",
        "Done. LOAD.md in o\\x1bt says how to load it.",
    ]


def test_same_names_in_python() -> None:
    assert list(inspect.signature(densecl.export).parameters) == ["weights", "to", "out", "backbone"]


def test_help_names_every_target(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "300")
    with pytest.raises(SystemExit):
        main(["export", "--help"])
    text = capsys.readouterr().out
    for name, row in TARGETS.items():
        assert f"{name}: {row.makes}" in text


@pytest.mark.parametrize("line", ["export run --to timm", "export run --out x", "export --to timm --out x"])
def test_what_must_be_given(line: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(line.split()) == 2
    assert "the following arguments are required" in capsys.readouterr().err
