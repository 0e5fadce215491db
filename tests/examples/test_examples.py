"""The three forms and `densecl.pretrain` train the same model, and each form runs as a script."""

from __future__ import annotations

import csv
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import densecl
from densecl.errors import UserError
from densecl.images.scenes import write_scenes
from tests.examples.forms import EXAMPLES, flags, train

FORMS = ("pytorch", "pytorch_lightning", "pytorch_lightning_distributed")

#: As flags of a script; `densecl.pretrain` takes the same as keywords.
TINY = {"image_size": 64, "batch_size": 4, "steps": 4, "learning_rate": 0.001, "workers": 0, "seed": 3}


def script(form: str, *arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    file = "densecl.py" if cwd == EXAMPLES / form else str(EXAMPLES / form / "densecl.py")
    return subprocess.run([sys.executable, file, *arguments], cwd=cwd, capture_output=True, text=True, timeout=240)


def column(path: Path, name: str) -> list[float]:
    with path.open(newline="") as file:
        return [float(row[name]) for row in csv.DictReader(file)]


def weights(out: Path) -> dict[str, torch.Tensor]:
    return load_file(out / "backbone.safetensors")


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scenes")
    write_scenes(folder, size=48, count=24)
    return folder / "images"


@pytest.mark.parametrize(
    "method",
    [
        {"backbone": "test_resnet", "matching": "features", "dense_negatives": "pooled"},
        {"backbone": "test_vit", "matching": "geometry", "dense_negatives": "batch"},
    ],
    ids=lambda method: method["backbone"],
)
def test_on_one_process_all_forms_train_the_same_model(method: dict[str, str], images: Path, tmp_path: Path) -> None:
    settings = {**TINY, **method, "data": images, "output_stride": 16, "precision": "32"}
    plain = train("pytorch", **settings, out=tmp_path / "plain")
    lightning = train("pytorch_lightning", **settings, out=tmp_path / "lightning")
    run = tmp_path / "command"
    result = densecl.pretrain(out=run, **settings, log_every=1, loggers=())  # pyright: ignore[reportArgumentType]

    assert len(set(plain)) == TINY["steps"]
    assert plain == lightning
    # The table is rounded to six digits; the last row and the weights are not.
    assert column(run / "metrics.csv", "loss") == [float(f"{loss:.6g}") for loss in plain]
    assert result.metrics["loss"] == plain[-1]
    expected = weights(run)
    for form in ("plain", "lightning"):
        found = weights(tmp_path / form)
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_the_colours_are_not_computed_in_half_precision(images: Path, tmp_path: Path) -> None:
    settings = {**TINY, "steps": 2, "data": images, "backbone": "test_resnet", "precision": "bf16"}
    assert train("pytorch", **settings, out=tmp_path / "1") == train(
        "pytorch_lightning", **settings, out=tmp_path / "2"
    )


def test_two_processes_train_the_same_model_as_one(images: Path, tmp_path: Path) -> None:
    settings = {**TINY, "data": images, "backbone": "test_vit", "matching": "geometry", "dense_negatives": "batch"}
    one = train("pytorch", **settings, out=tmp_path / "one")
    done = script("pytorch_lightning_distributed", *flags(**settings, devices=2, out=tmp_path / "two"))
    assert done.returncode == 0, done.stderr
    assert "distributed_backend=gloo" in done.stderr
    assert column(tmp_path / "two" / "logs" / "metrics.csv", "loss") == pytest.approx(one, rel=1e-5)


@pytest.mark.parametrize("form", FORMS[:2])
def test_runs_as_a_script_on_drawn_scenes(form: str, tmp_path: Path) -> None:
    settings = {**TINY, "steps": 2, "backbone": "test_resnet", "workers": 1}
    # From its own folder, where `import densecl` could find the script.
    done = script(form, *flags(**settings, out=tmp_path / "new" / "run"), cwd=EXAMPLES / form)
    assert done.returncode == 0, done.stderr
    assert f'densecl.load_backbone("{tmp_path / "new" / "run"}")' in done.stdout
    backbone, normalisation = densecl.load_backbone(tmp_path / "new" / "run")
    assert (backbone.name, backbone.stride) == ("test_resnet", 16)
    assert normalisation.mean == (0.485, 0.456, 0.406)


def test_synchronised_batch_norm_on_the_cpu_is_an_error_of_one_line(tmp_path: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    done = script("pytorch_lightning_distributed", "--sync-batch-norm", "--out", str(tmp_path / "run"))
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "error: --sync-batch-norm needs GPUs: torch has no synchronised batch norm on the CPU.\n"


@pytest.mark.parametrize("form", FORMS)
def test_wrong_input_is_a_user_error(form: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such folder"):
        train(form, data=tmp_path / "nowhere", out=tmp_path / "out")
