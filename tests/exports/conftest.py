"""Networks are compared on a small image, to be quick."""

from __future__ import annotations

import pytest

from densecl.exports import program, verify


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verify, "IMAGE", (64, 128))
    monkeypatch.setattr(program, "IMAGE", (64, 128))
    monkeypatch.setattr(program, "EXAMPLE", (96, 160))
