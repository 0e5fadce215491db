from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

import densecl.finetuning.predict
from densecl.cli import main
from densecl.errors import UserError
from densecl.evaluation.label_map import read_label_map
from densecl.finetuning.predict import predict
from densecl.finetuning.run import TunedRun
from densecl.finetuning.tuned import Tuned

ABOUT = {"backbone": "resnet10t", "in_channels": 3, "output_stride": None, "mean": (0.0,) * 3, "std": (1.0,) * 3}


class FindsRed(nn.Module):
    """A detector that finds the red rectangle, with the score 0.9, and something with the score 0.2."""

    def forward(self, images: list[Tensor]) -> list[dict[str, Tensor]]:
        found = []
        for image in images:
            rows, cols = ((image[0] > 0.5) & (image[1] < 0.5)).nonzero().unbind(dim=1)
            box = [cols.min(), rows.min(), cols.max() + 1, rows.max() + 1]
            boxes = torch.tensor([[float(side) for side in box], [0, 0, 3, 3]])
            found.append({"boxes": boxes, "labels": torch.tensor([2, 1]), "scores": torch.tensor([0.9, 0.2])})
        return found


class SegmentsRed(nn.Module):
    """Scores of the classes in cells of 4 px: 1 where the image is red."""

    def forward(self, pixels: Tensor) -> Tensor:
        red = nn.functional.avg_pool2d(pixels[:, :1] - pixels[:, 1:2], 4)
        return torch.cat([0.5 - red, red - 0.5], dim=1)


def write_red(path: Path, width: int, height: int, box: tuple[int, int, int, int], mode: str = "RGB") -> None:
    image = np.full((height, width, 3), 128, np.uint8)
    x0, y0, x1, y1 = box
    image[y0:y1, x0:x1] = (255, 0, 0)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).convert(mode).save(path)


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Images of all sizes, in folders, and two that are bad."""
    folder = tmp_path / "images"
    write_red(folder / "wide.png", 400, 100, (40, 20, 240, 60))
    write_red(folder / "below/tall.png", 60, 240, (12, 24, 48, 120))
    write_red(folder / "below/wide.jpg.png", 96, 64, (24, 16, 72, 48))
    write_red(folder / "strip.png", 400, 38, (100, 0, 300, 38))
    (folder / "broken.png").write_bytes((folder / "wide.png").read_bytes()[:100])
    (folder / "=empty.jpg").write_bytes(b"")
    return folder


def test_boxes_of_any_image(images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    tuned = Tuned(
        task="detection", network="faster-rcnn", classes=("a", "b"), image_size=(80, 80), threshold=0.5, **ABOUT
    )
    monkeypatch.setattr(densecl.finetuning.predict, "load_tuned", lambda path: (FindsRed(), tuned))
    (tmp_path / "run").mkdir()
    assert main(["predict", str(tmp_path / "run"), "--data", str(images), "--out", str(tmp_path / "out")]) == 0
    content = json.loads((tmp_path / "out/predictions.json").read_text())
    names = {image["id"]: image["file_name"] for image in content["images"]}
    assert sorted(names.values()) == ["below/tall.png", "below/wide.jpg.png", "strip.png", "wide.png"]
    assert {(one["width"], one["height"]) for one in content["images"]} == {(400, 100), (60, 240), (96, 64), (400, 38)}
    assert content["categories"] == [{"id": 1, "name": "a"}, {"id": 2, "name": "b"}]
    boxes = {names[one["image_id"]]: one["bbox"] for one in content["annotations"]}
    true = {"wide.png": [40, 20, 200, 40], "below/tall.png": [12, 24, 36, 96], "below/wide.jpg.png": [24, 16, 48, 32]}
    true["strip.png"] = [100, 0, 200, 38]
    assert boxes.keys() == true.keys()
    for name, box in boxes.items():
        assert box[3] == 38 or name != "strip.png"  # whose height of 7.6 small pixels was rounded
        assert box == pytest.approx(true[name], abs=10.1)  # two pixels of the small image
    assert {one["score"] for one in content["annotations"]} == {0.9}
    pictures = {str(path.relative_to(tmp_path / "out/pictures")) for path in tmp_path.glob("out/pictures/**/*.jpg")}
    assert pictures == {"wide.jpg", "below/tall.jpg", "below/wide.jpg.jpg", "strip.jpg"}
    with (tmp_path / "out/quarantine.csv").open(newline="") as file:
        bad = list(csv.reader(file))[1:]
    assert {Path(path.lstrip("\\")).name for path, _ in bad} == {"broken.png", "=empty.jpg"} and all(
        reason for _, reason in bad
    )
    assert "2 of 6 images could not be used" in capsys.readouterr().out
    found = predict("run", images, tmp_path / "all", threshold=0.1, pictures=0)
    assert (found.images, found.bad, found.objects) == (4, 2, 8) and not (tmp_path / "all/pictures").exists()


def test_label_maps_of_any_image(images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tuned = Tuned(task="segmentation", network="fcn", classes=("ground", "red"), image_size=(160, 160), **ABOUT)
    monkeypatch.setattr(densecl.finetuning.predict, "load_tuned", lambda path: (SegmentsRed(), tuned))
    found = predict("run", images, tmp_path / "out", batch_size=2)
    assert (found.images, found.bad, found.objects) == (4, 2, None)
    labels = read_label_map(tmp_path / "out/labels/wide.png")
    expected = torch.zeros(100, 400, dtype=torch.uint8)
    expected[20:60, 40:240] = 1
    assert labels.shape == expected.shape and (labels != expected).float().mean() < 0.02
    with (tmp_path / "out/index.csv").open(newline="") as file:
        rows = list(csv.reader(file))
    assert ["below/tall.png", "labels/below/tall.png"] in rows and len(rows) == 5
    assert (tmp_path / "out/classes.txt").read_text() == "ground\nred\n"
    with pytest.raises(UserError, match="threshold is for detection"):
        predict("run", images, tmp_path / "new", threshold=0.5)


def test_the_whole_way(
    weights: Path, squares: Path, tune: Callable[..., TunedRun], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tune(weights, "detection", squares, tmp_path / "run", steps=1)
    files = tmp_path / "list.txt"
    files.write_text(f"{squares}/val/0.png\n")
    line = ["predict", str(run.out), "--data", str(files), "--out", str(tmp_path / "out"), "--threshold", "0"]
    assert main(line) == 0
    content = json.loads((tmp_path / "out/predictions.json").read_text())
    assert [image["file_name"] for image in content["images"]] == [f"{squares}/val/0.png"]
    assert (tmp_path / "out/pictures/0.jpg").exists()
    assert main(line) == 2
    assert "exists already and holds files" in capsys.readouterr().err
    array = [np.zeros((40, 50, 3), np.uint8), np.zeros((64, 64), np.uint8)]
    capsys.readouterr()
    found = predict(run.last, array, tmp_path / "arrays", image_size=(96, 96), pictures=1, threshold=1.0)
    assert (
        "No detection has a score of at least 1.00. A lower --threshold shows weaker ones." in capsys.readouterr().out
    )
    assert found.images == 2 and (tmp_path / "arrays/pictures/item 0.jpg").exists()
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad/a.png").write_bytes(b"nothing")
    with pytest.raises(UserError, match="None of the 1 images can be used: see .*quarantine.csv"):
        predict(run.out, tmp_path / "bad", tmp_path / "none")
