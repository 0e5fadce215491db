"""The three forms and `densecl.pretrain` train the same model, and each form runs as a script."""

from __future__ import annotations

import csv
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import densecl
from densecl.errors import UserError
from densecl.images.scenes import write_scenes
from densecl.model import METHODS
from tests.examples.forms import EXAMPLES, flags, train, train_beside_the_command
from tests.processes import on_two_processes

FORMS = ("pytorch", "pytorch_lightning", "pytorch_lightning_distributed")

#: As flags of a script; `densecl.pretrain` takes the same as keywords.
TINY = {
    "image_size": 64,
    "output_stride": 16,
    "batch_size": 4,
    "steps": 4,
    "learning_rate": 0.001,
    "workers": 0,
    "seed": 3,
    "log_every": 1,
}

#: Every method, and among them every setting of one. What is left out is the method's own.
CASES: dict[str, dict[str, Any]] = {
    "moco": {"method": "moco", "backbone": "test_resnet", "matching": "features", "dense_negatives": "pooled"},
    "simclr": {"method": "simclr", "backbone": "test_resnet", "matching": "both", "match_top_k": 0.5},
    "byol": {"method": "byol", "backbone": "test_resnet", "matching": "mutual"},
    "simsiam": {"method": "simsiam", "backbone": "test_resnet", "symmetric": False},
    "barlow": {"method": "barlow", "backbone": "test_resnet"},
    "vicreg": {"method": "vicreg", "backbone": "test_resnet", "dense_weight": 0.8},
    "dino": {"method": "dino", "backbone": "test_vit"},
    "moco, symmetric, with a ViT": {"method": "moco", "backbone": "test_vit", "symmetric": True},
    # More than 10 steps have a warm-up of more than one.
    "byol without the dense loss": {"method": "byol", "backbone": "test_resnet", "dense_weight": 0.0, "steps": 12},
}


def script(form: str, *arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    file = "densecl.py" if cwd == EXAMPLES / form else str(EXAMPLES / form / "densecl.py")
    return subprocess.run([sys.executable, file, *arguments], cwd=cwd, capture_output=True, text=True, timeout=240)


def column(path: Path, name: str) -> list[float]:
    with path.open(newline="") as file:
        return [float(row[name]) for row in csv.DictReader(file)]


def rounded(losses: list[float]) -> list[float]:
    """As the command's table has them."""
    return [float(f"{loss:.6g}") for loss in losses]


def weights(out: Path) -> dict[str, torch.Tensor]:
    return load_file(out / "backbone.safetensors")


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scenes")
    write_scenes(folder, size=48, count=24)
    return folder / "images"


def differences(out: Path, other: Path) -> list[str]:
    """Tensors in which two results are not the same bit by bit."""
    found, expected = weights(out), weights(other)
    assert found.keys() == expected.keys()
    return [name for name in expected if not torch.equal(found[name], expected[name])]


@pytest.mark.parametrize("case", CASES)
def test_on_one_process_all_forms_train_the_same_model(case: str, images: Path, tmp_path: Path) -> None:
    settings = {**TINY, **CASES[case], "data": images, "precision": "32"}
    plain = train("pytorch", **settings, out=tmp_path / "plain")
    lightning = train("pytorch_lightning", **settings, out=tmp_path / "lightning")
    run = tmp_path / "command"
    # Left to itself, the command tries which memory format is faster here.
    result = densecl.pretrain(out=run, **settings, loggers=(), channels_last=False)

    assert len(set(plain)) == settings["steps"]
    assert plain == lightning
    # The table is rounded to six digits; the last row and the weights are not.
    assert column(run / "metrics.csv", "loss") == rounded(plain)
    assert result.metrics["loss"] == plain[-1]
    for form in ("plain", "lightning"):
        assert differences(tmp_path / form, run) == []


def test_on_two_processes_every_method_trains_the_model_of_the_command(images: Path, tmp_path: Path) -> None:
    methods = {name: {**TINY, **CASES[name], "steps": 2, "data": images, "precision": "32"} for name in METHODS}
    losses, others = on_two_processes(train_beside_the_command, methods, tmp_path)
    assert losses == others  # each process has the average
    for name in methods:
        example, command = tmp_path / name / "example", tmp_path / name / "command"
        assert len(set(losses[name])) == 2
        assert column(example / "logs" / "metrics.csv", "loss") == losses[name]
        assert column(command / "metrics.csv", "loss") == rounded(losses[name])
        assert differences(example, command) == []


def test_the_colors_are_not_computed_in_half_precision(images: Path, tmp_path: Path) -> None:
    settings = {**TINY, "steps": 2, "data": images, "backbone": "test_resnet", "precision": "bf16"}
    assert train("pytorch", **settings, out=tmp_path / "1") == train(
        "pytorch_lightning", **settings, out=tmp_path / "2"
    )


def test_two_processes_train_the_same_model_as_one(images: Path, tmp_path: Path) -> None:
    settings = {**TINY, "data": images, "backbone": "test_vit", "method": "dino"}
    one = train("pytorch", **settings, out=tmp_path / "one")
    done = script("pytorch_lightning_distributed", *flags(**settings, devices=2, out=tmp_path / "two"))
    assert done.returncode == 0, done.stderr
    assert "2 processes, joined by gloo" in done.stdout
    assert column(tmp_path / "two" / "logs" / "metrics.csv", "loss") == pytest.approx(one, rel=1e-5)


@pytest.mark.parametrize("form", FORMS[:2])
def test_runs_as_a_script_on_drawn_scenes(form: str, tmp_path: Path) -> None:
    settings = {**TINY, "steps": 2, "backbone": "test_resnet", "workers": 1}
    # From its own folder, where `import densecl` could find the script.
    done = script(form, *flags(**settings, out=tmp_path / "new" / "run"), cwd=EXAMPLES / form)
    assert done.returncode == 0, done.stderr
    assert f'densecl.load_backbone("{tmp_path / "new" / "run"}")' in done.stdout
    backbone, normalization = densecl.load_backbone(tmp_path / "new" / "run")
    assert (backbone.name, backbone.stride) == ("test_resnet", 16)
    assert normalization.mean == (0.485, 0.456, 0.406)


def test_synchronized_batch_norm_on_the_cpu_is_an_error_of_one_line(tmp_path: Path) -> None:
    done = script("pytorch_lightning_distributed", "--sync-batch-norm", "--out", str(tmp_path / "run"))
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "error: --sync-batch-norm needs GPUs: torch has no synchronized batch norm on the CPU.\n"


@pytest.mark.parametrize("form", FORMS)
def test_wrong_input_is_a_user_error(form: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such folder"):
        train(form, data=tmp_path / "nowhere", out=tmp_path / "out")


def test_a_setting_of_something_that_the_method_does_not_have_is_a_user_error(images: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="byol has no dense negatives"):
        train("pytorch", method="byol", dense_negatives="batch", data=images, batch_size=4, out=tmp_path / "out")
