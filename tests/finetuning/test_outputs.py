from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from densecl.evaluation.average_precision import Detections
from densecl.evaluation.boxed import open_boxed
from densecl.evaluation.label_map import read_label_map
from densecl.finetuning.outputs import Names, save_label_map, writing_coco


@pytest.mark.parametrize(
    ("root", "name", "expected"),
    [
        ("/data", "/data/a/b.jpg", "a/b"),
        ("/data", "/data/a.b.jpg", "a.b"),
        ("/data", "/elsewhere/a.jpg", "a"),
        (None, "/elsewhere/../x/a.jpg", "a"),
        (None, "../../a.jpg", "a"),
        ("/data", "/data/..jpg", "_jpg"),
        ("/data", "/data/.../x.jpg", "_/x"),
        ("/data", "/data/a:b?\n*.png", "a_b___"),
        ("/data", "/data/con\x1b[31m.png", "con_[31m"),
        (None, "item 3", "item 3"),
        (None, "..", "_"),
        (None, "", "image"),
    ],
)
def test_names_stay_below_the_folder(root: str | None, name: str, expected: str) -> None:
    found = Names(root).file(name)
    assert str(found) == expected
    assert not found.is_absolute() and os.pardir not in found.parts


def test_no_name_is_given_twice_and_none_is_too_long() -> None:
    names = Names("/data")
    given = ["a.jpg", "a.png", "A.jpg", "a.JPG", "a_jpg.png", "b/a.jpg", f"{'é' * 120}.jpg", f"{'é' * 120}x.jpg"]
    found = [names.file(f"/data/{name}") for name in given]
    assert [str(path) for path in found[:3]] == ["a", "a_png", "A_jpg"]
    assert len({str(path).casefold() for path in found}) == len(given)
    assert all(len(os.fsencode(part)) <= 255 - len(".png.part") for path in found for part in path.parts)
    assert names.file(os.fsdecode(b"/data/\xff.png")).name == os.fsdecode(b"\xff")


def test_what_is_written_can_be_learned_from(tmp_path: Path) -> None:
    (tmp_path / "val").mkdir()
    (tmp_path / "annotations").mkdir()
    found = []
    for number, (boxes, label) in enumerate([([[1.5, 2.25, 30, 20]], 2), ([], 1), ([[0, 0, 4, 4], [8, 8, 16, 16]], 1)]):
        Image.new("RGB", (40, 30)).save(tmp_path / f"val/{number}.png")
        count = len(boxes)
        found.append(
            Detections(
                torch.tensor(boxes).reshape(-1, 4).float(), torch.full((count,), label), torch.full((count,), 0.75)
            )
        )
    path = tmp_path / "annotations/instances_val.json"
    with writing_coco(path, ["cat", 'dog "x"\n'], {"weights": os.fsdecode(b"\xff")}) as coco:
        for number, each in enumerate(found):
            coco.add(f"{number}.png", 40, 30, each)
            assert not path.exists()
    read = open_boxed(tmp_path, "val")
    assert read.names == ("cat", 'dog "x"') and len(read) == 3 and coco.objects == 3
    for index, each in enumerate(found):
        assert torch.equal(read[index].boxes, each.boxes) and torch.equal(read[index].labels, each.labels)
    assert sorted(path.parent.iterdir()) == [path]


def test_label_maps_are_read_back(tmp_path: Path) -> None:
    labels = torch.arange(256, dtype=torch.uint8).reshape(16, 16)
    save_label_map(labels, tmp_path / "a/b.png")
    assert torch.equal(read_label_map(tmp_path / "a/b.png"), labels)
    with Image.open(tmp_path / "a/b.png") as picture:
        assert picture.mode == "P" and len(np.unique(np.asarray(picture.convert("RGB")).reshape(-1, 3), axis=0)) > 250
