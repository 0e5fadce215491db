from __future__ import annotations

from pathlib import Path

import pytest

from densecl.evaluation.class_names import names_of


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("classes.txt", "sky\nroad side\ntree\n"),
        ("data.yaml", "train: images/train\nnames: [sky, road side, tree]\n"),
        ("data.yaml", "names:\n  0: sky\n  1: road side\n  2: tree\n"),
        ("train/_classes.csv", "Pixel Value, Class\n0, sky\n1, road side\n2, tree\n"),
    ],
)
def test_names_are_found(tmp_path: Path, file: str, content: str) -> None:
    (tmp_path / file).parent.mkdir(exist_ok=True)
    (tmp_path / file).write_text(content)
    assert names_of(tmp_path) == {0: "sky", 1: "road side", 2: "tree"}


@pytest.mark.parametrize("content", ["names: [", "- a", "names: {sky: 1}", "\0", "names: 3"])
def test_a_file_that_cannot_be_read_says_nothing(tmp_path: Path, content: str) -> None:
    (tmp_path / "data.yaml").write_text(content)
    assert names_of(tmp_path) == {}


def test_voc_has_its_own(tmp_path: Path) -> None:
    (tmp_path / "SegmentationClass").mkdir()
    names = names_of(tmp_path)
    assert (len(names), names[0], names[15]) == (21, "background", "person")
