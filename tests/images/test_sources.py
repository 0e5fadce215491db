"""Files, tiles and data sets as sources."""

from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from densecl.errors import UserError
from densecl.images import sources
from densecl.images.cache import CachedSource
from densecl.images.decode import BadImage
from densecl.images.sources import JoinedSource, open_source
from tests.images.folders import PIXELS, Items, names


def test_read_and_name(root):
    Image.fromarray(PIXELS).save(root / "a.png")
    source = open_source(root)
    assert np.array_equal(source.read(0).permute(1, 2, 0), PIXELS)
    assert source.name(0) == str(root / "a.png")
    assert open_source(root, channels=1).read(0).shape == (1, 10, 14)
    for index in (1, -1):
        with pytest.raises(IndexError):
            source.name(index)


@given(height=st.integers(1, 40), width=st.integers(1, 40), tile=st.integers(1, 45))
def test_tiles_are_full_cover_the_image_and_are_named(tmp_path_factory, height, width, tile):
    folder = tmp_path_factory.mktemp("tiles")
    image = np.random.default_rng(0).integers(0, 256, (height, width), dtype=np.uint8)
    Image.fromarray(image).save(folder / "a.png")
    source = open_source(folder, channels=1, tile=tile)
    assert len(source) == -(-height // tile) * -(-width // tile)
    covered = np.zeros_like(image, dtype=bool)
    for index in range(len(source)):
        pixels = source.read(index)[0].numpy()
        assert pixels.shape == (min(tile, height), min(tile, width))
        left, top, across, down = map(int, source.name(index).partition("#xywh=")[2].split(","))
        assert np.array_equal(pixels, image[top : top + down, left : left + across])
        covered[top : top + down, left : left + across] = True
    assert covered.all()
    assert len(set(names(source))) == len(source)


def test_tiles_of_many_files_and_a_broken_one(root):
    Image.fromarray(PIXELS).save(root / "a.png")  # 10 x 14
    (root / "b.jpg").write_bytes(b"broken")
    exif = Image.Exif()
    exif[274] = 6  # upright it is 14 x 10
    Image.fromarray(PIXELS).save(root / "c.jpg", exif=exif)
    tifffile.imwrite(root / "d.tif", np.zeros((20, 3, 3), np.uint8), photometric="rgb")
    source = open_source(root, tile=7)
    assert len(source) == 4 + 1 + 4 + 3
    shapes = []
    for index in range(len(source)):
        try:
            shapes.append(tuple(source.read(index).shape[1:]))
        except BadImage:
            shapes.append(None)
    assert shapes == [(7, 7)] * 4 + [None] + [(7, 7)] * 4 + [(7, 3)] * 3
    assert source.name(4) == str(root / "b.jpg")
    last_of_c = source.name(8)
    assert last_of_c.endswith("c.jpg#xywh=3,7,7,7")


def test_headers_are_read_at_listing_only_with_tiles(root, monkeypatch):
    Image.fromarray(PIXELS).save(root / "a.png")
    monkeypatch.setattr(sources, "measure", None)
    open_source(root)
    with pytest.raises(TypeError):
        open_source(root, tile=4)


def test_a_file_that_shrank_since_is_bad(root):
    Image.fromarray(PIXELS).save(root / "a.png")
    source = open_source(root, tile=5)
    Image.fromarray(PIXELS[:4]).save(root / "a.png")
    with pytest.raises(BadImage, match="smaller than when it was listed"):
        source.read(5)


def test_tiles_need_a_size_and_files():
    with pytest.raises(UserError, match="tile=0"):
        open_source(__file__.replace("test_sources.py", "*.py"), tile=0)
    with pytest.raises(UserError, match="tile needs image files"):
        open_source(Items([PIXELS]), tile=4)


def test_data_sets_of_any_kind_of_image():
    tensor = torch.from_numpy(PIXELS).permute(2, 0, 1)
    image = Image.fromarray(PIXELS)
    items = [PIXELS, tensor, image, (image, 3), [tensor, "label"], {"image": PIXELS, "label": 1}, tensor.float() / 255]
    source = open_source(Items(items))
    assert len(source) == len(items)
    for index in range(len(items) - 1):
        assert torch.equal(source.read(index), tensor)
    deep = source.read(len(items) - 1)
    assert deep.dtype == torch.uint16
    assert torch.equal(deep.int(), tensor.int() * 257)
    assert source.name(2) == "item 2"


def test_tensors_are_channels_first_and_arrays_channels_last_when_both_fit():
    cube = np.random.default_rng(0).integers(0, 256, (3, 3, 3), dtype=np.uint8)
    source = open_source(Items([torch.from_numpy(cube), cube]))
    assert np.array_equal(source.read(0), cube)
    assert np.array_equal(source.read(1), cube.transpose(2, 0, 1))


def test_sides_are_those_of_the_image_itself(root):
    Image.fromarray(np.zeros((400, 300, 3), np.uint8)).save(root / "a.jpg")
    source = open_source(root, least_side=64)
    assert source.read(0).shape == (3, 100, 75)
    assert source.sides(0) == (400, 300)
    assert CachedSource(source, root / "cache").sides(0) == (400, 300)
    for read in (source, CachedSource(source, root / "cache"), open_source(root)):
        assert read.sides_after(0, read.read(0)) == (400, 300)
    joined = JoinedSource([source, source])
    for read in (joined, CachedSource(joined, root / "cache")):
        assert read.sides_after(1, read.read(1)) == (400, 300)
    assert open_source(root, tile=160).sides(0) == (160, 160)
    assert open_source([np.zeros((20, 30, 3), np.uint8)]).sides(0) == (20, 30)
    (root / "a.jpg").write_bytes(b"")
    with pytest.raises(BadImage):
        source.sides(0)


def test_several_sources_are_one_after_the_other(tmp_path: Path) -> None:
    for folder, count in (("a", 2), ("b", 3)):
        (tmp_path / folder).mkdir()
        for number in range(count):
            Image.new("RGB", (8 + number, 8), (number, 0, 0)).save(tmp_path / folder / f"{number}.png")
    both = (str(tmp_path / "b"), str(tmp_path / "a" / "*.png"))
    joined = open_source(both)
    alone = [open_source(each) for each in both]
    assert len(joined) == 5
    names = [source.name(index) for source in alone for index in range(len(source))]
    assert [joined.name(index) for index in range(5)] == names and len(set(names)) == 5
    assert torch.equal(joined.read(3), alone[1].read(0)) and joined.sides(2) == (8, 10)
    assert joined.key(4) == alone[1].key(1)
    assert joined.fingerprint() != open_source(both[::-1]).fingerprint()
    with pytest.raises(IndexError):
        joined.read(5)
    assert len(open_source(both[:1])) == 3


@pytest.mark.parametrize(
    ("others", "complaint"), [(("DATA", "DATA/"), "is given twice"), (("DATA/a", "DATA"), "a lies in .*Leave it out")]
)
def test_images_do_not_count_twice(tmp_path: Path, others: tuple[str, str], complaint: str) -> None:
    (tmp_path / "a").mkdir()
    for path in (tmp_path / "1.png", tmp_path / "a" / "2.png"):
        Image.new("RGB", (8, 8)).save(path)
    with pytest.raises(UserError, match=complaint):
        open_source(tuple(other.replace("DATA", str(tmp_path)) for other in others))
