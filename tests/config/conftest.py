from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture
def config(tmp_path: Path):
    """Writes a configuration file."""

    def write(text: str) -> Path:
        path = tmp_path / "config.yaml"
        path.write_text(text)
        return path

    return write
