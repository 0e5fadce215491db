"""Two processes on one machine, over gloo."""

from __future__ import annotations

import csv
import operator
import signal
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from densecl.errors import UserError
from densecl.training.launch import launch
from densecl.training.run import pretrain


def losses(out: Path) -> list[float]:
    with (out / "metrics.csv").open(newline="") as file:
        return [float(row["loss"]) for row in csv.DictReader(file)]


def test_two_processes_train_as_one(tiny, tmp_path: Path) -> None:
    # Without batch norm: the statistics of half a batch are not those of a whole one.
    settings = {"backbone": "test_convnext", "output_stride": None, "image_size": 128, "steps": 5}
    settings |= {"matching": "geometry", "dense_negatives": "batch"}
    two = pretrain(tiny(**settings, devices=2), tmp_path / "two")
    one = pretrain(tiny(**settings), tmp_path / "one")
    assert two.steps == one.steps == 5
    assert len(losses(two.out)) == 5
    assert losses(two.out) == pytest.approx(losses(one.out), abs=1e-5)
    weights = load_file(one.backbone)
    for name, tensor in load_file(two.backbone).items():
        torch.testing.assert_close(tensor, weights[name], atol=1e-5, rtol=1e-4)


def test_an_error_of_one_process_ends_all(tiny, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    broken.mkdir()
    for number in range(24):
        (broken / f"{number}.png").write_bytes(b"not an image")
    with pytest.raises(UserError, match="images in a row cannot be used"):
        pretrain(tiny(data=str(broken), devices=2), tmp_path / "run")


def test_how_processes_end() -> None:
    with pytest.raises(RuntimeError, match="ZeroDivisionError"):
        launch(operator.truediv, 2, 1, 0)
    with pytest.raises(SystemExit, match="143"):
        launch(sys.exit, 2, 143)
    with pytest.raises(UserError, match=r"died \(exit code -9\)"):
        launch(signal.raise_signal, 2, signal.SIGKILL)
