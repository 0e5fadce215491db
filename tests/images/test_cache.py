"""The cache changes nothing but the time, whatever happens to its files."""

import errno
import multiprocessing
import os
import shutil
import time

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image
from torch.utils.data import Dataset

from densecl.errors import UserError
from densecl.images import cache as cache_module
from densecl.images import sources
from densecl.images.cache import CachedSource
from densecl.images.decode import BadImage
from densecl.images.loader import make_loader
from densecl.images.sampler import StepSampler
from densecl.images.sources import open_source
from tests.images.patches import pairs_of


@pytest.fixture(autouse=True)
def any_disk_will_do(monkeypatch):
    monkeypatch.setattr(cache_module, "FREE_BYTES", 0)
    monkeypatch.setattr(cache_module, "FREE_FRACTION", 0.0)


@pytest.fixture
def root(tmp_path):
    """One image of each kind, all of noise."""
    folder = tmp_path / "photos"
    folder.mkdir()
    values = np.random.default_rng(0).integers(0, 256, (61, 80, 4), dtype=np.uint8)
    exif = Image.Exif()
    exif[274] = 6
    Image.fromarray(values[..., :3]).save(folder / "a.jpg", exif=exif)
    Image.fromarray(values).save(folder / "b.png")
    Image.fromarray(values[..., 0]).save(folder / "c.png")
    Image.fromarray(np.where([False, False, False, True], 255, values).astype(np.uint8)).save(folder / "opaque.png")
    tifffile.imwrite(folder / "d.tif", values[..., :3].astype(np.uint16) * 257, photometric="rgb")
    np.save(folder / "e.npy", values[..., :3].astype(np.float32).transpose(2, 0, 1) / 255)
    return folder


def files(folder):
    return sorted(path for path in folder.rglob("*") if path.is_file())


def never(*arguments, **settings):
    raise AssertionError("decoded again")


@pytest.mark.parametrize("settings", [{}, {"least_side": 25}, {"channels": 1}, {"tile": 30}])
def test_pixels_are_those_of_the_source_and_decoded_once(root, tmp_path, monkeypatch, settings):
    plain = open_source(root, **settings)
    expected = [plain.read(index) for index in range(len(plain))]
    cached = CachedSource(open_source(root, **settings), tmp_path / "cache")
    assert len(cached) == len(plain)
    assert cached.fingerprint() == plain.fingerprint()
    assert cached.name(2) == plain.name(2)
    for _ in range(2):
        for index, pixels in enumerate(expected):
            found = cached.read(index)
            assert found.dtype == pixels.dtype
            assert torch.equal(found, pixels)
        monkeypatch.setattr(sources, "decode", never)
    assert len(files(tmp_path / "cache")) == len(plain)


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_are_the_same_with_the_cache(root, tmp_path, workers):
    """Also in the layout of the crops' memory, which could decide on how they are resized."""
    (root / "bad.jpg").write_bytes(b"no image")
    sampler = StepSampler(7, 3, seed=0, stop_step=8)
    plain = list(make_loader(pairs_of(open_source(root)), sampler, workers=0))
    for _ in range(2):  # while the cache fills, and from it
        source = CachedSource(open_source(root), tmp_path / "cache")
        cached = list(make_loader(pairs_of(source), sampler, workers=workers))
        for one, other in zip(plain, cached, strict=True):
            assert torch.equal(one.pairs.first.pixels, other.pairs.first.pixels)
            assert torch.equal(one.pairs.second.pixels, other.pairs.second.pixels)
            assert torch.equal(one.pairs.second.box, other.pairs.second.box)
            assert one.bad == other.bad
    assert any(batch.bad for batch in plain)
    assert len(files(tmp_path / "cache")) == 6  # a bad image is not kept


def test_what_the_pixels_follow_from_is_in_the_key(root, tmp_path):
    def red(**settings):
        source = CachedSource(open_source(root / "b.png", **settings), tmp_path / "cache")
        return source.read(0)[0].float().mean().item()

    for settings in ({}, {"least_side": 25}, {"channels": 1}, {"tile": 61}):
        red(**settings)
    assert len(files(tmp_path / "cache")) == 4
    Image.new("RGB", (80, 61), (200, 0, 0)).save(root / "b.png")
    assert red() == 200
    Image.new("RGB", (80, 61), (100, 0, 0)).save(root / "b.png")  # the same size
    os.utime(root / "b.png", (time.time() + 5,) * 2)
    assert red() == 100
    (root / "b.png").unlink()
    with pytest.raises(UserError):
        red()


def test_a_file_that_disappeared_is_bad(root, tmp_path):
    source = CachedSource(open_source(root), tmp_path / "cache")
    source.read(1)
    (root / "b.png").unlink()
    with pytest.raises(BadImage, match="No such file"):
        source.read(1)


@pytest.mark.parametrize("damage", ["empty", "header", "short", "long", "lost page", "type", "folder"])
def test_a_damaged_file_is_replaced(tmp_path, damage):
    values = np.random.default_rng(0).integers(1, 256, (61, 80, 3), dtype=np.uint8)
    Image.fromarray(values).save(tmp_path / "a.png")
    source = CachedSource(open_source(tmp_path / "a.png"), tmp_path / "cache")
    expected = source.read(0)
    (file,) = files(tmp_path / "cache")
    whole = file.read_bytes()
    kinds = {
        "empty": b"",
        "header": whole[:17],
        "short": whole[:-1],
        "long": whole + b"\0",
        "lost page": whole[:4096] + bytes(4096) + whole[8192:],
        "type": b"\x07" + whole[1:],
    }
    if damage == "folder":
        file.unlink()
        file.mkdir()
        (file / "x").touch()
    else:
        file.write_bytes(kinds[damage])
    assert torch.equal(source.read(0), expected)
    if damage != "folder":
        assert file.read_bytes() == whole


def test_the_folder_may_be_deleted_while_in_use(root, tmp_path, caplog):
    source = CachedSource(open_source(root), tmp_path / "cache")
    expected = source.read(0)
    shutil.rmtree(tmp_path / "cache")
    assert torch.equal(source.read(0), expected)
    assert torch.equal(source.read(0), expected)
    assert "images are decoded each time" in caplog.text


def test_a_full_disk_is_not_filled_further(root, tmp_path, monkeypatch, caplog):
    source = CachedSource(open_source(root), tmp_path / "cache")
    source.read(0)
    monkeypatch.setattr(cache_module, "FREE_BYTES", 10**18)
    for _ in range(2):
        for index in range(len(source)):
            source.read(index)
    assert len(files(tmp_path / "cache")) == 1
    assert len(caplog.records) == 1 and "is full" in caplog.text


def test_a_write_that_fails_leaves_nothing(root, tmp_path, monkeypatch, caplog):
    source = CachedSource(open_source(root), tmp_path / "cache")
    expected = source.source.read(0)

    def replace(old, new):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(cache_module.os, "replace", replace)
    for _ in range(2):
        assert torch.equal(source.read(0), expected)
    assert files(tmp_path / "cache") == []
    assert len(caplog.records) == 1 and "No space left" in caplog.text


def test_what_was_left_unfinished_is_removed(root, tmp_path):
    CachedSource(open_source(root), tmp_path / "cache")
    old, new = tmp_path / "cache/unfinished/old", tmp_path / "cache/unfinished/new"
    for path in (old, new):
        path.touch()
    os.utime(old, (time.time() - 7200,) * 2)
    CachedSource(open_source(root), tmp_path / "cache")
    assert new.exists() and not old.exists()


def test_a_folder_that_cannot_be_written_is_refused(root, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"cache .*file: the folder cannot be written"):
        CachedSource(open_source(root), tmp_path / "file")


def test_a_data_set_is_refused(tmp_path):
    class One(Dataset):
        def __len__(self):
            return 1

    with pytest.raises(UserError, match="cache needs image files"):
        CachedSource(open_source(One()), tmp_path / "cache")


def test_forecast(root, tmp_path, monkeypatch):
    for number in range(94):
        shutil.copy(root / "b.png", root / f"z{number}.png")
    (root / "a.jpg").write_bytes(b"bad")  # the first is always asked
    source = CachedSource(open_source(root), tmp_path / "cache")
    assert source.forecast().endswith(": 100 images are 1.46 MB, 1.46 MB not in it yet")
    monkeypatch.setattr(cache_module, "FREE_BYTES", 10**18)
    assert source.forecast().endswith(": 100 images are 1.46 MB, 0.00 MB not in it yet"), "as far as it looks"
    shutil.rmtree(tmp_path / "cache")
    line = CachedSource(open_source(root), tmp_path / "cache").forecast()
    assert line.startswith("warning: ") and line.endswith("there is room for 0.00 MB")


def read_all(folder, cache, barrier, queue):
    torch.set_num_threads(1)
    cache_module.FREE_BYTES, cache_module.FREE_FRACTION = 0, 0.0
    source = CachedSource(open_source(folder), cache)
    barrier.wait(60)
    for _ in range(3):
        queue.put([int(source.read(index).to(torch.int64).sum()) for index in range(len(source))])


def test_processes_share_a_folder(root, tmp_path):
    context = multiprocessing.get_context("fork")
    barrier, queue = context.Barrier(3), context.Queue()
    arguments = (root, tmp_path / "cache", barrier, queue)
    processes = [context.Process(target=read_all, args=arguments) for _ in range(3)]
    for process in processes:
        process.start()
    found = [queue.get(timeout=60) for _ in range(9)]
    for process in processes:
        process.join(60)
    plain = open_source(root)
    assert found == [[int(plain.read(index).to(torch.int64).sum()) for index in range(len(plain))]] * 9
    assert len(files(tmp_path / "cache")) == len(plain)


@pytest.mark.parametrize("damage", ["pipe", "folder", "channels", "no rows", "promises more", "no folder"])
def test_what_should_not_be_there_is_replaced_at_once(tmp_path, damage):
    values = np.random.default_rng(0).integers(1, 256, (61, 80, 3), dtype=np.uint8)
    Image.fromarray(values).save(tmp_path / "a.png")
    source = CachedSource(open_source(tmp_path / "a.png"), tmp_path / "cache")
    expected = source.read(0)
    (file,) = files(tmp_path / "cache")
    whole = file.read_bytes()
    file.unlink()
    if damage == "pipe":
        os.mkfifo(file)
    elif damage == "folder":
        (file / "x").mkdir(parents=True)
    elif damage == "no folder":
        file.parent.rmdir()
        file.parent.touch()
    else:
        itemsize, channels, height, width = {
            "channels": (1, 1, 61 * 3, 80),
            "no rows": (1, 3, 0, 80),
            "promises more": (1, 3, 2**40, 2**10),
        }[damage]
        header = np.array([itemsize, channels, height, width, cache_module._check(expected.numpy().reshape(-1))], "<u8")
        with file.open("wb") as stream:
            stream.write(header.tobytes() + (whole[40:] if damage == "channels" else b""))
            if damage == "promises more":
                stream.truncate(40 + 2**41)  # sparse: nothing is written
    assert torch.equal(source.read(0), expected)
    assert file.read_bytes() == whole


def test_others_may_read_what_the_users_mask_lets_them(root, tmp_path):
    before = os.umask(0o022)
    try:
        CachedSource(open_source(root), tmp_path / "cache").read(0)
    finally:
        os.umask(before)
    assert {file.stat().st_mode & 0o777 for file in files(tmp_path / "cache")} == {0o644}
