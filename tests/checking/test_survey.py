"""What is said of each image, by images whose facts are known."""

from __future__ import annotations

import os

import numpy as np
import pytest
import torch
from PIL import Image

from densecl.checking.survey import difference_hash, survey
from densecl.errors import UserError
from densecl.images.sources import open_source
from tests.embedding.photos import draw
from tests.images.patches import Patches


def test_facts_of_each_image(tmp_path):
    draw(tmp_path / "a color.jpg", 3)
    Image.open(tmp_path / "a color.jpg").convert("L").save(tmp_path / "b gray.png")
    Image.new("RGB", (20, 30), (7, 8, 9)).save(tmp_path / "c one color.png")
    Image.fromarray(np.arange(40 * 50, dtype=np.uint16).reshape(40, 50)).save(tmp_path / "d deep.tif")
    (tmp_path / "e broken.jpg").write_bytes(b"\xff\xd8\xff\xe0 nothing")
    (tmp_path / "f no image.png").write_text("text")
    told = []
    found = survey(open_source(tmp_path, least_side=16), workers=0, read_timeout=9.0, progress=told.append)
    assert found.kinds == {"a JPEG image": 2, "a PNG image": 2, "a TIFF image": 1, "": 1}
    assert found.sides.tolist() == [[60, 83], [60, 83], [30, 20], [40, 50], [0, 0], [0, 0]]
    assert found.readable.tolist() == [True] * 4 + [False] * 2
    assert found.gray.tolist() == [False, True, False, True, False, False]
    assert found.deep.tolist() == [False, False, False, True, False, False]
    assert found.constant.tolist() == [False, False, True, False, False, False]
    assert [index for index, _ in found.bad] == [4, 5]
    assert told == [6]


def test_workers_change_nothing():
    alone, helped = (survey(Patches(40, bad=[3]), workers=workers, read_timeout=9.0) for workers in (0, 2))
    for one, other in zip(alone[:-1], helped[:-1], strict=True):
        assert np.array_equal(one, other) if isinstance(one, np.ndarray) else one == other


def test_the_hash_against_a_loop_over_areas():
    image = torch.randint(0, 256, (3, 80, 90), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    gray = torch.nn.functional.interpolate(image[None], (8, 9), mode="bilinear", antialias=True)[0].double().mean(dim=0)
    bits = "".join("01"[gray[row, col + 1] > gray[row, col]] for row in range(8) for col in range(8))
    assert difference_hash(image) == int(bits, 2)


def test_no_image_at_all(tmp_path):
    (tmp_path / "a.png").write_text("text")
    with pytest.raises(UserError, match=r"None of the 1 images can be read. The first: .*a.png: not a JPEG"):
        survey(open_source(tmp_path), workers=0, read_timeout=9.0)


def test_a_worker_that_is_stuck_is_told_without_resume(tmp_path):
    class Stuck(Patches):
        def read(self, index):
            os.kill(os.getpid(), 19)  # SIGSTOP
            return super().read(index)

    with pytest.raises(
        UserError, match=r"share gone\? --read-timeout waits longer".replace("--read-timeout", "read_timeout")
    ):
        survey(Stuck(4), workers=1, read_timeout=0.3)
