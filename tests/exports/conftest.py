"""Networks are compared on a small image, to be quick."""

from __future__ import annotations

import pytest

from densecl.exports import program, verify


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verify, "IMAGE", (32, 64))
    monkeypatch.setattr(program, "IMAGE", (32, 64))
    monkeypatch.setattr(program, "EXAMPLE", (64, 96))
