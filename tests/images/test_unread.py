"""Files that are not read: counted, and told if they are pictures."""

import pytest
from PIL import Image

from densecl.errors import UserError
from densecl.images import unread
from densecl.images.cache import CachedSource
from densecl.images.sources import open_source
from tests.images.folders import PIXELS, touch


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
