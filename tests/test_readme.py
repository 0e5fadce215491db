"""What the README says is true: its code runs, its settings exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from densecl.config.setting import flag
from densecl.config.settings import field_names
from densecl.model.backbone import create_backbone
from densecl.model.weights import save_backbone
from densecl.normalization import Normalization

README = (Path(__file__).parents[1] / "README.md").read_text()
CODE = re.findall(r"^ *```python\n(.*?)^ *```$", README, flags=re.DOTALL | re.MULTILINE)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("home")
    (folder / "runs/mine").mkdir(parents=True)
    save_backbone(
        create_backbone("resnet50"), folder / "runs/mine/backbone.safetensors", Normalization((0.5,) * 3, (0.2,) * 3)
    )
    return folder


def test_there_is_code() -> None:
    assert len(CODE) == 3


@pytest.mark.parametrize("code", CODE)
def test_the_code_runs(code: str, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(home)
    exec(re.sub(r"^ {3}", "", code, flags=re.MULTILINE), {})


def test_the_flags_exist() -> None:
    known = {flag(name) for name in field_names()} | {"--help", "--out", "--resume", "--config", "--task"}
    assert set(re.findall(r"--[a-z][a-z-]*", README)) <= known
