from __future__ import annotations

import errno
import os
import shutil
import struct
import unicodedata
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from densecl.errors import UserError
from densecl.evaluation import label_map
from densecl.evaluation.files import visible
from densecl.evaluation.labeled import LabeledFiles, check_classes, is_labeled, open_labeled, resize, size_to_give
from densecl.images.listing import list_folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    image = np.zeros((4, 6, 3), dtype=np.uint8)
    image[:, 3:] = 200
    labels = np.zeros((4, 6), dtype=np.uint8)
    labels[:, 3:] = 9
    Image.fromarray(image).save(tmp_path / "a.png")
    Image.fromarray(labels).save(tmp_path / "a_labels.png")
    palette = Image.frombytes("P", (6, 4), labels.tobytes())
    palette.putpalette([255 - value // 3 for value in range(768)])
    palette.save(tmp_path / "b_labels.png")
    (tmp_path / "train.txt").write_text("a.png a_labels.png\n\na.png b_labels.png\n")
    return tmp_path


def test_pairs_are_read(folder: Path) -> None:
    files = open_labeled(folder, "train")
    assert len(files) == 2
    for image, labels in files:
        assert image.dtype == labels.dtype == torch.uint8
        assert image.shape == (3, 4, 6) and labels.shape == (4, 6)
        assert torch.equal(labels == 9, image[0] == 200)  # palette indices, not the palette's colors


def test_labels_are_resized_without_being_mixed(folder: Path) -> None:
    image, labels = open_labeled(folder, "train").resized((10, 8))[0]
    assert image.shape == (3, 8, 10) and labels.shape == (8, 10)
    assert labels.unique().tolist() == [0, 9]
    assert torch.equal(labels[0], torch.tensor([0] * 5 + [9] * 5, dtype=torch.uint8))


def test_what_cannot_be_used_is_named(folder: Path) -> None:
    (folder / "three.txt").write_text("a.png a_labels.png 3\n")
    with pytest.raises(UserError, match=r"three\.txt, line 1: expected 'image label' or a name, found 3"):
        open_labeled(folder, "three")
    (folder / "gone.txt").write_text("a.png a_labels.png\na.png gone.png\n")
    with pytest.raises(UserError, match=r"gone\.txt, line 2: there is no file .*gone\.png"):
        open_labeled(folder, "gone")
    (folder / "empty.txt").write_text("\n")
    with pytest.raises(UserError, match="the split empty is empty"):
        open_labeled(folder, "empty")
    with pytest.raises(UserError, match="has no split 'trian'.*It has .*train. Did you mean 'train'?"):
        open_labeled(folder, "trian")
    with pytest.raises(UserError, match="neither a test nor a val split"):
        open_labeled(folder)
    with pytest.raises(UserError, match="no such folder"):
        open_labeled(folder / "nothing", "train")
    Image.new("L", (5, 4)).save(folder / "small.png")
    (folder / "text.png").write_text("no image")
    (folder / "bad.txt").write_text("a.png small.png\na.png a.png\na.png text.png\ntext.png a_labels.png\n")
    bad = open_labeled(folder, str(folder / "bad.txt"))
    messages = ("is 6x4, but its label map .*small.png is 5x4", "not RGB", "label map", "cannot be used")
    for index, message in enumerate(messages):
        with pytest.raises(UserError, match=message):
            bad[index]


def test_voc_and_named_alike(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    image, labels = Image.open(folder / "a.png"), Image.open(folder / "b_labels.png")
    voc, alike = tmp_path / "voc", tmp_path / "alike"
    for place in ("ImageSets/Segmentation", "JPEGImages", "SegmentationClass"):
        (voc / place).mkdir(parents=True)
    image.save(voc / "JPEGImages/one.jpg")
    labels.save(voc / "SegmentationClass/one.png")
    (voc / "ImageSets/Segmentation/val.txt").write_text("one\n")
    for place in ("images/test", "labels/test"):
        (alike / place).mkdir(parents=True)
    image.save(alike / "images/test/one.jpg")
    labels.save(alike / "labels/test/one.png")
    for data in (voc, alike):
        files = open_labeled(data)  # the split to score on, whatever it is called
        assert len(files) == 1 and files[0][1].unique().tolist() == [0, 9]
    (folder / "named").mkdir()
    for kind, pixels in (("images", image), ("labels", labels)):
        (folder / "named" / kind).mkdir()
        pixels.save(folder / "named" / kind / "one.png")
    (folder / "named/val.txt").write_text("one\n", encoding="utf-8-sig")
    (folder / "named/images/one.png").rename(folder / "named/images/one.PNG")
    image.convert("L").save(folder / "named/labels/one.jpg")  # a preview, not the labels
    assert open_labeled(folder / "named")[0][1].unique().tolist() == [0, 9]
    for name in ("two", "x" * 500, "/"):
        (folder / "named/val.txt").write_text(f"one\n{name}\n")
        with pytest.raises(UserError, match=f"val.txt, line 2: there is no image .*{name[:50]}.*[.]"):
            open_labeled(folder / "named")
    (alike / "labels/test/one.png").unlink()
    with pytest.raises(UserError, match=r"images/test/one\.jpg: there is no label map .*labels/test/one\.\*\."):
        open_labeled(alike)
    really = os.stat

    def closed(path: str | Path, **more: bool) -> os.stat_result:
        if Path(path) == alike / "labels/test":  # chmod would not stop root
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)
        return really(path, **more)

    with monkeypatch.context() as patched:
        patched.setattr(os, "stat", closed)
        with pytest.raises(UserError, match=r"one\.jpg: .*alike/labels/test cannot be read: permission denied\.$"):
            open_labeled(alike)


def test_one_size_is_proposed_wherever_it_is_asked_for(tmp_path: Path) -> None:
    """There are three splits of three sizes; `evaluate` uses two of them unless it is told otherwise."""
    for split, side in (("train", 64), ("val", 320), ("test", 192)):
        for kind in ("images", "labels"):
            (tmp_path / kind / split).mkdir(parents=True)
            Image.new("L", (side, side // 2)).save(tmp_path / kind / split / "one.png")
    assert size_to_give(tmp_path) == (128, 64)  # between train and test
    both = [*open_labeled(tmp_path, "train").pairs, *open_labeled(tmp_path).pairs]
    with pytest.raises(UserError, match=r"image_size=\(128, 64\) is the usual one here"):
        LabeledFiles(both).common_size()
    shutil.rmtree(tmp_path / "images/test")
    shutil.copytree(tmp_path / "images/train", tmp_path / "images/test")
    shutil.copyfile(tmp_path / "labels/train/one.png", tmp_path / "labels/test/one.png")
    assert size_to_give(tmp_path) is None and size_to_give(tmp_path / "gone") is None


def test_what_a_set_says_of_itself(folder: Path) -> None:
    files = open_labeled(folder, "train")
    assert files.common_size() == (6, 4)
    assert files.survey() == {0: folder / "a_labels.png", 9: folder / "a_labels.png"}
    assert files.matching("a") == files.matching("a.p*") == [0, 1] and files.matching("b*") == []
    Image.new("RGB", (7, 4)).save(folder / "c.png")
    unequal = LabeledFiles([*files.pairs, (folder / "c.png", folder / "a_labels.png")])
    with pytest.raises(UserError, match=r"a\.png is 6x4, c\.png is 7x4"):
        unequal.common_size()
    with pytest.raises(UserError, match=r"c\.png is 7x4, but its label map .*a_labels.png is 6x4"):
        unequal.survey()


@pytest.mark.parametrize(
    ("labels", "settings", "complaint"),
    [
        ([0, 255], {}, r"to score on hold only the label 0 beside 255, which .*point\(\[.range\(255\), 1\]\)"),
        ([1, 255], {}, r"hold only the label 1 beside 255.*point\(\[.range\(255\), 0\]\)"),
        ([0, 255], {"classes": 2}, "hold only the label 0 beside 255"),
        ([255], {}, "hold no label beside 255"),
        ([0, 255], {"ignore": [0]}, r"hold no label beside those to ignore and 255.*point\(\[.range\(255\), 1\]\)"),
        ([0, 127, 255], {}, "2 labels, up to 127, beside 255, which stands .* classes=128"),
        ([0, 63, 127, 191, 255], {}, "4 labels, up to 191, beside 255, which"),
        ([7], {}, "hold only the label 7; a score needs two classes"),
        ([0, 7], {"ignore": [7]}, "hold only the label 0 beside those to ignore; a score needs two classes"),
        (
            [*range(0, 255, 6), 253, 255],
            {},
            r"44 labels, up to 253.*resized or stored as JPEG.*\[0\] . 128 . \[1\] . 128",
        ),
        ([0, 1, 7], {"classes": 2}, "map.png holds the label 7, but there are 2 classes"),
    ],
)
def test_labels_that_cannot_be_scored(labels: list[int], settings: dict, complaint: str) -> None:
    with pytest.raises(UserError, match=complaint):
        check_classes(dict.fromkeys(labels, Path("map.png")), "to score on", **settings)


def test_labels_that_can_be_scored() -> None:
    check_classes(dict.fromkeys([0, 1, 255], Path()), "to score on")
    check_classes(dict.fromkeys([3, 7, 9], Path()), "to score on", ignore=[9], classes=8)
    check_classes(dict.fromkeys(range(150), Path()), "to score on")
    check_classes(dict.fromkeys([*range(150), 254], Path()), "to score on", ignore=[254])
    check_classes(dict.fromkeys(range(255), Path()), "to score on", classes=255)
    check_classes(dict.fromkeys([0, 85, 170, 254], Path()), "to score on")
    check_classes(dict.fromkeys([0, 85, 170, 255], Path()), "to score on", classes=171)
    check_classes(dict.fromkeys([*range(90), 150, 255], Path()), "to score on")
    check_classes(dict.fromkeys([7, 26, 33, 255], Path()), "to score on")


def test_folders_below_a_split(folder: Path) -> None:
    for kind, name in (("images", "a.png"), ("labels", "a_labels.png")):
        (folder / kind / "val/city").mkdir(parents=True)
        (folder / kind / "val/.hidden").mkdir()
        (folder / name).rename(folder / kind / "val/city/a.png")
    (folder / "images/val/.hidden/b.png").write_bytes(b"")
    assert is_labeled(folder)
    assert [image.name for image, _ in open_labeled(folder).pairs] == ["a.png"]
    (folder / "labels/val/city/a.png").rename(folder / "labels/val/city/a.gif")
    with pytest.raises(UserError, match=r"no label map .*labels/val/city/a\..*a\.gif is there, which is of no format"):
        open_labeled(folder)
    (folder / "images/val/city/a.png").unlink()
    with pytest.raises(UserError, match="the split val is empty"):
        open_labeled(folder)


def test_what_is_told_of_255_mends_it(tmp_path: Path) -> None:
    Image.frombytes("L", (2, 1), b"\0\xff").save(tmp_path / "mask.png")
    with pytest.raises(UserError) as told:
        check_classes(_survey(tmp_path / "mask.png"), "to learn from")
    way = str(told.value).split("for each file: ")[1].removesuffix(".")
    file = tmp_path / "mask.png"
    eval(way, {"Image": Image, "file": file, "range": range})
    assert _survey(file).keys() == {0, 1}


def _survey(label_map: Path) -> dict[int, Path]:
    image = label_map.with_name("image.bmp")
    with Image.open(label_map) as file:
        Image.new("RGB", file.size).save(image)
    return LabeledFiles([(image, label_map)]).survey()


def gray_png(depth: int, values: list[int]) -> bytes:
    """A row of gray values of one, two or four bits."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    bits = "".join(f"{value:0{depth}b}" for value in values)
    row = b"\0" + int(bits, 2).to_bytes(len(bits) // 8, "big")
    header = struct.pack(">IIBBBBB", len(values), 1, depth, 0, 0, 0, 0)
    end = chunk(b"IDAT", zlib.compress(row)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + end


@pytest.mark.parametrize(("depth", "values"), [(1, [0, 1] * 4), (2, [0, 1, 2, 3]), (4, [0, 3, 14, 15])])
def test_labels_of_few_bits_are_what_they_say(tmp_path: Path, depth: int, values: list[int]) -> None:
    # Gray values of few bits pass for brightness in Pillow, which makes 255 of the highest.
    (tmp_path / "labels.png").write_bytes(gray_png(depth, values))
    assert _survey(tmp_path / "labels.png").keys() == set(values)


def test_texts_and_profiles_do_not_decide_about_labels(tmp_path: Path) -> None:
    Image.new("RGB", (4, 1)).save(tmp_path / "image.bmp")
    profile = zlib.compress(bytes(2**21))
    for name, content, check in ((b"iCCP", b"k\0\0" + profile, None), (b"tEXt", b"a\0b", 1)):
        whole = gray_png(4, [0, 3, 14, 15])
        chunk = name + content
        extra = struct.pack(">I", len(content)) + chunk + struct.pack(">I", check or zlib.crc32(chunk))
        (tmp_path / "labels.png").write_bytes(whole[:33] + extra + whole[33:])
        files = LabeledFiles([(tmp_path / "image.bmp", tmp_path / "labels.png")])
        assert files.survey().keys() == {0, 3, 14, 15}


@pytest.mark.parametrize("extension", [".png", ".bmp", ".tif"])
@pytest.mark.parametrize("mode", ["L", "P", "1"])
def test_formats_of_label_maps(tmp_path: Path, extension: str, mode: str) -> None:
    Image.frombytes("L", (2, 1), b"\0\xff" if mode == "1" else b"\0\1").convert(mode).save(tmp_path / f"m{extension}")
    assert _survey(tmp_path / f"m{extension}").keys() == {0, 1}


@pytest.mark.parametrize(
    ("format", "mode", "options", "complaint"),
    [
        ("JPEG", "L", {}, "is a JPEG, whose compression changes labels. Store label maps as PNG"),
        ("WEBP", "RGB", {}, "is a WebP, whose compression changes labels. Store"),
        ("TIFF", "L", {"compression": "jpeg"}, "its compression changes labels. Store"),
        ("TIFF", "L", {"tiffinfo": {262: 0}}, "stored in an unusual way .L;I.. Store"),  # white is zero
        ("PNG", "RGB", {}, "not RGB. Store the number of each pixel's class"),
        ("PNG", "I;16", {}, "eight-bit image of classes, not I;16. Store"),
        ("PNG", "LA", {}, "eight-bit image of classes, not LA. Store"),
        ("EPS", "L", {}, "no PNG, BMP or TIFF"),  # reaches no interpreter of PostScript
        ("GIF", "L", {}, "no PNG, BMP or TIFF"),
        ("PPM", "L", {}, "no PNG, BMP or TIFF"),
    ],
)
def test_files_that_hold_no_labels_whatever_their_name(
    tmp_path: Path, format: str, mode: str, options: dict, complaint: str
) -> None:
    image = Image.new(mode, (16, 16))
    image.save(tmp_path / "labels.png", format, **options)
    image.convert("RGB").save(tmp_path / "image.bmp")
    with pytest.raises(UserError, match=f"labels.png.* {complaint}"):
        LabeledFiles([(tmp_path / "image.bmp", tmp_path / "labels.png")]).survey()


def test_files_of_label_maps_that_cannot_be_read(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = LabeledFiles([(folder / "a.png", folder / "labels.png")])
    whole = (folder / "a_labels.png").read_bytes()
    for content, complaint in ((whole[:-20], "it is damaged"), (b"no image", "it is no PNG"), (b"", "it is no PNG")):
        (folder / "labels.png").write_bytes(content)
        with pytest.raises(UserError, match=f"labels.png cannot be read as a label map: {complaint}"):
            files.survey()
    (folder / "labels.png").unlink()
    os.mkfifo(folder / "labels.png")
    with pytest.raises(UserError, match="labels.png is no regular file"):
        files.survey()
    monkeypatch.setattr(label_map, "MAX_PIXELS", 23)
    with pytest.raises(UserError, match="a_labels.png has more than 23 pixels"):
        open_labeled(folder, "train").survey()
    monkeypatch.setattr(label_map, "MAX_BYTES", 10)
    with pytest.raises(UserError, match="a_labels.png is too large"):
        open_labeled(folder, "train").survey()


def write_split(folder: Path, name: str = "one", labels: str = "labels/test/{}.png") -> None:
    for place, mode in (("images/test/{}.png", "RGB"), (labels, "L")):
        path = folder / place.format(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.frombytes(mode, (2, 1), bytes(range(2 * len(mode)))).save(path)


def test_a_jpeg_is_no_label_map_in_any_layout(tmp_path: Path) -> None:
    write_split(tmp_path, labels="labels/test/{}.jpg")
    (tmp_path / "pairs.txt").write_text("images/test/one.png labels/test/one.jpg\n")
    (tmp_path / "names.txt").write_text("test/one\n")
    (tmp_path / "ImageSets/Segmentation").mkdir(parents=True)
    (tmp_path / "ImageSets/Segmentation/voc.txt").write_text("one\n")
    for new, old in (("JPEGImages", "images/test"), ("SegmentationClass", "labels/test")):
        (tmp_path / new).symlink_to(old)
    for split in ("test", "pairs", "names", "voc"):
        with pytest.raises(UserError, match="one.jpg is a JPEG, whose compression changes labels"):
            open_labeled(tmp_path, split).survey()
    Image.new("L", (2, 1)).save(tmp_path / "labels/test/one.bmp")  # beside it, the labels themselves
    assert open_labeled(tmp_path, "test").survey().keys() == {0}


def test_hidden_files_are_no_data(tmp_path: Path) -> None:
    write_split(tmp_path)
    for kind in ("images", "labels"):
        (tmp_path / kind / ".ipynb_checkpoints").mkdir()
        (tmp_path / kind / "test/._one.png").write_bytes(b"\0")
        (tmp_path / kind / "test/._two.png").write_bytes(b"\0")
    (tmp_path / "._val.txt").write_bytes(b"\0")
    assert len(open_labeled(tmp_path)) == 1
    with pytest.raises(UserError, match="It has test[.]"):
        open_labeled(tmp_path, "nowhere")
    # As for pre-training:
    assert [name for name in map(os.path.basename, list_folder(tmp_path).paths) if name.startswith(".")] == []
    assert sorted(path.name for path in visible(tmp_path, "**/*.png")) == ["one.png", "one.png"]


@pytest.mark.parametrize(("on_disk", "listed"), [("NFD", "NFC"), ("NFC", "NFD")])
def test_names_in_another_form(tmp_path: Path, on_disk: Any, listed: Any) -> None:
    there, said = (unicodedata.normalize(form, "caf\u00e9\u202f1") for form in (on_disk, listed))
    write_split(tmp_path, there)
    (tmp_path / "labels/test" / f"{there}.png").rename(tmp_path / "labels/test" / f"{said}.png")
    (tmp_path / "pairs.txt").write_text(f"images/test/{said}.png labels/test/{there}.png\n", encoding="utf-8")
    (tmp_path / "names.txt").write_text(f"test/{said}\n", encoding="utf-8")
    (tmp_path / "windows.txt").write_text(f"images\\test\\{said}.png labels\\test\\{said}.png\n", encoding="utf-8")
    for split in ("test", "pairs", "names", "windows"):
        assert open_labeled(tmp_path, split).survey().keys() == {0, 1}


def test_names_that_are_no_unicode_or_steer_a_terminal(tmp_path: Path) -> None:
    write_split(tmp_path, os.fsdecode(b"caf\xe9"))
    (tmp_path / "list.txt").write_bytes(b"test/caf\xe9\n")
    assert open_labeled(tmp_path, "list").survey().keys() == {0, 1}
    (tmp_path / "list.txt").write_bytes(b"test/caf\xe9\x1b[31m\n")
    with pytest.raises(UserError, match=r"there is no image .*caf.xe9.x1b.31m"):
        open_labeled(tmp_path, "list")


def test_lists_that_are_none(tmp_path: Path) -> None:
    (tmp_path / "binary.txt").write_bytes(b"\0")
    with pytest.raises(UserError, match="binary.txt is not a text file"):
        open_labeled(tmp_path, "binary")
    os.mkfifo(tmp_path / "pipe.txt")
    with pytest.raises(UserError, match="pipe.txt is no regular file"):
        open_labeled(tmp_path, "pipe")


def test_sixteen_bits_keep_their_range() -> None:
    image = torch.full((1, 4, 4), 60_000, dtype=torch.uint16)
    assert torch.equal(resize(image, (2, 3)), torch.full((1, 3, 2), 60_000, dtype=torch.uint16))


def test_images_of_different_sizes_need_one_which_is_proposed(tmp_path: Path) -> None:
    pairs = []
    for number, size in enumerate([(64, 48), (200, 100), (130, 100)]):
        pairs.append((tmp_path / f"{number}.png", tmp_path / f"{number}.png"))
        Image.new("L", size).save(pairs[-1][0])
    with pytest.raises(UserError) as told:
        LabeledFiles(pairs).common_size()
    assert told.value.args[0].endswith("1.png is 200x100. Give one for all: --image-size 128x96 is the usual one here.")
    assert LabeledFiles(pairs[:1]).common_size() == (64, 48)
