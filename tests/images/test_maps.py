from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from densecl.errors import UserError
from densecl.images import maps as maps_module
from densecl.images.decode import BadImage
from densecl.images.maps import KeptMaps, cells_of_view
from densecl.images.sources import open_source

SHAPE = (5, 3, 4)


@pytest.fixture
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> KeptMaps:
    """The maps of three images; none is there yet."""
    monkeypatch.setattr(maps_module, "FREE_BYTES", 0)
    folder = tmp_path / "photos"
    folder.mkdir()
    for number in range(3):
        Image.new("RGB", (40 + number, 30)).save(folder / f"{number}.png")
    return KeptMaps(open_source(folder), tmp_path / "maps", "a teacher", SHAPE)


def test_what_is_written_is_read(kept: KeptMaps) -> None:
    assert list(kept.missing()) == [0, 1, 2]
    features = torch.randn(SHAPE)
    kept.write(1, features)
    kept.write(2, None)  # an image that cannot be read
    assert list(kept.missing()) == [0]
    assert torch.equal(kept.read(1), features.half())
    for index in (0, 2):
        with pytest.raises(BadImage, match="teacher's map"):
            kept.read(index)
    other = KeptMaps(kept.source, kept.folder, "another teacher", SHAPE)
    assert list(other.missing()) == [0, 1, 2]
    Image.new("RGB", (9, 9)).save(kept.folder.parent / "photos" / "1.png")  # another image under the same name
    assert list(kept.missing()) == [0, 1]


@pytest.mark.parametrize("damage", ["cut", "pickle", "another shape"])
def test_damaged_files(kept: KeptMaps, damage: str) -> None:
    kept.write(0, torch.zeros(SHAPE))
    (path,) = kept.folder.glob("??/*.npy")
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:-1])
        assert list(kept.missing()) == [0, 1, 2]
    elif damage == "pickle":
        np.save(path, np.array([print], dtype=object), allow_pickle=True)
        path.write_bytes(path.read_bytes().ljust(kept.bytes_each, b"\0"))
    else:
        np.save(path, np.zeros(SHAPE[::-1], np.float16))
    with pytest.raises(BadImage):
        kept.read(0)


def test_what_cannot_be_kept(kept: KeptMaps, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="too large for 16 bits"):
        kept.write(0, torch.full(SHAPE, 1e6))
    kept.check_space(3)
    monkeypatch.setattr(maps_module, "FREE_BYTES", 10**18)
    with pytest.raises(UserError, match=r"3 maps are 0.0 GB, and there is room for 0.0 GB"):
        kept.check_space(3)
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot be written"):
        KeptMaps(kept.source, tmp_path / "file", "a teacher", SHAPE)


@given(
    st.tuples(st.floats(0, 0.6), st.floats(0, 0.6), st.floats(0.2, 0.4), st.floats(0.2, 0.4)),
    st.booleans(),
    st.tuples(st.integers(1, 5), st.integers(1, 5)),
)
def test_a_view_gets_the_cells_behind_it(place: tuple[float, ...], flipped: bool, grid: tuple[int, int]) -> None:
    """In a map that says where it is, the cells of a view are the places of their centers."""
    rows, cols, height, width = 24, 30, 480, 900
    x = (torch.arange(cols) + 0.5) / cols * width
    y = (torch.arange(rows) + 0.5) / rows * height
    features = torch.stack([x.expand(rows, cols), y[:, None].expand(rows, cols)]).half()
    left, top, across, down = place
    box = torch.tensor([left * width, top * height, (left + across) * width, (top + down) * height])
    cells = cells_of_view(features, box, flipped, (height, width), grid)
    fractions = (torch.arange(grid[1]) + 0.5) / grid[1]
    expected = box[0] + (fractions.flip(0) if flipped else fractions) * (box[2] - box[0])
    # At the edge of the map the outer half of a cell is constant: 15 and 10 pixels there, and 16 bits are rounded.
    assert torch.allclose(cells[0], expected.expand(grid), atol=16)
    down_to = box[1] + (torch.arange(grid[0]) + 0.5) / grid[0] * (box[3] - box[1])
    assert torch.allclose(cells[1], down_to[:, None].expand(grid), atol=11)
    inner = cells[0, :, 1:-1], expected.expand(grid)[:, 1:-1]
    assert torch.allclose(*inner, atol=2)


def test_the_whole_image_gives_the_map_itself() -> None:
    features = torch.randn(SHAPE).half()
    box = torch.tensor([0.0, 0.0, 40.0, 30.0])
    cells = cells_of_view(features, box, False, (30, 40), SHAPE[1:])
    assert cells.shape == SHAPE
    coarse = cells_of_view(features, box, True, (30, 40), (1, 1))
    assert torch.allclose(coarse[:, 0, 0], features.float().mean(dim=(1, 2)), atol=0.35)
