"""What a path may name: a file, a glob, an address; and what it names wrongly."""

import os
import sys

import numpy as np
import pytest
from PIL import Image

from densecl.errors import UserError
from densecl.images.sources import open_source
from tests.images.folders import PIXELS, names, touch


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
