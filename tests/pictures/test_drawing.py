from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from densecl.errors import UserError
from densecl.pictures.drawing import save_picture


def test_a_picture_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    picture = Image.new("RGB", (4, 3), (1, 2, 3))
    save_picture(picture, tmp_path / "a.png")
    assert np.array_equal(np.asarray(Image.open(tmp_path / "a.png")), np.asarray(picture))
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]
    with pytest.raises(UserError, match="cannot be written"):
        save_picture(picture, tmp_path / "missing" / "a.png")
