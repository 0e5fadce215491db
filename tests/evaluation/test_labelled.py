from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from densecl.errors import UserError
from densecl.evaluation.labelled import LabelledFiles, open_labelled, resize


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
    files = open_labelled(folder, "train")
    assert len(files) == 2
    for image, labels in files:
        assert image.dtype == labels.dtype == torch.uint8
        assert image.shape == (3, 4, 6) and labels.shape == (4, 6)
        assert torch.equal(labels == 9, image[0] == 200)  # palette indices, not the palette's colours


def test_labels_are_resized_without_being_mixed(folder: Path) -> None:
    image, labels = open_labelled(folder, "train").resized((10, 8))[0]
    assert image.shape == (3, 8, 10) and labels.shape == (8, 10)
    assert labels.unique().tolist() == [0, 9]
    assert torch.equal(labels[0], torch.tensor([0] * 5 + [9] * 5, dtype=torch.uint8))


def test_what_cannot_be_used_is_named(folder: Path) -> None:
    (folder / "three.txt").write_text("a.png a_labels.png 3\n")
    with pytest.raises(UserError, match=r"three\.txt, line 1: expected 'image label' or a name, found 3"):
        open_labelled(folder, "three")
    (folder / "gone.txt").write_text("a.png a_labels.png\na.png gone.png\n")
    with pytest.raises(UserError, match=r"gone\.txt, line 2: there is no file .*gone\.png"):
        open_labelled(folder, "gone")
    (folder / "empty.txt").write_text("\n")
    with pytest.raises(UserError, match="the split empty is empty"):
        open_labelled(folder, "empty")
    with pytest.raises(UserError, match="has no split 'trian'.*It has .*train. Did you mean 'train'?"):
        open_labelled(folder, "trian")
    with pytest.raises(UserError, match="neither a test nor a val split"):
        open_labelled(folder)
    with pytest.raises(UserError, match="no such folder"):
        open_labelled(folder / "nothing", "train")
    Image.new("L", (5, 4)).save(folder / "small.png")
    (folder / "text.png").write_text("no image")
    (folder / "bad.txt").write_text("a.png small.png\na.png a.png\na.png text.png\ntext.png a_labels.png\n")
    bad = open_labelled(folder, str(folder / "bad.txt"))
    messages = ("is 6x4, but its label map .*small.png is 5x4", "not RGB", "label map", "cannot be used")
    for index, message in enumerate(messages):
        with pytest.raises(UserError, match=message):
            bad[index]


def test_voc_and_named_alike(folder: Path, tmp_path: Path) -> None:
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
        files = open_labelled(data)  # the split to score on, whatever it is called
        assert len(files) == 1 and files[0][1].unique().tolist() == [0, 9]
    (folder / "named").mkdir()
    for kind, pixels in (("images", image), ("labels", labels)):
        (folder / "named" / kind).mkdir()
        pixels.save(folder / "named" / kind / "one.png")
    (folder / "named/val.txt").write_text("one\n", encoding="utf-8-sig")
    (folder / "named/images/one.png").rename(folder / "named/images/one.PNG")
    image.convert("L").save(folder / "named/labels/one.jpg")  # a preview, not the labels
    assert open_labelled(folder / "named")[0][1].unique().tolist() == [0, 9]
    for name in ("two", "x" * 500, "/"):
        (folder / "named/val.txt").write_text(f"one\n{name}\n")
        with pytest.raises(UserError, match=f"val.txt, line 2: there is no image .*{name[:50]}.*[.]"):
            open_labelled(folder / "named")
    (alike / "labels/test/one.png").unlink()
    with pytest.raises(UserError, match=r"one\.jpg has no label map"):
        open_labelled(alike)


def test_what_a_set_says_of_itself(folder: Path) -> None:
    files = open_labelled(folder, "train")
    assert files.common_size() == (6, 4)
    assert files.count_classes() == 10 and files.count_classes(ignore=[9]) == 1
    with pytest.raises(UserError, match="holds no label but those to ignore"):
        files.count_classes(ignore=[0, 9])
    assert files.matching("a") == files.matching("a.p*") == [0, 1] and files.matching("b*") == []
    Image.new("RGB", (7, 4)).save(folder / "c.png")
    with pytest.raises(UserError, match=r"a\.png is 6x4, c\.png is 7x4.*--image-size"):
        LabelledFiles([*files.pairs, (folder / "c.png", folder / "a_labels.png")]).common_size()


def test_sixteen_bits_keep_their_range() -> None:
    image = torch.full((1, 4, 4), 60_000, dtype=torch.uint16)
    assert torch.equal(resize(image, (2, 3)), torch.full((1, 3, 2), 60_000, dtype=torch.uint16))
