from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from densecl.errors import UserError
from densecl.evaluation.labelled import LabelledFiles


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
    (tmp_path / "list.txt").write_text("a.png a_labels.png\n\na.png b_labels.png\n")
    return tmp_path


def test_pairs_are_read(folder: Path) -> None:
    files = LabelledFiles(folder / "list.txt")
    assert len(files) == 2
    for image, labels in files:
        assert image.dtype == labels.dtype == torch.uint8
        assert image.shape == (3, 4, 6) and labels.shape == (4, 6)
        assert torch.equal(labels == 9, image[0] == 200)  # palette indices, not the palette's colours


def test_labels_are_resized_without_being_mixed(folder: Path) -> None:
    image, labels = LabelledFiles(folder / "list.txt", size=(10, 8))[0]
    assert image.shape == (3, 8, 10) and labels.shape == (8, 10)
    assert labels.unique().tolist() == [0, 9]
    assert torch.equal(labels[0], torch.tensor([0] * 5 + [9] * 5, dtype=torch.uint8))


def test_what_cannot_be_used_is_named(folder: Path) -> None:
    with pytest.raises(UserError, match=r"nothing\.txt: no such list"):
        LabelledFiles(folder / "nothing.txt")
    (folder / "three.txt").write_text("a.png a_labels.png 3\n")
    with pytest.raises(UserError, match=r"line 1: expected 'image label', found 3"):
        LabelledFiles(folder / "three.txt")
    Image.new("L", (5, 4)).save(folder / "small.png")
    (folder / "text.png").write_text("no image")
    (folder / "bad.txt").write_text("a.png small.png\na.png a.png\na.png text.png\ntext.png a_labels.png\n")
    bad = LabelledFiles(folder / "bad.txt")
    messages = ("is 6x4, but its label map .*small.png is 5x4", "not RGB", "label map", "cannot be used")
    for index, message in enumerate(messages):
        with pytest.raises(UserError, match=message):
            bad[index]
