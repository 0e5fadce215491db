"""The images below a folder, listed anew or as they were saved."""

import os
import sys
import time
import tracemalloc
from contextlib import nullcontext
from pathlib import Path

import pytest
from PIL import Image

from densecl.errors import UserError
from densecl.images import listing
from densecl.images.decode import BadImage
from densecl.images.sources import open_source
from tests.images.folders import PIXELS, listed, names, touch


def test_a_folder_is_listed_recursively_by_folder_then_name(root):
    touch(root, "b/2.PNG", "b/1.jpg", "b/a/3.tiff", "a.webp", "z.bmp", "c/x.npy", "c/y.tif", "B.jpeg")
    touch(
        root, "notes.txt", "c/labels.csv", "jpg", ".hidden.jpg", "._a.jpg", ".ipynb_checkpoints/b.jpg", "c/.trash/d.png"
    )
    expected = ["B.jpeg", "a.webp", "z.bmp", "b/1.jpg", "b/2.PNG", "b/a/3.tiff", "c/x.npy", "c/y.tif"]
    assert listed(root) == expected


def test_links_are_followed_once(root, tmp_path):
    touch(root, "real/a.jpg")
    touch(tmp_path, "elsewhere/b.jpg", "elsewhere/c.jpg")
    (root / "real/loop").symlink_to(root)
    (root / "real/itself").symlink_to(root / "real/itself")
    (root / "again").symlink_to(tmp_path / "elsewhere")
    (root / "twice").symlink_to(tmp_path / "elsewhere")
    (root / "file.jpg").symlink_to(tmp_path / "elsewhere/b.jpg")
    (root / "lost.jpg").symlink_to(tmp_path / "nowhere.jpg")
    assert listed(root) == ["file.jpg", "lost.jpg", "again/b.jpg", "again/c.jpg", "real/a.jpg"]
    with pytest.raises(BadImage, match="No such file"):
        open_source(root).read(1)


@pytest.mark.skipif(sys.platform != "linux", reason="names of any bytes")
def test_odd_names_survive(root):
    odd = [b"caf\xc3\xa9.jpg", b"caf\xe9.jpg", b"new\nline.jpg", b"quote'\".jpg", "日本.jpg".encode(), b" .jpg"]
    for name in odd:
        Image.fromarray(PIXELS).save(os.path.join(os.fsencode(root), name), "PNG")
    source = open_source(root)
    assert [os.path.basename(os.fsencode(name)) for name in names(source)] == sorted(odd)
    assert all(source.read(i).shape == (3, 10, 14) for i in range(len(odd)))


def test_folders_without_images(root, tmp_path):
    with pytest.raises(UserError, match=r"no images in .*photos"):
        open_source(root)
    touch(root, "a.txt", "below/b.md")
    with pytest.raises(UserError, match=r"no images in .*photos"):
        open_source(root)
    with pytest.raises(UserError, match=r"no such folder or file: .*Did you mean 'photos'"):
        open_source(tmp_path / "photoss")


def test_folders_that_cannot_be_read(root, caplog, monkeypatch):
    touch(root, "a.jpg", "closed/b.jpg", "open/c.jpg")
    original = os.scandir
    closed = {root / "closed"}

    def scandir(folder):
        if Path(os.fsdecode(folder)) in closed:
            raise PermissionError(13, "Permission denied")
        return original(folder)

    monkeypatch.setattr(listing.os, "scandir", scandir)
    assert listed(root) == ["a.jpg", "open/c.jpg"]
    assert f"{root / 'closed'} (Permission denied)" in caplog.text
    closed.add(root)
    with pytest.raises(UserError, match=r"cannot read the folder .*photos: Permission denied"):
        open_source(root)


def test_system_folders_are_hidden(root):
    touch(root, "a.jpg", "@eaDir/a.jpg/SYNOPHOTO_THUMB_M.jpg", "__MACOSX/a.jpg")
    assert listed(root) == ["a.jpg"]


def age(root, seconds=100):
    for folder, _, _ in os.walk(root):
        os.utime(folder, (time.time() - seconds,) * 2)


@pytest.fixture
def scans(monkeypatch):
    calls = []
    original = listing._scan
    monkeypatch.setattr(listing, "CACHED_FROM", 2)
    monkeypatch.setattr(listing, "_scan", lambda root: calls.append(root) or original(root))
    return calls


def test_a_listing_is_cached_until_a_folder_changes(root, cache, scans):
    touch(root, "a.jpg", "x/b.jpg", "x/y/c.jpg", "empty/d.txt")
    age(root)
    first = listed(root)
    assert listed(root) == first == ["a.jpg", "x/b.jpg", "x/y/c.jpg"]
    assert len(scans) == 1
    for change, expected in [
        (lambda: touch(root, "x/y/d.jpg"), ["a.jpg", "x/b.jpg", "x/y/c.jpg", "x/y/d.jpg"]),
        (lambda: (root / "a.jpg").unlink(), ["x/b.jpg", "x/y/c.jpg", "x/y/d.jpg"]),
        (lambda: touch(root, "empty/e.jpg"), ["empty/e.jpg", "x/b.jpg", "x/y/c.jpg", "x/y/d.jpg"]),
        (lambda: (root / "x/b.jpg").rename(root / "x/z.jpg"), ["empty/e.jpg", "x/z.jpg", "x/y/c.jpg", "x/y/d.jpg"]),
    ]:
        change()
        assert listed(root) == expected
        age(root, 50)
        listed(root)
    before = len(scans)
    listed(root)
    assert len(scans) == before
    assert [path.suffix for path in cache.rglob("*") if path.is_file()] == [".npz"]


def test_a_folder_changed_just_now_is_not_cached(root, cache, scans):
    touch(root, "a.jpg", "b.jpg")
    assert listed(root) == listed(root)
    assert len(scans) == 2
    assert not cache.exists()


def test_small_folders_leave_nothing_behind(root, cache):
    touch(root, "a.jpg", "b.jpg")
    age(root)
    listed(root)
    assert not cache.exists()


def test_a_cached_listing_remembers_what_was_left_out(root, scans):
    touch(root, "a.jpg", "b.jpg", "c.heic")
    age(root)
    first = open_source(root).notes()
    assert open_source(root).notes() == first != ()
    assert len(scans) == 1


def test_another_version_and_other_extensions_list_anew(root, scans, monkeypatch):
    touch(root, "a.jpg", "b.jpg", "c.gif")
    age(root)
    listed(root)
    monkeypatch.setattr(listing, "VERSION", listing.VERSION + 1)
    listed(root)
    assert len(scans) == 2
    monkeypatch.setattr(listing, "EXTENSIONS", (*listing.EXTENSIONS, ".gif"))
    listed(root)
    assert len(scans) == 3


@pytest.mark.skipif(sys.platform == "win32", reason="modes")
def test_a_cached_listing_can_be_read_by_whom_the_user_lets(root, cache, scans):
    touch(root, "a.jpg", "b.jpg")
    age(root)
    listed(root)
    (file,) = cache.rglob("*.npz")
    umask = os.umask(0)
    os.umask(umask)
    assert file.stat().st_mode & 0o777 == 0o666 & ~umask


@pytest.mark.parametrize("damage", [b"", b"garbage", None])
def test_a_damaged_cache_is_only_slow(root, cache, scans, damage):
    touch(root, "a.jpg", "b.jpg")
    age(root)
    listed(root)
    (file,) = cache.rglob("*.npz")
    file.write_bytes(file.read_bytes()[:-200] if damage is None else damage)
    assert listed(root) == ["a.jpg", "b.jpg"]
    assert len(scans) == 2


def test_a_home_that_cannot_be_written_is_only_slow(root, cache, scans):
    cache.write_text("a file where the folder should be")
    touch(root, "a.jpg", "b.jpg")
    age(root)
    assert listed(root) == listed(root) == ["a.jpg", "b.jpg"]


def test_a_large_listing_is_compact(root, monkeypatch):
    count = 200_003

    class Entry:
        def __init__(self, number):
            self.name = b"%016d.jpg" % (number * 7919 % count)

        is_dir = is_symlink = lambda self: False
        is_file = lambda self: True  # noqa: E731

    monkeypatch.setattr(listing.os, "scandir", lambda folder: nullcontext(map(Entry, range(count))))
    tracemalloc.start()
    source = open_source(root)
    kept, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(source) == count
    assert source.name(123_456) == str(root / f"{123_456:016}.jpg")
    assert kept < 40 * count  # a million images: 40 MB
    assert peak < 100 * count  # ... and 100 MB while listing
