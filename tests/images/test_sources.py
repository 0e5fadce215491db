"""Listing, tiles and data sets."""

import os
import sys
import time
import tracemalloc
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from densecl.errors import UserError
from densecl.images import listing, paths, sources, unread
from densecl.images.cache import CachedSource
from densecl.images.decode import BadImage
from densecl.images.items import check_data_set
from densecl.images.paths import Strings, in_order
from densecl.images.sources import open_source

PIXELS = np.random.default_rng(0).integers(0, 256, (10, 14, 3), dtype=np.uint8)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    folder = tmp_path / "cache"
    monkeypatch.setattr(listing, "user_cache_path", lambda name: folder)
    return folder


@pytest.fixture
def root(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    return folder


def names(source):
    return [source.name(i) for i in range(len(source))]


def touch(root, *paths):
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).touch()


def listed(root):
    return [os.path.relpath(name, root) for name in names(open_source(root))]


# --- folders ------------------------------------------------------------------------------------------------------


def test_a_folder_is_listed_recursively_by_folder_then_name(root):
    touch(root, "b/2.PNG", "b/1.jpg", "b/a/3.tiff", "a.webp", "z.bmp", "c/x.npy", "c/y.tif", "B.jpeg")
    touch(
        root, "notes.txt", "c/labels.csv", "jpg", ".hidden.jpg", "._a.jpg", ".ipynb_checkpoints/b.jpg", "c/.trash/d.png"
    )
    expected = ["B.jpeg", "a.webp", "z.bmp", "b/1.jpg", "b/2.PNG", "b/a/3.tiff", "c/x.npy", "c/y.tif"]
    assert listed(root) == expected


def test_read_and_name(root):
    Image.fromarray(PIXELS).save(root / "a.png")
    source = open_source(root)
    assert np.array_equal(source.read(0).permute(1, 2, 0), PIXELS)
    assert source.name(0) == str(root / "a.png")
    assert open_source(root, channels=1).read(0).shape == (1, 10, 14)
    for index in (1, -1):
        with pytest.raises(IndexError):
            source.name(index)


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


@given(st.lists(st.binary(max_size=20), max_size=30))
def test_strings_come_out_as_they_went_in(strings):
    packed = Strings.pack(strings)
    assert [packed.get(i) for i in range(len(strings))] == strings


@given(st.sets(st.binary(min_size=1, max_size=8).filter(lambda name: b"\0" not in name)), st.integers(1, 5))
def test_merging_sorts(strings, chunk):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(paths, "CHUNK", chunk)
        assert list(in_order(iter(strings))) == sorted(strings)


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


def test_pictures_that_are_not_read_are_counted_and_told(root):
    touch(
        root, *(f"IMG_{n}.HEIC" for n in range(30)), "a.gif", "x/b.gif", "x/c.CR2", "scan.nii.gz", "film.MOV", "a.jpg"
    )
    touch(
        root,
        "README.txt",
        "labels.json",
        "a.xml",
        "a.txt",
        "x/Thumbs.db",
        "run.py",
        "table.csv",
        "model.pth",
        "LICENSE",
    )
    (note,) = open_source(root).notes()
    assert note.startswith("warning: left out: 30 .heic, 2 .gif, ")
    assert {"1 .cr2", "1 .nii.gz", "1 .mov"} <= set(
        note.partition(" (densecl reads .jpg ")[0].split(": ")[2].split(", ")
    )
    assert not any(word in note for word in (".txt", ".json", ".xml", ".db", ".py", ".csv", ".pth", "extension"))


def test_what_is_told_comes_through_tiles_and_the_cache(root, tmp_path):
    Image.fromarray(PIXELS).save(root / "a.png")
    touch(root, "b.heic")
    notes = open_source(root).notes()
    assert open_source(root, tile=5).notes() == notes != ()
    assert CachedSource(open_source(root), tmp_path / "decoded").notes() == notes


def test_few_pictures_left_out_are_no_warning_and_none_no_word(root):
    touch(root, *(f"{n}.jpg" for n in range(30)), "notes.txt")
    assert open_source(root).notes() == ()
    touch(root, "a.gif")
    assert open_source(root).notes()[0].startswith("left out: 1 .gif (")


def test_pictures_without_their_extension_are_known_by_their_content(root):
    touch(root, "a.jpg", "LICENSE", "notes.2024")
    for name in ("photo", "b.jpg_large", "c.1", "d.2"):
        Image.fromarray(PIXELS).save(root / name, "JPEG")
    (note,) = open_source(root).notes()
    assert "1 .jpg_large" in note and "1 .1" in note and "1 .2" in note
    assert "no known extension" not in note  # LICENSE is none
    (root / "LICENSE").unlink()
    assert "1 of no known extension" in open_source(root).notes()[0]


def test_what_a_folder_holds_when_there_is_no_image(root):
    touch(root, "a.heic", "b.heic", "c.json", "x/d.mp4", "readme")
    with pytest.raises(UserError) as error:
        open_source(root)
    assert (
        "It holds 2 .heic, " in str(error.value) and "1 .json" in str(error.value) and "reads .jpg" in str(error.value)
    )


def test_numbered_extensions_have_an_end(root, monkeypatch):
    monkeypatch.setattr(unread, "KINDS", 5)
    touch(root, "a.jpg", *(f"scan.{n:04}" for n in range(50)))
    assert open_source(root).notes() == ()


def test_system_folders_are_hidden(root):
    touch(root, "a.jpg", "@eaDir/a.jpg/SYNOPHOTO_THUMB_M.jpg", "__MACOSX/a.jpg")
    assert listed(root) == ["a.jpg"]


# --- the cache ----------------------------------------------------------------------------------------------------


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


# --- lists, globs, files ------------------------------------------------------------------------------------------


def test_a_text_file_of_paths(root, tmp_path):
    touch(root, "b.jpg", "a.jpg")
    elsewhere = tmp_path / "other.png"
    text = f"\ufeff# mine\nphotos/b.jpg\r\n\n  photos/a.jpg  \n{elsewhere}\nphotos/missing.jpg"
    (tmp_path / "list.txt").write_bytes(text.encode())
    source = open_source(tmp_path / "list.txt")
    assert names(source) == [str(root / "b.jpg"), str(root / "a.jpg"), str(elsewhere), str(root / "missing.jpg")]
    with pytest.raises(BadImage, match="No such file"):
        source.read(3)


def test_a_file_that_is_no_list(tmp_path):
    (tmp_path / "empty.txt").write_text("\n# nothing\n")
    with pytest.raises(UserError, match="lists no images"):
        open_source(tmp_path / "empty.txt")
    (tmp_path / "photos.zip").write_bytes(b"PK\x03\x04\0\0\0")
    with pytest.raises(UserError, match="is a zip archive: neither a folder, nor an image, .* Unpack it"):
        open_source(tmp_path / "photos.zip")


COCO = '{"info": {}, "images": [' + '{"id": 1, "file_name": "photos/a.jpg"}, ' * 50_000 + '], "annotations": []}'


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("coco.json", COCO, "is a JSON file of annotations, such as COCO's, not a list of images. Give the folder"),
        ("coco.json", COCO.replace(",", ",\n"), "is a JSON file of annotations"),
        ("coco.txt", COCO, "is a JSON file of annotations"),
        ("list.json", '["photos/a.jpg", "photos/b.jpg"]', "is a JSON file"),
        ("metadata.jsonl", '{"file_name": "photos/a.jpg"}\n', "is a JSON file of annotations"),
        ("data.yaml", "path: .\ntrain: photos\nnames: [cat, dog]\n", "is a YAML file, such as YOLO's"),
        ("recipe.yaml", "backbone: resnet50\n", "is a recipe. Settings go with config"),
        ("a.csv", "path,label\nphotos/a.jpg,3\n", "line 2, 'photos/a.jpg,3', holds more than the path 'photos/a.jpg'"),
        ("b.csv", "id;class\n17;3\n", "is not a list of images. data takes"),
        ("a.tsv", "photos/a.jpg\t3\n", "holds more than the path"),
        ("labels.txt", "photos/a.jpg 3\nphotos/b.jpg 1\n", "line 1, 'photos/a.jpg 3', holds more than the path"),
        ("pairs.txt", "photos/a.jpg photos/b.jpg\n", "holds more than the path"),
        ("voc.xml", "<annotation></annotation>", "is an XML or HTML file"),
        ("notes.md", "Some photos.\n", "no line names a file. The first, 'Some photos.', would be '"),
        ("lost.txt", "gone/a.jpg\n" * 1000, "none of its first 100 lines names a file"),
        ("folders.txt", "photos\n", "lists folders. It needs the path of an image on each line"),
        ("wide.txt", "x" * 10**6, "is not a list of images"),
        ("wide.txt", "photos/a.jpg\n" + "x" * 10**6, "is not a list of images|holds more"),
        ("utf16.txt", "photos/a.jpg\n".encode("utf-16"), "is a text in UTF-16 or UTF-32. Save it as UTF-8"),
        ("utf16le.txt", "photos/a.jpg\n".encode("utf-16-le"), "is a text in UTF-16 or UTF-32. Save it as UTF-8"),
        ("mac.txt", b"photos/a.jpg\rphotos/b.jpg\r", "has the line ends of old Macs"),
        ("lfs.txt", b"version https://git-lfs.github.com/spec/v1\noid sha256:x\n", "Git LFS pointer.*git lfs pull"),
        ("empty.txt", "", "is empty"),
        ("photos.tar", b"\0" * 257 + b"ustar", "is a tar archive.*Unpack it"),
        ("film.mp4", b"\0\0\0\x20ftypisom\0", "is a video.*ffmpeg"),
        ("a.heic", b"\0\0\0\x18ftypheic\0", "is a HEIC image, a format that is not read. Convert it"),
        ("w.pth", b"PK\x03\x04\0", "is a file of weights.*Weights go with init"),
        ("x.npz", b"PK\x03\x04\0", "is a file of NumPy arrays.*in Python"),
        ("x.parquet", b"PAR1\0", "is a Parquet table.*in Python"),
        ("x.dat", b"\1\2\0\3", "a file of another kind"),
    ],
)
def test_what_a_file_is_that_lists_no_images(root, tmp_path, name, content, message):
    touch(root, "a.jpg", "b.jpg")
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError, match=message) as error:
        open_source(tmp_path / name)
    assert len(str(error.value)) < 700 and str(error.value).isprintable()


@pytest.mark.skipif(sys.platform == "win32", reason="named pipes")
def test_what_is_no_file(tmp_path):
    os.mkfifo(tmp_path / "pipe.jpg")
    for path, message in (
        (tmp_path / "pipe.jpg", "is a named pipe"),
        ("/dev/null", "is a device"),
        ("s3://bucket/photos", "is an address"),
        ("https://example.org/photos.zip", "is an address"),
        (tmp_path / ("x" * 5000), "cannot be read"),
        ("a\0b", "cannot be read"),
        (tmp_path / "a\x1b31m\nb", r"no such folder or file: .*a\\x1b31m\\nb"),
        ("~nobody-of-that-name/photos", "no such folder"),
    ):
        with pytest.raises(UserError, match=message) as error:
            open_source(path)
        assert len(str(error.value)) < 500 and str(error.value).isprintable()


def test_what_was_perhaps_meant(root, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    touch(root, "a.jpg")
    for typed, meant in (("photos\\a.jpg", "photos/a.jpg"), ("photos/a.jpgg", "a.jpg"), ("fotos", "photos")):
        with pytest.raises(UserError, match=f"Did you mean '{meant}'"):
            open_source(typed)
    (root / "list.txt").write_text("photos/a.jpg\n")
    with pytest.raises(UserError, match="are there from the current folder"):
        open_source(root / "list.txt")


def test_the_address_of_a_local_file(root):
    touch(root, "a b.jpg")
    assert names(open_source(root.as_uri())) == [str(root / "a b.jpg")]
    assert names(open_source((root / "a b.jpg").as_uri())) == [str(root / "a b.jpg")]


@pytest.mark.parametrize(
    "line",
    [
        "photos/caf\u00e9.jpg",  # the file's name is decomposed
        "photos/cafe\u0301.jpg",
        '"photos/a b.jpg"',
        "'photos/a b.jpg'",
        "  photos/a b.jpg\t ",
        " photos/lead.jpg",  # begins with a blank
        "photos\\a b.jpg",
        '"photos\\a b.jpg"',
        "photos/it's.jpg",
        "./#1.jpg",
        "FOLDER/photos/a b.jpg",
        "file://FOLDER/photos/a%20b.jpg",
        "photos/../photos/a b.jpg",
    ],
)
def test_a_line_of_a_list_is_found_as_it_was_meant(root, tmp_path, line):
    touch(root, "cafe\u0301.jpg", "a b.jpg", "it's.jpg", "last.jpg")
    touch(tmp_path, "#1.jpg", " photos/lead.jpg")
    line = line.replace("FOLDER", str(tmp_path))
    (tmp_path / "list.txt").write_bytes(f"{line}\r\nphotos/last.jpg\r\n".encode())
    source = open_source(tmp_path / "list.txt")
    assert len(source) == 2
    assert os.path.isfile(source.name(0))
    assert source.notes() == ()


def test_a_list_moved_with_its_images_has_the_same_fingerprint(tmp_path):
    for place in ("here", "there"):
        touch(tmp_path, f"{place}/cafe\u0301.jpg", f"{place}/a b.jpg")
        (tmp_path / place / "list.txt").write_text('caf\u00e9.jpg\n"a b.jpg"\n')
    here, there = (open_source(tmp_path / place / "list.txt").fingerprint() for place in ("here", "there"))
    assert here == there


def test_a_header_of_one_column_is_no_image(root, tmp_path):
    touch(root, "a.jpg", "b.jpg")
    (tmp_path / "list.csv").write_text("path\nphotos/a.jpg\nphotos/b.jpg\n")
    source = open_source(tmp_path / "list.csv")
    assert names(source) == [str(root / "a.jpg"), str(root / "b.jpg")]
    assert source.notes() == ("left out: the first line of the list, 'path'",)


def test_an_array_of_many_images_is_no_image(tmp_path):
    np.save(tmp_path / "many.npy", np.stack([PIXELS] * 5))
    with pytest.raises(UserError, match="holds an array of 5x10x14x3, not one image"):
        open_source(tmp_path / "many.npy")
    np.save(tmp_path / "one.npy", PIXELS)
    assert open_source(tmp_path / "one.npy").read(0).shape == (3, 10, 14)


def test_one_image(root):
    Image.fromarray(PIXELS).save(root / "a.png")
    assert names(open_source(root / "a.png")) == [str(root / "a.png")]
    assert len(open_source(root / "a.png", tile=5)) == 2 * 3
    (root / "a.png").rename(root / "a")
    assert open_source(root / "a").read(0).shape == (3, 10, 14)


def test_globs(root, tmp_path, monkeypatch):
    touch(root, "x/b.jpg", "x/y/a.jpg", "x/y/c.png", "d.jpg")
    found = names(open_source(str(root / "**/*.jpg")))
    assert found == [str(root / "d.jpg"), str(root / "x/b.jpg"), str(root / "x/y/a.jpg")]
    monkeypatch.chdir(tmp_path)
    assert names(open_source("photos/x/*")) == [str(root / "x/b.jpg")]  # not the folder y
    with pytest.raises(UserError, match="no file matches"):
        open_source("photos/*.webp")
    touch(root, "x/notes.txt", "x/c.heic")
    source = open_source("photos/x/*")
    assert names(source) == [str(root / "x/b.jpg")]
    assert "1 .heic" in source.notes()[0]
    assert names(open_source("photos/x/*.heic")) == [str(root / "x/c.heic")]  # asked for
    touch(root, "cafe\u0301/a.jpg")
    assert len(open_source("photos/caf\u00e9/*.jpg")) == 1


# --- tiles --------------------------------------------------------------------------------------------------------


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


# --- data sets ----------------------------------------------------------------------------------------------------


class Items(torch.utils.data.Dataset):
    def __init__(self, items):
        self.items = items

    def __len__(self):
        return len(self.items)

    def __getitem__(self, index):
        item = self.items[index]
        if isinstance(item, Exception):
            raise item
        return item


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


def test_items_that_are_no_images():
    items = ["path.jpg", None, ValueError("truncated"), torch.zeros(3, 4, 5, dtype=torch.int64), np.zeros(5)]
    source = open_source(Items(items))
    for index, reason in enumerate(["but str", "but NoneType", "ValueError: truncated", "int64 pixels", "shape 5"]):
        with pytest.raises(BadImage, match=reason):
            source.read(index)


TENSOR = torch.from_numpy(PIXELS).permute(2, 0, 1)


@pytest.mark.parametrize(
    ("item", "message"),
    [
        ("photos/a.jpg", r"is of type str, 'photos/a.jpg'. For files give their folder"),
        (Path("a.jpg"), r"'a.jpg'. For files"),
        (None, r"is None. An item has to be"),
        (3, r"is of type int. An item"),
        ((3, Image.fromarray(PIXELS)), r"is a tuple of int, Image. An item has to be .* a tuple that begins with one"),
        ({"img": PIXELS, "label": 1}, r"""is a dict with 'img', 'label'. An item .* under "image"."""),
        ({"image": {"bytes": b"", "path": None}}, r"under 'image' a dict with 'bytes', 'path'. An item"),
        (
            TENSOR / 128 - 1,
            r"a float32 tensor of 3x10x14 from -1 to 0.99\d*: floats outside 0 to 1.*scale all images.*\. Leave out",
        ),
        (TENSOR.float(), r"from 0 to 255: floats outside 0 to 1"),
        (TENSOR.long(), r"is an int64 tensor of 3x10x14 from 0 to 255: int64 pixels .*scale all images alike"),
        (np.zeros((8, 8, 4), np.uint8), r"is a uint8 array of 8x8x4 .*: an array of shape 8x8x4, where 3 channels"),
        (torch.zeros(2, 3, 8, 8), r"is a float32 tensor of 2x3x8x8"),
        (KeyError(0), r"cannot be read: KeyError: 0"),
        (ValueError("\x1b[2J" + "x" * 10**6), r"cannot be read: ValueError: \\x1b"),
    ],
)
def test_what_the_items_are_is_said_before_the_run_if_none_is_an_image(item, message):
    with pytest.raises(UserError, match=message) as error:
        open_source(Items([item] * 3)).check()
    assert str(error.value).startswith("item 0 of the data set (Items) ")
    assert len(str(error.value)) < 500 and str(error.value).isprintable()


def test_some_items_without_an_image_are_left_to_the_run():
    open_source(Items([None, *[PIXELS] * 9])).check()


def test_a_tensor_that_numpy_does_not_know():
    assert open_source(Items([TENSOR.to(torch.bfloat16) / 256])).read(0).dtype == torch.uint16


def test_many_images_in_one_array():
    assert open_source(np.stack([PIXELS] * 5)).read(4).shape == (3, 10, 14)
    assert open_source(torch.stack([TENSOR] * 5), channels=3).read(4).shape == (3, 10, 14)
    assert len(open_source(np.stack([PIXELS[..., 0]] * 5))) == 5
    for single, layout in ((PIXELS, "images height width channels"), (TENSOR, "images channels height width")):
        with pytest.raises(UserError, match=f'of one image. It has to be "{layout}"'):
            open_source(single)
    with pytest.raises(UserError, match="is of shape 10x14"):
        open_source(PIXELS[..., 0])


def test_what_is_no_map_style_data_set():
    with pytest.raises(UserError, match="is empty"):
        open_source(Items([]))
    with pytest.raises(UserError, match="needs a length"):
        open_source(torch.utils.data.ChainDataset([Items([PIXELS])]))
    for other in (iter([PIXELS]), Items, None, 3):
        with pytest.raises(UserError, match="needs a length"):
            check_data_set(other)
    with pytest.raises(UserError, match="is a DataLoader, which gives batches"):
        check_data_set(torch.utils.data.DataLoader(Items([PIXELS])))
    frame = type("DataFrame", (), {"iloc": None, "__len__": lambda self: 1, "__getitem__": None})()
    with pytest.raises(UserError, match="is a DataFrame of pandas"):
        check_data_set(frame)
    with pytest.raises(UserError, match=r"a dict of 'train', 'test', not .* such as data\['train'\]"):
        check_data_set({"train": [PIXELS], "test": [PIXELS]})
