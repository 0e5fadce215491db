from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image

from densecl.errors import UserError
from densecl.evaluation.classified import open_classified


def test_where_classes_come_from(tmp_path: Path) -> None:
    for name in ("sea", "wood"):
        (tmp_path / "folders" / name).mkdir(parents=True)
        Image.new("RGB", (9, 7), "blue" if name == "sea" else "green").save(tmp_path / "folders" / name / "1.png")
    (tmp_path / "index.csv").write_text("file,kind,more\nfolders/wood/1.png,wood,x\nfolders/sea/1.png,sea,y\n\n")
    (tmp_path / "plain.csv").write_text("folders/wood/1.png, wood\nfolders/sea/1.png,sea\n")  # no header
    for data in (tmp_path, tmp_path / "index.csv", tmp_path / "plain.csv", tmp_path / "folders"):
        found = open_classified(data, size=4)
        assert found.names == ("sea", "wood") and len(found) == 2
        for image, label in found:
            assert image.shape == (3, 4, 4) and image[2].any() == (label == 0)


def test_what_cannot_be_used_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such folder or CSV"):
        open_classified(tmp_path / "nothing")
    with pytest.raises(UserError, match="of no class; expected index.csv"):
        open_classified(tmp_path)
    (tmp_path / "index.csv").write_text("file,kind\ngone.png,sea\n")
    with pytest.raises(UserError, match="index.csv, line 2: there is no file .*gone.png"):
        open_classified(tmp_path)
    for text in ("file\ngone.png\n", "file,kind\ngone.png, \n"):
        (tmp_path / "index.csv").write_text(text)
        with pytest.raises(UserError, match="line 2: expected a file and a class"):
            open_classified(tmp_path)
    (tmp_path / "index.csv").write_text(f"caption,kind\n{'x' * 500},sea\n")
    with pytest.raises(UserError, match="line 2: there is no file .*xxx"):
        open_classified(tmp_path)
    (tmp_path / "index.csv").write_text("gone.png,sea\n")  # a file that is not there is no header
    with pytest.raises(UserError, match="line 1: there is no file .*gone.png"):
        open_classified(tmp_path)
    for name in (
        "annotations/instances_train.json",
        "train/_annotations.coco.json",
        "Annotations/1.xml",
        "SegmentationClass/1.png",
        "train.txt",
    ):
        folder = tmp_path / f"other {Path(name).name}"
        (folder / name).parent.mkdir(parents=True)
        (folder / name).write_text("frames/1.png masks/1.png\n")
        with pytest.raises(UserError, match="has labels of pixels or boxes"):
            open_classified(folder)


def test_lists_of_classes_and_a_class_called_labels_do_no_harm(tmp_path: Path) -> None:
    for name in ("labels", "cat"):
        (tmp_path / name).mkdir()
        Image.new("RGB", (4, 4)).save(tmp_path / name / "1.png")
    (tmp_path / "val.txt").write_text("cat/1.png 0\n")
    assert open_classified(tmp_path).names == ("cat", "labels")


def write_classes(folder: Path, count: int = 4) -> list[str]:
    for name in ("cat", "dog"):
        (folder / name).mkdir(parents=True)
        for number in range(count):
            Image.new("RGB", (4, 4)).save(folder / name / f"{number}.png")
    return [f"{name}/{number}.png,{name}" for name in ("cat", "dog") for number in range(count)]


def test_hidden_files_and_folders_are_no_classes(tmp_path: Path) -> None:
    write_classes(tmp_path)
    (tmp_path / ".ipynb_checkpoints").mkdir()
    (tmp_path / "cat/.ipynb_checkpoints").mkdir()
    for place in (".ipynb_checkpoints", "cat/.ipynb_checkpoints"):
        Image.new("RGB", (4, 4)).save(tmp_path / place / "0-checkpoint.png")
    (tmp_path / "dog/._0.png").write_bytes(b"\0")
    found = open_classified(tmp_path)
    assert found.names == ("cat", "dog") and len(found) == 8


def test_groups_stay_together(tmp_path: Path) -> None:
    rows = write_classes(tmp_path, count=10)
    videos = [f"v{place // 4}" if place < 12 else "" for place in range(20)]  # three of four frames, the rest are alone
    lines = [f"{row},{video}" for row, video in zip(rows, videos, strict=True)]
    (tmp_path / "index.csv").write_text("\n".join(["file,class,Group", *lines]))
    found = open_classified(tmp_path)
    assert not found.is_drawn_singly()
    for seed in range(20):
        query, support = found.partition(seed)
        assert sorted(query + support) == list(range(20)) and len(query) in range(4, 8)
        for start in (0, 4, 8):
            assert len({index in query for index in range(start, start + 4)}) == 1


def test_images_that_stand_alone_are_drawn_one_by_one(tmp_path: Path) -> None:
    write_classes(tmp_path)
    found = open_classified(tmp_path)
    assert found.is_drawn_singly()
    order = torch.randperm(8, generator=torch.Generator().manual_seed(3)).tolist()
    assert found.partition(3) == (order[:2], order[2:])


def test_splits_of_a_table_or_of_folders(tmp_path: Path) -> None:
    rows = write_classes(tmp_path / "table")
    splits = ("train", "train", "val", "test") * 2
    lines = [f"{row},x,{split}" for row, split in zip(rows, splits, strict=True)]
    (tmp_path / "table/index.csv").write_text("\n".join(["file,class,more,split", *lines]))
    for split in ("train", "val", "test"):
        write_classes(tmp_path / "folders" / split, count=2)
    for data in (tmp_path / "table", tmp_path / "folders"):
        for given, name in ((None, "test"), ("val", "val")):
            found = open_classified(data, test_split=given)
            query, support = found.partition(0)
            assert {found.files[index].split for index in query} == {name}
            assert {found.files[index].split for index in support} == {"train"}
            assert found.names == ("cat", "dog") and not found.is_drawn_singly()
        with pytest.raises(UserError, match="has no split 'nowhere'. It has test, train, val"):
            open_classified(data, test_split="nowhere")
    with pytest.raises(UserError, match="No query image is left"):
        open_classified(tmp_path / "folders").take([0]).partition(0)


def test_the_name_of_a_class_in_either_form(tmp_path: Path) -> None:
    for split, name in (("train", "caf\u00e9"), ("test", "cafe\u0301"), ("train", "bar")):
        (tmp_path / split / name).mkdir(parents=True)
        Image.new("RGB", (4, 4)).save(tmp_path / split / name / "1.png")
    assert open_classified(tmp_path).names == ("bar", "caf\u00e9")


def test_classes_called_train_and_test_are_classes(tmp_path: Path) -> None:
    for name in ("train", "test"):
        (tmp_path / name).mkdir()
        Image.new("RGB", (4, 4)).save(tmp_path / name / "1.png")
    assert open_classified(tmp_path).names == ("test", "train")


def test_tables_that_cannot_be_used(tmp_path: Path) -> None:
    rows = write_classes(tmp_path)
    for text, complaint in (
        ("file,class,split\n" + "\n".join(f"{row},train" for row in rows), "neither a test nor a val split"),
        ("file,class,split\ncat/0.png,cat,\n", "line 2: its split is empty"),
        ("x" * 200_000 + ",cat\n", "line 1 cannot be read as CSV: is a quote missing?"),
        ("\0", "index.csv is not a text file"),
        ('"file,class\ncat/0.png,cat\n', "cannot be read as CSV: is a quote missing?"),
        ("file;class\ncat/0.png;cat\n", "line 2: expected a file and a class, with a comma between them"),
        ("file,split,class\ncat/0.png,train,cat\n", "the second column is split; the class belongs there"),
        ("cat/0.png,cat\n\ncat/0.png,dog\n", "line 3: .*cat/0.png is listed again"),
    ):
        (tmp_path / "index.csv").write_text(text)
        with pytest.raises(UserError, match=complaint):
            open_classified(tmp_path)
    (tmp_path / "index.csv").write_text("file,class,group\n" + "\n".join(f"{row},v" for row in rows))
    with pytest.raises(UserError, match="all are of one group"):
        open_classified(tmp_path).partition(0)
    sides = "\n".join(f"{row},{'train' if number else 'test'},v" for number, row in enumerate(rows))
    (tmp_path / "index.csv").write_text(f"file,class,split,group\n{sides}")
    with pytest.raises(UserError, match="group 'v' has images in two splits, test and train"):
        open_classified(tmp_path)
    (tmp_path / "index.csv").write_text("\n".join(rows))
    with pytest.raises(UserError, match="has no splits, so there is no 'val'"):
        open_classified(tmp_path, test_split="val")


def test_images_that_cannot_be_used(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / "of" / name).mkdir(parents=True)
        (tmp_path / "of" / name / "1.png").write_text("no image")
    with pytest.raises(UserError, match="1.png cannot be used"):
        open_classified(tmp_path / "of")[0]


def test_splits_that_are_called_otherwise_and_classes_that_nobody_can_find(tmp_path: Path) -> None:
    for split, kinds in (("train", "ab"), ("exam", "bc")):
        for kind in kinds:
            (tmp_path / split / kind).mkdir(parents=True)
            Image.new("RGB", (4, 4)).save(tmp_path / split / kind / "0.png")
    with pytest.raises(UserError, match="neither a test nor a val split to score on.* It has exam, train"):
        open_classified(tmp_path)
    assert open_classified(tmp_path, test_split="exam").unfindable((0, 1)) == {"c"}
    assert open_classified(tmp_path / "train").unfindable(range(9)) == {"a", "b"}
