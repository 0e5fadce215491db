"""The command on folders with known faults: what it says, its exit code, and the list that it writes."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import densecl
from densecl.checking import check as verb
from densecl.checking.check import roughly
from densecl.checking.cost import Cost
from densecl.cli import main
from densecl.errors import UserError
from densecl.images.sources import open_source
from tests.embedding.photos import draw

TINY = "--backbone resnet10t --image-size 64 --output-stride 8 --workers 0 --batch-size 4 --steps 10".split()  # noqa: SIM905
SETTINGS = {"image_size": 64, "workers": 0, "batch_size": 4, "steps": 10}


def tiny(stride: int = 8) -> torch.nn.Module:
    """A backbone that is made and probed at once."""
    return torch.nn.Sequential(torch.nn.Conv2d(3, 8, stride, stride=stride), torch.nn.BatchNorm2d(8), torch.nn.ReLU())


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    for number in range(24):
        draw(folder / f"{number:02d}.jpg", number)
    return folder


@pytest.fixture
def cheap(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verb, "measure", lambda parts: Cost(2.0, 2.0**30, 2.0**33))


def test_images_in_order(photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "--data", str(photos), *TINY]) == 0
    told = capsys.readouterr().out
    for line in (
        "photos: 24 images",
        "files: 24 JPEG\n",
        "sizes: from 80x60 to 103x60",
        "resnet10t at 64 px: a feature map of 8x8 cells",
        "receptive field of a cell:",
        "--method simclr (",
        "a step of 4 images takes about ",
        ": 10 steps in about ",
        "memory: about ",
        "Nothing to put right.",
    ):
        assert line in told


def test_what_is_wrong_is_told_with_what_to_do(
    photos: Path, tmp_path: Path, cheap: None, capsys: pytest.CaptureFixture[str]
) -> None:
    for number in range(3):
        (photos / f"x{number}.png").write_text("broken")
        shutil.copy(photos / "05.jpg", photos / f"y{number}.jpg")
    Image.new("RGB", (90, 90)).save(photos / "z black.png")
    Image.open(photos / "07.jpg").resize((300, 200)).save(photos / "z large.jpg")
    usable = tmp_path / "usable.txt"
    assert main(["check", "--data", str(photos), "--usable", str(usable), *TINY]) == 1
    told = capsys.readouterr().out
    for line in (
        "to put right 1: 3 of 32 images cannot be read, and a run stops at 5%",
        "4 of 32 images are copies of others: 3 with the same pixels, 1 nearly so",
        "1 of 32 images have one color alone",
        "24 of 32 images are in ",
    ):
        assert line in told
    source = open_source(usable)
    kept = {os.path.basename(source.name(index)) for index in range(len(source))}
    assert kept == {f"{number:02d}.jpg" for number in range(24)}
    assert not densecl.check(usable, backbone=tiny(), **SETTINGS).problems


def test_label_maps_in_a_list_are_told(
    photos: Path, tmp_path: Path, cheap: None, capsys: pytest.CaptureFixture[str]
) -> None:
    """In a folder they are left out; whoever gives a glob has them."""
    (tmp_path / "labels").mkdir()
    for number in range(24):
        areas = np.zeros((60, 80 + number), np.uint8)
        areas[20:50, 10:40] = 1 + number % 3
        Image.fromarray(areas).save(tmp_path / "labels" / f"{number:02d}.png")
    told = densecl.check(str(tmp_path / "*" / "*"), backbone=tiny(), **SETTINGS).problems
    assert "24 label maps (labels/) are among the images. Take them out of the list" in told[0]
    assert not densecl.check(tmp_path, backbone=tiny(), **SETTINGS).problems
    assert "left out: 24 label maps (labels/)" in capsys.readouterr().out


def test_settings_that_do_not_go_together(photos: Path, cheap: None) -> None:
    found = densecl.check(photos, backbone=tiny(64), **SETTINGS)
    assert found.resolved is None and "dense learning would mean nothing" in found.problems[0]
    warned = densecl.check(photos, backbone=tiny(32), **SETTINGS)
    assert any("only 2x2 cells, on which the dense loss means little" in line for line in warned.problems)


def test_too_little_memory(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verb, "measure", lambda parts: Cost(1.0, 2.0**33, 2.0**32))
    (line,) = densecl.check(photos, backbone=tiny(), **SETTINGS).problems
    assert "A step needs about 8 GiB of memory, and 4 GiB are free. Give a smaller --batch-size than 4" in line


def test_a_data_set_and_a_module_in_python(cheap: None) -> None:
    images = np.random.default_rng(0).integers(0, 256, (12, 64, 64, 3), dtype=np.uint8)
    items = torch.utils.data.TensorDataset(torch.from_numpy(images).movedim(3, 1))
    found = densecl.check(items, backbone=tiny(), workers=0, batch_size=4, image_size=32, steps=3)
    assert found.survey.images == 12 and not found.problems


def test_hostile_names(photos: Path, cheap: None, capsys: pytest.CaptureFixture[str]) -> None:
    (photos / "\x1b[31m\n.png").write_text("broken")
    densecl.check(photos, backbone=tiny(), **SETTINGS)
    told = capsys.readouterr().out
    assert "\x1b[31m" not in told and "\\x1b[31m\\n.png: not a" in told


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"usable": "u.csv"}, "Let its name end with .txt"),
        ({"usable": "there.txt"}, "exists already"),
        ({"usable": "u.txt", "tile": 32}, "cannot be used with tile"),
        ({"data": "nowhere"}, "no such folder or file"),
        ({"bakbone": "resnet18"}, "bakbone"),
    ],
)
def test_mistakes(
    settings: dict, complaint: str, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("there.txt").touch()
    with pytest.raises(UserError, match=complaint):
        densecl.check(**{"data": photos, "backbone": tiny(), **SETTINGS, **settings})


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (0.4321, "0.43 s"),
        (9.9, "9.9 s"),
        (13.6, "14 s"),
        (207.0, "3 min 30 s"),
        (301.0, "5 min"),
        (3700.0, "1 h"),
        (18780.0, "5 h"),
        (20_000.0, "5 h 30 min"),
        (200_000.0, "2 d 8 h"),
        (2_000_000.0, "23 d"),
    ],
)
def test_an_estimate_is_not_more_exact_than_it_is(seconds: float, said: str) -> None:
    assert roughly(seconds) == said
