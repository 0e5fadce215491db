"""A target costs one file and one row: the documentation's example."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from densecl.cli import main
from densecl.exports import targets
from densecl.exports.targets import TARGETS, Row
from densecl.model.backbone import create_backbone

DOCS = Path(__file__).parents[2] / "docs"


def test_the_target_that_the_documentation_adds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    text = "\n".join(path.read_text() for path in sorted(DOCS.glob("*.md")))
    (code,) = (
        block for block in re.findall(r"```python\n(.*?)```", text, re.S) if "class NumpyTarget(Target)" in block
    )
    (tmp_path / "target_of_the_documentation.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(TARGETS, "numpy", Row("target_of_the_documentation:NumpyTarget", "arrays for numpy"))
    line = f"export random --backbone test_convnext --to numpy --out {tmp_path}/out"
    assert main(line.split()) == 0
    shown = capsys.readouterr().out
    count = len(create_backbone("test_convnext").model.state_dict())
    assert re.search(rf"numpy [\d.]+, numpy.load: {count} of {count} tensors, largest difference 0 in", shown)
    with np.load(tmp_path / "out/backbone.npz") as arrays:
        assert len(arrays.files) == count
    assert 'numpy.load("FOLDER/backbone.npz")' in (tmp_path / "out/LOAD.md").read_text()
    assert targets.load("numpy").refusal(create_backbone("test_convnext", channels=1)).startswith("it has no colors")
    monkeypatch.setenv("COLUMNS", "200")
    with pytest.raises(SystemExit):
        main(["export", "--help"])
    assert "numpy: arrays for numpy" in capsys.readouterr().out
