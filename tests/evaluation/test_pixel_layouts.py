"""Where label maps are looked for. tests/evaluation/test_labeled.py has what is wrong with files and labels."""

from __future__ import annotations

from pathlib import Path

import pytest

from densecl.errors import UserError
from densecl.evaluation import labeled
from densecl.evaluation.labeled import is_labeled, open_labeled
from densecl.evaluation.pixel_layouts import LAYOUTS, Layout


def touch(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


def test_the_first_layout_that_has_the_split_counts(tmp_path: Path) -> None:
    touch(tmp_path, "images/train/1.png", "labels/train/1.png", "images/2.png", "labels/2.png")
    touch(tmp_path, "JPEGImages/3.jpg", "SegmentationClass/3.png")
    expected = tmp_path / "images/train/1.png", tmp_path / "labels/train/1.png"
    assert open_labeled(tmp_path, "train").pairs == (expected,)
    (tmp_path / "ImageSets/Segmentation").mkdir(parents=True)
    (tmp_path / "ImageSets/Segmentation/train.txt").write_text("3")
    assert open_labeled(tmp_path, "train").pairs == (
        (tmp_path / "JPEGImages/3.jpg", tmp_path / "SegmentationClass/3.png"),
    )
    (tmp_path / "train.txt").write_text("2")
    assert open_labeled(tmp_path, "train").pairs == ((tmp_path / "images/2.png", tmp_path / "labels/2.png"),)


def test_a_layout_is_a_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def splits(data: Path) -> list[str]:
        return [path.name for path in data.glob("*/") if (path / "gt").is_dir()]

    def pairs(data: Path, split: str) -> list[tuple[Path, Path]] | None:
        folder = data / split
        found = sorted(folder.glob("*.png"))
        return [(path, folder / "gt" / path.name) for path in found] if (folder / "gt").is_dir() else None

    touch(tmp_path, "train/1.png", "train/gt/1.png", "val/2.png", "val/gt/2.png")
    assert not is_labeled(tmp_path)
    row = Layout("SPLIT/gt", lambda data: bool(splits(data)), splits, pairs)
    monkeypatch.setattr(labeled, "LAYOUTS", (*LAYOUTS, row))
    assert is_labeled(tmp_path)
    assert open_labeled(tmp_path, "train").pairs == ((tmp_path / "train/1.png", tmp_path / "train/gt/1.png"),)
    assert open_labeled(tmp_path).pairs == ((tmp_path / "val/2.png", tmp_path / "val/gt/2.png"),)
    with pytest.raises(UserError, match=r"looked for a.txt, .*/a.txt, images/a and a/gt\. It has train, val\."):
        open_labeled(tmp_path, "a")
