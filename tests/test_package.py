"""The wheel holds what is needed, and what is installed from it runs."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import densecl

PROJECT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(command, cwd=PROJECT, check=True, capture_output=True)
    (wheel,) = folder.glob("*.whl")
    return wheel


def test_the_wheel_holds_the_sources_and_the_licence(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    sources = {str(path.relative_to(PROJECT / "src")) for path in (PROJECT / "src" / "densecl").rglob("*.py")}
    assert sources <= set(names)
    assert "densecl/py.typed" in names
    assert any(name.endswith("licenses/LICENSE") for name in names)
    assert {name.split("/")[0] for name in names} == {"densecl", f"densecl-{densecl.__version__}.dist-info"}


def test_what_is_installed_from_the_wheel_runs(wheel: Path, tmp_path: Path) -> None:
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", str(tmp_path)]
    subprocess.run([*install, str(wheel)], check=True)
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    program = (
        "import densecl, runpy, sys; print(densecl.__file__); sys.argv[1:] = ['--help'];"
        " runpy.run_module('densecl', run_name='__main__')"
    )
    for command in ([sys.executable, "-c", program], [tmp_path / "bin" / "densecl", "--help"]):
        done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=True)
        assert "pretrain" in done.stdout
        if command[1] == "-c":
            assert Path(done.stdout.splitlines()[0]).is_relative_to(tmp_path)
