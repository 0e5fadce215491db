"""What is not there is told before torch is loaded, by every command."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

from densecl.cli import main

PROGRAM = """
import sys
from densecl.cli import main
for line in sys.stdin:
    code = main(line.split())
    print(code, "torch" in sys.modules, line.strip())
"""

LINES = """\
evaluate nowhere --task correspondence --data there
evaluate random --task correspondence --data nowhere
finetune nowhere --task detection --data there --out o
finetune imagenet --task detection --data nowhere --out o
predict nowhere --data there --out o
predict there --data nowhere --out o
export nowhere --to timm --out o
export runs/nowhere --to timm --out o
embed nowhere --data there --out o.npy
embed random --data nowhere --out o.npy
check --data nowhere
pretrain --data nowhere --out o
pretrain --data nowhere-empty --out o
pretrain --data nowhere-texts --out o
pretrain --data nowhere.zip --out o
pretrain --data nowhere/*.jpg --out o
check --data nowhere.mp4
predict there --data nowhere-empty --out o
pretrain --data there --out o --teacher nowhere
finetune imagenet --task detection --data there --out nowhere-texts
finetune imagenet --task detection --data there --out nowhere-o --steps 0
finetune imagenet --task nowhere --data there --out o
finetune imagenet --data there --out nowhere-o
predict there --data there --out nowhere.zip/o
export random --to nowhere --out o
export random --to timm --out nowhere-texts
export random --to timm --out nowhere.zip/o
pretrain --data there --out o --teacher-cache /proc/nowhere
pretrain --data there --out o --probe there/nowhere
pretrain --data there --out o --probe unlabeled/nowhere
check --data there --probe unlabeled/nowhere
"""


def test_a_logger_that_is_not_installed_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setitem(sys.modules, "timm", None)  # whose names are not asked for
    monkeypatch.chdir(tmp_path)
    Path("1.png").touch()
    assert main(["pretrain", "--data", "1.png", "--out", "run", "--loggers", "mlflow"]) == 2
    told = "densecl: error: --loggers mlflow needs a package that is not here: pip install mlflow.\n"
    assert capsys.readouterr() == ("", told)
    assert not Path("run").exists()


def test_what_is_not_there_is_told_before_torch_is_loaded(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "there/image.png").touch()
    (tmp_path / "nowhere-empty").mkdir()
    (tmp_path / "nowhere-texts").mkdir()
    (tmp_path / "nowhere-texts/a.txt").touch()
    (tmp_path / "nowhere.zip").write_bytes(b"PK\x03\x04")
    (tmp_path / "nowhere.mp4").write_bytes(b"....ftypmp42")
    (tmp_path / "unlabeled/nowhere/images/train").mkdir(parents=True)  # images, but no labels/train
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], input=LINES, cwd=tmp_path, capture_output=True, text=True, timeout=60
    )
    assert done.stdout.splitlines() == [f"2 False {line}" for line in LINES.splitlines()]
    errors = done.stderr.splitlines()
    assert len(errors) == len(LINES.splitlines())
    assert all(error.startswith("densecl: error: ") for error in errors)
    settled = {"densecl: error: Give --task detection or --task segmentation.", "densecl: error: --steps must be"}
    assert all("nowhere" in error or error.startswith(tuple(settled)) for error in errors)
    assert not (tmp_path / "nowhere-o").exists() and not (tmp_path / "o").exists()
