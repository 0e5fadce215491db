from __future__ import annotations

import json
import unicodedata
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from densecl.errors import UserError
from densecl.evaluation.boxed import LEAST_SIDE, BoxedFiles, is_boxed, open_boxed, share_classes
from densecl.evaluation.boxes.annotated import Annotated, Object
from tests.evaluation.squares import squares, write_coco


def write_yolo(folder: Path, images: str) -> None:
    """Two images for each split, one with a box; where no part of their path says images, labels lie beside them."""
    for split in ("train", "val"):
        place = folder / images.format(split)
        labels = folder / images.format(split).replace("images", "labels")
        for each in (place, labels):
            each.mkdir(parents=True, exist_ok=True)
        for name in ("b", unicodedata.normalize("NFD", "caf\u00e9")):
            Image.new("RGB", (64, 48)).save(place / f"{name}.png")
        (labels / "caf\u00e9.txt").write_text(LINE)


@pytest.fixture
def voc(tmp_path: Path) -> Path:
    write_voc(tmp_path)
    return tmp_path


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
    item = Annotated(image, [Object(box, name, "here") for box, name in zip(boxes, names, strict=False)], (64, 48))
    if outside:
        with pytest.raises(UserError, match="here: the box of a . from .* lies outside of the image of 64x48"):
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
    with pytest.raises(UserError, match="no such folder.*Give the folder that it describes"):
        open_boxed(coco / "annotations/instances_val.json", "train")
    with pytest.raises(UserError, match="no boxes of 'trian'.*It has train, val. Did you mean 'train'?"):
        open_boxed(coco, "trian")
    with pytest.raises(UserError, match="neither a test nor a val split"):
        open_boxed(coco / "train")
    (coco / "train/1.png").write_text("no image")
    with pytest.raises(UserError, match="1.png cannot be used"):
        open_boxed(coco, "train")
    (coco / "train/1.png").unlink()
    with pytest.raises(UserError, match="train.json, image 2 .id 8.: there is no file 1.png in .*train; its file_name"):
        open_boxed(coco, "train")


IMAGE = {"id": 1, "file_name": "0.png"}
CATEGORY = {"id": 3, "name": "cat"}
BOX = {"id": 5, "image_id": 1, "category_id": 3, "bbox": [1, 1, 5, 5]}


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ("{", "is not JSON: it breaks off or goes wrong at line 1, column 2"),
        ("", "is not JSON: it breaks off or goes wrong at line 1, column 1"),
        ("[" * 100_000, "is nested too deeply"),
        ('{"images": ' + "9" * 5000 + "}", "holds a number of thousands of digits"),
        ([], "holds a list, as results are, where images, annotations and categories belong"),
        (None, "it holds null"),
        ({}, "COCO's form: there is no 'categories'"),
        ({"images": [], "categories": []}, "there is no 'annotations'. Is it a split without labels?"),
        (([], [], []), "there is no object in the split val. If it is one without labels, name another"),
        ((None, [], []), "'images' is null, not a list"),
        (([IMAGE], {}, [CATEGORY]), "'annotations' is a mapping, not a list"),
        (([IMAGE], [BOX, 3], [CATEGORY]), "annotation 2: it is 3, where a mapping"),
        (([IMAGE, IMAGE], [BOX], [CATEGORY]), "image 2 .id 1.: an image before it has the same id"),
        (([{"id": 1}], [BOX], [CATEGORY]), "image 1 .id 1.: it has no file_name"),
        (([{"file_name": "0.png"}], [BOX], [CATEGORY]), "image 1: it has no id"),
        (([{**IMAGE, "width": -9, "height": 64}], [BOX], [CATEGORY]), "image 1 .id 1.: width and height .* -9 and 64"),
        (([{**IMAGE, "width": 48, "height": 64}], [BOX], [CATEGORY]), "are of an image of 48x64, but .* 64x64"),
        (([{**IMAGE, "file_name": "x" * 500}], [], [CATEGORY]), "image 1 .id 1.: there is no file xxx"),
        (([{**IMAGE, "file_name": "a\0b\n\x1b[31m\ud800"}], [], [CATEGORY]), r"file a.x00b.n.x1b.31m.ud800 in"),
        (([IMAGE], [BOX], []), "annotation 1 .id 5.: it is of category 3, which the file does not list"),
        (([IMAGE], [BOX], [{"id": 3}]), "category 1 .id 3.: it has no name"),
        (([IMAGE], [BOX], [CATEGORY, {"id": 3, "name": "dog"}]), "category 2 .id 3.: it is called 'dog', but"),
        (([IMAGE], [BOX], [{**CATEGORY, "id": True}]), "its id is true"),
        (([IMAGE], [{**BOX, "category_id": "x"}], [CATEGORY]), "it is of category 'x', which the file does not list"),
        (([IMAGE], [{**BOX, "image_id": 4}], [CATEGORY]), "it is of image 4, which the file does not list"),
        (([IMAGE], [{**BOX, "image_id": None}], [CATEGORY]), "annotation 1 .id 5.: it has no image_id"),
        (([IMAGE], [{**BOX, "iscrowd": "x"}], [CATEGORY]), "its iscrowd is 'x'; expected 0 or 1"),
        (
            ([IMAGE], [{**BOX, "bbox": [900, 1, 5, 5]}], [CATEGORY]),
            r"annotation 1 .id 5.: the box of a cat from .900, 1",
        ),
        (
            ([IMAGE], [{**BOX, "bbox": [0.1, 0.2, 0.3, 0.4]}], [CATEGORY]),
            "within the first pixel.* fractions of its sides",
        ),
        *(
            (([IMAGE], [{**BOX, "bbox": bbox}], [CATEGORY]), f"instances_val.json, annotation 1 .id 5.: .*{complaint}")
            for bbox, complaint in (
                (None, "it has no bbox; add one"),
                ([1], r"its bbox is \[1\]; expected four numbers \[x, y, width, height\]"),
                ([1, 2, 3, 4, 5], "expected four numbers"),
                ("1,2,3,4", "its bbox is '1,2,3,4'; expected four"),
                (5, "its bbox is 5; expected four"),
                (["a", None, [1], {}], "its bbox is a list of 4; expected four"),
                ([1, 2, True, 4], r"its bbox is \[1, 2, true, 4\]; expected four"),
                ([1, 2, 3, float("nan")], r"its bbox is \[1, 2, 3, nan\]; expected four"),
                ([9, 9, 10**400, 4], r"its bbox is \[9, 9, a huge number, 4\]; expected four"),
                ([9, 9, -3, 4], "width and height, the last two, cannot be negative"),
            )
        ),
        (([IMAGE], [{**BOX, "bbox": [], "segmentation": {"counts": "x"}}], [CATEGORY]), "it has no bbox; add one"),
        (([IMAGE], [{**BOX, "bbox": [], "segmentation": [[1, 2, 3]]}], [CATEGORY]), r"\[1, 2, 3\] is no polygon"),
    ],
)
def test_what_of_cocos_file_cannot_be_used_is_named(coco: Path, content: object, complaint: str) -> None:
    if isinstance(content, tuple):
        content = dict(zip(("images", "annotations", "categories"), content, strict=True))
    text = content if isinstance(content, str) else json.dumps(content)
    (coco / "annotations/instances_val.json").write_text(text)
    with pytest.raises(UserError, match=complaint):
        open_boxed(coco)


def test_ids_numbers_and_boxes_that_tools_write_otherwise(coco: Path) -> None:
    image, category = {**IMAGE, "id": "1", "width": "64", "height": 64.0}, {**CATEGORY, "id": 3.0, "name": " cat "}
    polygon = {"image_id": 1, "category_id": "3", "segmentation": [[4, 5, 9, 5, 9, 8], [20, 3, 22, 3, 22, 4]]}
    text = {**BOX, "bbox": ["4", "3", "18", "5"], "iscrowd": None, "id": None}
    content = {"images": [image], "annotations": [polygon, text, {**BOX, "iscrowd": True}], "categories": [category]}
    (coco / "annotations/instances_val.json").write_bytes(json.dumps(content).encode("utf-16"))
    found = open_boxed(coco)
    assert found.names == ("cat",) and found[0].boxes.tolist() == [[4, 3, 22, 8]] * 2


@pytest.mark.parametrize(
    ("annotations", "images"),
    [
        ("annotations/instances_{}.json", "images"),
        ("annotations/instances_{}.json", "images/{}"),
        ("annotations/instances_{}.json", "{}/images"),
        ("annotations/instances_{}2017.json", "images/{}2017"),
        ("annotations/instances_{}.json", "images/{}2017"),
        ("annotations/{}.json", "{}"),
        ("{}/_annotations.coco.json", "{}"),
    ],
)
def test_places_of_cocos_files(tmp_path: Path, annotations: str, images: str) -> None:
    (tmp_path / "coco").mkdir()
    write_coco(tmp_path / "coco")
    for split in ("train", "val"):
        moved, new = tmp_path / "coco" / annotations.format(split), tmp_path / "coco" / images.format(split)
        for old in (tmp_path / "coco" / split).iterdir():
            name = old.name if "{" in images else f"{split}{old.name}"
            new.mkdir(parents=True, exist_ok=True)
            old.rename(new / name)
        first = tmp_path / f"coco/annotations/instances_{split}.json"
        text = first.read_text()
        first.unlink()
        moved.write_text(text if "{" in images else text.replace('"file_name": "', f'"file_name": "{split}'))
    for split, count in (("train", 4), (None, 2)):
        found = open_boxed(tmp_path / "coco", split)
        assert [len(item.boxes) for item in found] == [1] * count


def test_a_file_of_coco_chooses_nothing_outside_of_its_folder(tmp_path: Path) -> None:
    (tmp_path / "coco").mkdir()
    write_coco(tmp_path / "coco")
    Image.new("RGB", (64, 64)).save(tmp_path / "0.png")
    path = tmp_path / "coco/annotations/instances_val.json"
    text = path.read_text()
    for name in ("../../0.png", str(tmp_path / "0.png"), "https://example.org/0.png", r"C:\\images\\0.png"):
        path.write_text(text.replace('"0.png"', f'"{name}"'))
        with pytest.raises(UserError, match="image 1 .id 7.: there is no file .*0.png in .*val; its file_name must be"):
            open_boxed(tmp_path / "coco")
    for name in ("./0.png", "../val/0.png", str(tmp_path / "coco/val/0.png"), r"..\\val\\0.png"):
        path.write_text(text.replace('"0.png"', f'"{name}"'))
        assert len(open_boxed(tmp_path / "coco")) == 2


@pytest.mark.parametrize(("on_disk", "in_file"), [("NFD", "NFC"), ("NFC", "NFD")])
def test_names_with_accents_in_their_other_form(coco: Path, on_disk: Any, in_file: Any) -> None:
    name = "caf\u00e9.png"
    (coco / "val/0.png").rename(coco / "val" / unicodedata.normalize(on_disk, name))
    path = coco / "annotations/instances_val.json"
    path.write_text(path.read_text().replace('"0.png"', json.dumps(unicodedata.normalize(in_file, name))))
    assert len(open_boxed(coco)[0].boxes) == 1


def test_classes_of_both_splits(tmp_path: Path) -> None:
    write_coco(tmp_path)
    path = tmp_path / "annotations/instances_val.json"
    content = json.loads(path.read_text())
    group, blue = {"id": 0, "name": "colors", "supercategory": "none"}, {"id": 3, "name": "blue"}
    content["categories"] = [group, blue, {"id": 20, "name": "red"}]  # numbered otherwise, and green is not listed
    content["annotations"] = [{**BOX, "image_id": 7, "category_id": key} for key in (3, 20)]
    path.write_text(json.dumps(content))
    train, test = share_classes(open_boxed(tmp_path, "train"), open_boxed(tmp_path))
    assert train.names == test.names == ("red", "green", "blue")
    assert train.occurring() == {"red", "green"} and test.occurring() == {"red", "blue"}
    assert test[0].labels.tolist() == [3, 1]


def test_the_name_of_a_class_in_either_form(tmp_path: Path) -> None:
    write_coco(tmp_path)
    for split, form in (("train", "NFC"), ("val", "NFD")):
        path = tmp_path / f"annotations/instances_{split}.json"
        path.write_text(path.read_text().replace("red", unicodedata.normalize(form, " caf\u00e9 ")), encoding="utf-8")
    train, test = share_classes(open_boxed(tmp_path, "train"), open_boxed(tmp_path))
    assert train.names == ("caf\u00e9", "green") and train.occurring() == test.occurring()


# --- VOC ------------------------------------------------------------------------------------------------------------

WHERE = "<bndbox><xmin>{}</xmin><ymin>1</ymin><xmax>5</xmax><ymax>5</ymax></bndbox>"
OBJECT = f"<object><name>cat</name>{WHERE}</object>"
SIZE = "<size><width>{}</width><height>64</height></size>"


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("<annotation>", "train0.xml is not XML"),
        ('<?xml version="1.0" encoding="foo"?><a/>', "train0.xml is not XML: unknown encoding"),
        ("<a><object><name>cat</name><bndbox/></object></a>", "train0.xml, object 1: its bndbox has the sides"),
        (f"<a><object>{WHERE.format(1)}</object></a>", "train0.xml, object 1: it has no name"),
        (f"<a>{OBJECT.format(1)}{OBJECT.format(7)}</a>", "object 2: .*'7', '1', '5', '5'.; xmax or ymax is less"),
        *(
            (
                f"<a>{OBJECT.format(side)}</a>",
                "object 1: its bndbox has the sides .*; expected xmin, ymin, xmax and ymax",
            )
            for side in ("nan", "inf", "1e400", "1_0", "true", "", "9" * 5000, "\u0661", "<b/>")
        ),
        *(
            (f"<a>{SIZE.format(side)}{OBJECT.format(1)}</a>", "train0.xml: width and height of the image are '.*; give")
            for side in ("9" * 5000, "-64", "x", "nan", "64.5", "1e400", "\u0661")
        ),
        ("<html><body/></html>", "train0.xml is no annotation of VOC: it holds 'html'"),
        (f'<annotation xmlns="x">{OBJECT.format(1)}</annotation>', "is no annotation of VOC"),
        ("<a><object><name>cat</name><polygon/></object></a>", "object 1: it has no bndbox; add one"),
        (f"<a>{SIZE.format(9)}<object/></a>", "object 1: it has no name"),
        (
            f"<annotation>{SIZE.format(9)}</annotation>",
            "train0.png: its boxes are of an image of 9x64, but upright it is 64x64",
        ),
    ],
)
def test_what_of_vocs_files_cannot_be_used_is_named(voc: Path, text: str, complaint: str) -> None:
    (voc / "Annotations/train0.xml").write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match=complaint):
        open_boxed(voc, "train")
    assert len(open_boxed(voc)) == 2  # a file of another split stops nobody


def test_what_of_voc_is_missing_is_named(voc: Path) -> None:
    (voc / "Annotations/train0.xml").unlink()
    with pytest.raises(UserError, match=r"train.txt, line 1: there is no file .*train0\.xml"):
        open_boxed(voc, "train")
    (voc / "JPEGImages/val1.PNG").unlink()
    with pytest.raises(UserError, match="val.txt, line 2: there is no image .*val1"):
        open_boxed(voc)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
def test_entities_of_a_hostile_file_are_not_expanded(voc: Path, encoding: str) -> None:
    levels = "".join(f'<!ENTITY e{n} "{f"&e{n - 1};" * 10}">' for n in range(1, 30))
    hostile = f'<!DOCTYPE a [<!ENTITY e0 "ha">{levels}]><a><object><name>&e29;</name></object></a>'
    (voc / "Annotations/val0.xml").write_text(f'<?xml version="1.0" encoding="{encoding}"?>{hostile}', encoding)
    with pytest.raises(UserError, match="val0.xml declares entities"):
        open_boxed(voc)


def test_vocs_files_beside_their_images(voc: Path) -> None:
    for split in ("train", "val"):
        (voc / split).mkdir()
        for place in ("Annotations", "JPEGImages"):
            for path in (voc / place).glob(f"{split}*"):
                path.rename(voc / split / path.name)
        (voc / f"ImageSets/Main/{split}.txt").unlink()
        (voc / split / "._0.xml").write_bytes(b"\0")
    found = open_boxed(voc)
    assert found.names == ("green", "red") and [len(item.boxes) for item in found] == [1, 1]


# --- YOLO -----------------------------------------------------------------------------------------------------------

LINE = "0 0.5 0.5 0.25 0.5\n"


@pytest.mark.parametrize(
    ("images", "description"),
    [
        ("images/{}", "path: .\ntrain: images/train\nval: images/val\nnames: {0: red, 1: green}\n"),
        ("images/{}", "path: /content/datasets/mine\ntrain: [images/train]\nval: images/val\nnames: [red, no]\n"),
        ("images/{}", "train: train.txt\nval: val.txt\nnames: [red, no]\n"),
        ("images/{}/deep", "train: images/train\nval: images/val\nnames:\n- red\n- no\n"),
        ("{}/images", "train: ../train/images\nval: ../val/images\nnc: 2\nnames: ['red', 'green']\n"),
        ("pictures/{}", "train: pictures/train\nval: pictures/val\nnames: {0: red}\n"),  # labels beside the images
        ("{}/images", "classes.txt"),
        ("images/{}", ""),
    ],
)
def test_yolos_layouts(tmp_path: Path, images: str, description: str) -> None:
    write_yolo(tmp_path, images)
    for split in ("train", "val"):
        (tmp_path / f"{split}.txt").write_text(f"./images/{split}/caf\u00e9.png\n./images/{split}/b.png\n")
    if description == "classes.txt":
        (tmp_path / "train/labels/classes.txt").write_text("red\ngreen\n")
    elif description:
        (tmp_path / "data.yaml").write_text(description)
    assert is_boxed(tmp_path)
    for split in ("train", None):
        found = open_boxed(tmp_path, split)
        assert [len(item.boxes) for item in found] in ([0, 1], [1, 0])  # one image has nothing on it
        assert found.occurring() == {"red" if description else "0"}
        (boxes,) = (item.boxes for item in found if len(item.boxes))
        assert boxes.tolist() == [[24, 12, 40, 36]]


@pytest.fixture
def yolo(tmp_path: Path) -> Path:
    write_yolo(tmp_path, "images/{}")
    (tmp_path / "data.yaml").write_text("train: images/train\nval: images/val\nnames: [red, green]\n")
    return tmp_path


@pytest.mark.parametrize(
    ("line", "boxes"),
    [
        ("", []),
        ("0 0.5 0.5 0 0.5", []),  # no area
        ("1.0 .5 0.5 2.5e-1 0.5\r\n\r\n0 0.5 0.5 0.25 0.5", [[24, 12, 40, 36]] * 2),
        ("0 0.1 0.1 0.5 0.1 0.5 0.5", [[6.4, 4.8, 32, 24]]),  # the corners of a polygon
        ("0 1 0.5 0.25 1.001", [[56, 0, 64, 48]]),
    ],
)
def test_lines_of_yolo(yolo: Path, line: str, boxes: list) -> None:
    (yolo / "labels/train/b.txt").write_text(line)
    found = open_boxed(yolo, "train")[0].boxes
    torch.testing.assert_close(found, torch.tensor(boxes).reshape(-1, 4).float())


def test_keypoints_of_yolo_follow_the_box(yolo: Path) -> None:
    (yolo / "data.yaml").write_text("kpt_shape: [2, 3]\nnames: [red]\n")
    (yolo / "labels/train/b.txt").write_text("0 0.5 0.5 0.25 0.5 0.1 0.1 2 0.9 0.2 1")
    assert open_boxed(yolo, "train")[0].boxes.tolist() == [[24, 12, 40, 36]]


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("0 0.5 0.5 0.2", "4 numbers; expected a class, x and y"),
        ("0 0.5 0.5 0.2 0.2 0.9", "6 numbers; expected"),  # with a confidence, as predictions have
        ("0 32 24 10 10", "'0 32 24 10 10' goes beyond 0 to 1"),
        ("0 0.5 0.5 -0.2 0.2", "goes beyond 0 to 1"),
        ("2 0.5 0.5 0.2 0.2", "class 2 has no name in .*data.yaml, which has 2"),
        ("-1 0.5 0.5 0.2 0.2", "expected a class"),
        ("1.5 0.5 0.5 0.2 0.2", "expected a class"),
        ("red 0.5 0.5 0.2 0.2", "'red 0.5 0.5 0.2 0.2'; expected a class"),
        ("0,0.5,0.5,0.2,0.2", "expected a class"),
        ("0 nan 0.5 0.2 0.2", "expected a class"),
        ("0 1e999 0.5 0.2 0.2", "expected a class"),
        ("9" * 5000 + " 0.5 0.5 0.2 0.2", r"'9+\.\.\..*'; expected a class"),
    ],
)
def test_what_of_yolos_lines_cannot_be_used_is_named(yolo: Path, line: str, complaint: str) -> None:
    (yolo / "labels/train/b.txt").write_text(f"{LINE}{line}\n")
    with pytest.raises(UserError, match=f"labels/train/b.txt, line 2: .*{complaint}"):
        open_boxed(yolo, "train")


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("train: ../../etc\n", "there is nothing at ../../etc in"),
        ("train: /etc\n", "there is nothing at /etc in"),
        ("train: {a: b}\n", "train is a mapping; expected a folder"),
        ("names: red\n", "names is 'red'; expected a list of names"),
        ("names: [[red]]\n", "names is a list of 1; expected a list of names"),
        ("names: {a: red}\n", "names is a mapping; expected a list of names"),
        ("- red\n", "does not describe a data set"),
        ("names: [red\n", "data.yaml is not YAML from line 2 on"),
        ("names: !!python/object/apply:os.system [[]]\n", "expected a list of names"),
        ("[" * 300, "data.yaml is not YAML"),
        ("#" + "x" * 1024**2, "data.yaml is too large"),
    ],
)
def test_what_of_yolos_description_cannot_be_used_is_named(yolo: Path, text: str, complaint: str) -> None:
    (yolo / "data.yaml").write_text(text)
    with pytest.raises(UserError, match=complaint):
        open_boxed(yolo, "train")


def test_splits_of_a_description_that_are_elsewhere_or_were_never_made(yolo: Path) -> None:
    (yolo / "data.yaml").write_text(
        "path: /content/d\ntrain: /content/d/images/train\nval: D:\\d\\images\\val\ntest: ../test/images\n"
        "names: [red]\n"
    )
    assert len(open_boxed(yolo, "train")) == len(open_boxed(yolo)) == 2
    with pytest.raises(UserError, match=r"has no boxes of 'test'\. It has train, val"):
        open_boxed(yolo, "test")
    (yolo / "data.yaml").write_text("train: images/train\ntest: ../test/images\nnames: [red]\n")
    (yolo / "images/val").rename(yolo / "images/other")
    with pytest.raises(UserError, match="there is nothing at ../test/images in"):
        open_boxed(yolo)


def test_files_of_coco_that_are_called_otherwise(coco: Path) -> None:
    with pytest.raises(UserError, match=f"Give the folder that it describes, such as {coco}\\."):
        open_boxed(coco / "annotations/instances_val.json")
    for split in ("train", "val"):
        (coco / f"annotations/instances_{split}.json").rename(coco / f"{split}_coco.json")
    with pytest.raises(UserError, match=r"looked for .* Is .*/train_coco.json one of COCO's\?"):
        open_boxed(coco, "train")


def test_a_description_that_unfolds_without_end(yolo: Path) -> None:
    levels = "".join(f"a{n}: &a{n} {{<<: [{', '.join([f'*a{n - 1}'] * 9)}]}}\n" for n in range(1, 30))
    (yolo / "data.yaml").write_text(f"a0: &a0 {{x: y}}\n{levels}names: [red]\n")
    assert open_boxed(yolo, "train").names == ("red",)


def test_labels_without_their_image(yolo: Path) -> None:
    (yolo / "labels/train/heic.txt").write_text(LINE)
    with pytest.raises(UserError, match="labels/train/heic.txt has no image heic.* in .*images/train"):
        open_boxed(yolo, "train")


def test_lists_of_yolo_lead_nowhere_else(yolo: Path) -> None:
    (yolo / "data.yaml").write_text("train: list.txt\nnames: [red]\n")
    (yolo / "list.txt").write_text("/etc/passwd\n")
    with pytest.raises(UserError, match="list.txt, line 1: there is no image /etc/passwd in"):
        open_boxed(yolo, "train")


# --- whatever the layout --------------------------------------------------------------------------------------------


def test_hidden_files_are_no_data(yolo: Path) -> None:
    for place in ("images/train", "labels/train", "images/.ipynb_checkpoints", "labels/.ipynb_checkpoints"):
        (yolo / place).mkdir(exist_ok=True)
        (yolo / place / "._b.txt").write_bytes(b"\0")
        (yolo / place / "._b.png").write_bytes(b"\0")
    (yolo / ".cache").mkdir()
    (yolo / ".cache/_annotations.coco.json").write_text("{")
    (yolo / "annotations").mkdir()
    (yolo / "annotations/._instances_train.json").write_bytes(b"\0")
    assert len(open_boxed(yolo, "train")) == 2
    with pytest.raises(UserError, match="It has train, val[.]"):
        open_boxed(yolo, "nowhere")
