from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from densecl.errors import UserError
from densecl.evaluation.boxed import LEAST_SIDE, Annotated, BoxedFiles, Object, open_boxed
from tests.evaluation.squares import squares, write_coco


@pytest.fixture
def coco(tmp_path: Path) -> Path:
    write_coco(tmp_path)
    return tmp_path


def write_voc(folder: Path) -> None:
    """The same squares as `write_coco`, as VOC has them: pixels are counted from 1, and both ends belong to the box."""
    for place in ("Annotations", "JPEGImages", "ImageSets/Main"):
        (folder / place).mkdir(parents=True)
    (folder / "Annotations/._mac.xml").write_bytes(b"\0")
    for split, count, extension in (("train", 4, "png"), ("val", 2, "PNG")):
        names = [f"{split}{number}" for number in range(count)]
        (folder / f"ImageSets/Main/{split}.txt").write_text("\r\n".join(names) + "\n", encoding="utf-8-sig")
        for name, item in zip(names, squares(count, seed=count), strict=True):
            Image.fromarray(item.image.permute(1, 2, 0).numpy()).save(folder / f"JPEGImages/{name}.{extension}")
            x0, y0, x1, y1 = map(int, item.boxes[0].tolist())
            text = f"""<name> {("red", "green")[int(item.labels[0]) - 1]} </name>
                <bndbox><xmax>{x1}</xmax><ymin>{y0 + 1}</ymin><xmin>{x0 + 1}</xmin><ymax>{y1}</ymax></bndbox>
                <part><name>head</name><bndbox><xmin>1</xmin></bndbox></part>"""
            (folder / f"Annotations/{name}.xml").write_text(
                f"<annotation><object>{text}</object><object>{text}<difficult>1</difficult></object></annotation>"
            )


def test_annotations_are_read(coco: Path, tmp_path: Path) -> None:
    write_voc(tmp_path / "voc")
    for folder, names in ((coco, ("red", "green")), (tmp_path / "voc", ("green", "red"))):
        for split, count in (("train", 4), (None, 2)):
            found = open_boxed(folder, split)
            assert found.names == names and len(found) == count
            for item, expected in zip(found, squares(count, seed=count), strict=True):
                assert torch.equal(item.image, expected.image) and torch.equal(item.boxes, expected.boxes)
                assert names[item.labels[0] - 1] == ("red", "green")[expected.labels[0] - 1]
            assert torch.equal(found.take([1])[0].image, found[1].image)


SIDES = st.floats(-1e30, 1e30) | st.floats(-10, 80) | st.sampled_from([0.0, 1e-7, 63.99, 64.0])


@given(st.lists(st.tuples(SIDES, SIDES, SIDES, SIDES), max_size=6))
def test_boxes_are_cut_to_their_image(image: Path, corners: list[tuple[float, float, float, float]]) -> None:
    boxes = [(min(x, u), min(y, v), max(x, u), max(y, v)) for x, y, u, v in corners]
    outside = any(x1 <= 0 or y1 <= 0 or x0 >= 64 or y0 >= 48 for x0, y0, x1, y1 in boxes)
    names = [str(number) for number in range(6)]  # every object of a class of its own
    item = Annotated(image, [Object(box, name) for box, name in zip(boxes, names, strict=False)], (64, 48))
    if outside:
        with pytest.raises(UserError, match="lies outside of the image of 64x48"):
            BoxedFiles([item], names, channels=3)
        return
    found = BoxedFiles([item], names, channels=3)[0]
    cut = [(max(x0, 0), max(y0, 0), min(x1, 64), min(y1, 48)) for x0, y0, x1, y1 in boxes]
    sides = [min(x1 - x0, y1 - y0) for x0, y0, x1, y1 in cut]
    kept = {label - 1: box for label, box in zip(found.labels.tolist(), found.boxes, strict=True)}
    assert (found.boxes[:, 2:] > found.boxes[:, :2]).all()
    for number, (box, side) in enumerate(zip(cut, sides, strict=True)):
        if side >= 1.01 * LEAST_SIDE:
            torch.testing.assert_close(kept[number], torch.tensor(box).float(), atol=1e-5, rtol=0)
        elif side < 0.99 * LEAST_SIDE:
            assert number not in kept


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("image") / "1.png"
    Image.new("RGB", (64, 48)).save(path)
    return path


def test_what_of_coco_cannot_be_used_is_named(coco: Path) -> None:
    with pytest.raises(UserError, match="no such folder"):
        open_boxed(coco / "nowhere", "train")
    with pytest.raises(UserError, match="no boxes of 'trian'.*It has train, val. Did you mean 'train'?"):
        open_boxed(coco, "trian")
    with pytest.raises(UserError, match="neither a test nor a val split"):
        open_boxed(coco / "train")
    (coco / "train/1.png").write_text("no image")
    with pytest.raises(UserError, match="1.png cannot be used"):
        open_boxed(coco, "train")
    (coco / "train/1.png").unlink()
    with pytest.raises(UserError, match="there is no file .*1.png"):
        open_boxed(coco, "train")

    image = {"id": 1, "file_name": "0.png"}
    category = {"id": 3, "name": "cat"}
    box = {"image_id": 1, "category_id": 3, "bbox": [1, 1, 5, 5]}
    for content, complaint in (
        ("{", "is not JSON"),
        ([], "holds a list"),
        ("[" * 100_000, "is not JSON"),
        ({}, "COCO's form: there is no 'categories'"),
        (
            {"images": [], "annotations": [], "categories": []},
            "there is no object in the split val. Is it one without labels",
        ),
        (([image], [{**box, "bbox": [1]}], [category]), "COCO's form: not enough values"),
        (([image], [{**box, "bbox": [1, 2, 3, float("nan")]}], [category]), r"a box in image 1 is \[1, 2, 3, nan"),
        (([image], [{**box, "bbox": [9, 9, -3, 4]}], [category]), r"a box in image 1 is \[9, 9, -3, 4"),
        (([image], [{**box, "bbox": [9, 9, 10**400, 4]}], [category]), "COCO's form: int too large"),
        (([image, image], [box], [category]), "two images have the same id"),
        (([image], [box], []), "a box is of category 3, which it does not have"),
        (([image], [box], [{**category, "id": "3"}]), "a box is of category 3, which it does not have"),
        (([{**image, "width": 48, "height": 64}], [box], [category]), "boxes are of an image of 48x64, but .* 64x64"),
        (([image], [{**box, "category_id": 4}], [category]), "a box is of category 4, which it does not have"),
        (([image], [{**box, "image_id": 4}], [category]), "a box is of image 4, which it does not have"),
        (
            ([image], [{**box, "bbox": [900, 1, 5, 5]}], [category]),
            r"0.png: the box of a cat from \(900, 1\)",
        ),
        (([{**image, "file_name": "x" * 500}], [], [category]), "there is no file .*xxx"),
    ):
        if isinstance(content, tuple):
            content = dict(zip(("images", "annotations", "categories"), content, strict=True))
        text = content if isinstance(content, str) else json.dumps(content)
        (coco / "annotations/instances_val.json").write_text(text)
        with pytest.raises(UserError, match=complaint):
            open_boxed(coco)


def test_what_of_voc_cannot_be_used_is_named(tmp_path: Path) -> None:
    write_voc(tmp_path)
    where = "<bndbox><xmin>1</xmin><ymin>1</ymin><xmax>5</xmax><ymax>{}</ymax></bndbox>"
    for text, complaint in (
        ("<annotation>", "train0.xml is not XML"),
        ('<?xml version="1.0" encoding="foo"?><a/>', "train0.xml is not XML: unknown encoding"),
        ("<a><object><name>cat</name></object></a>", "train0.xml, object 1: its bndbox has the sides"),
        (f"<a><object><name>cat</name>{where.format('nan')}</object></a>", "object 1: it has no name, or its bndbox"),
        (f"<a><object>{where.format(5)}</object></a>", "object 1: it has no name"),
    ):
        (tmp_path / "Annotations/train0.xml").write_text(text)
        with pytest.raises(UserError, match=complaint):
            open_boxed(tmp_path, "val")
    (tmp_path / "Annotations/train0.xml").write_text("<a><size><width>9</width><height>64</height></size></a>")
    with pytest.raises(UserError, match="train0.png: its boxes are of an image of 9x64, but upright it is 64x64"):
        open_boxed(tmp_path, "train")
    (tmp_path / "Annotations/train0.xml").unlink()
    with pytest.raises(UserError, match=r"train.txt, line 1: there is no file .*train0\.xml"):
        open_boxed(tmp_path, "train")
    (tmp_path / "JPEGImages/val1.PNG").unlink()
    with pytest.raises(UserError, match="val.txt, line 2: there is no image .*val1"):
        open_boxed(tmp_path)


def test_entities_of_a_hostile_file_are_not_expanded(tmp_path: Path) -> None:
    write_voc(tmp_path)
    levels = "".join(f'<!ENTITY e{n} "{f"&e{n - 1};" * 10}">' for n in range(1, 30))
    hostile = f'<!DOCTYPE a [<!ENTITY e0 "ha">{levels}]><a><object><name>&e29;</name></object></a>'
    (tmp_path / "Annotations/val0.xml").write_text(hostile)
    with pytest.raises(UserError, match="val0.xml is not XML"):
        open_boxed(tmp_path)
