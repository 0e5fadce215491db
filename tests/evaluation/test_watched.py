from __future__ import annotations

import pytest

from densecl.evaluation import watched as home
from densecl.evaluation.watched import watched


def test_a_pass_that_takes_a_while_is_shown(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert list(watched([1, 2, 3], 5, 2, "features of the images")) == [1, 2, 3]
    assert capsys.readouterr().err == ""  # it was quick
    monkeypatch.setattr(home, "PATIENCE", 0.0)
    assert list(watched([1, 2, 3], 5, 2, "features of the images")) == [1, 2, 3]
    first, last = capsys.readouterr().err.splitlines()
    assert first.startswith("features of the images: image 2/5") and last.startswith(
        "features of the images: image 5/5"
    )
    assert list(watched([1, 2], 4, 2, None)) == [1, 2]
    assert capsys.readouterr().err == ""
