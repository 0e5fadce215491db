"""Two processes on one machine, over gloo."""

from __future__ import annotations

import csv
import functools
import multiprocessing
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file

from densecl.config.recipe import Recipe
from densecl.errors import UserError
from densecl.training import run
from densecl.training.build import Parts
from densecl.training.fit import RunResult
from densecl.training.launch import launch
from densecl.training.peers import Peers
from densecl.training.run import pretrain


def losses(out: Path) -> list[float]:
    with (out / "metrics.csv").open(newline="") as file:
        return [float(row["loss"]) for row in csv.DictReader(file)]


@pytest.mark.parametrize("stages", [None, (2, 4)])
def test_two_processes_train_as_one(tiny, tmp_path: Path, easily_labeled: Path, stages: tuple[int, ...] | None) -> None:
    # Without batch norm: the statistics of half a batch are not those of a whole one.
    settings = {"backbone": "test_convnext", "output_stride": None, "image_size": 128}
    # The probe cannot gain, so both end after the first of ten measurements.
    settings |= {"steps": 50, "probe": str(easily_labeled), "stop_early": 1}
    settings |= {"matching": "geometry", "dense_negatives": "batch", "dense_stage": stages}
    two = pretrain(tiny(**settings, devices=2), tmp_path / "two")
    one = pretrain(tiny(**settings), tmp_path / "one")
    assert two.steps == one.steps == 5
    assert len(losses(two.out)) == 5
    assert losses(two.out) == pytest.approx(losses(one.out), abs=2e-5)
    weights = load_file(one.backbone)
    for name, tensor in load_file(two.backbone).items():
        torch.testing.assert_close(tensor, weights[name], atol=1e-5, rtol=1e-4)


def resumed_settings(recipe: Recipe, out: Path) -> None:
    """What a process that torchrun has started takes its settings to be, into a file of its own."""
    rank = os.environ["LOCAL_RANK"]

    def note(parts: Parts, out: Path, console: Console | None, peers: Peers) -> RunResult:
        (out.parent / f"rank{rank}").write_text(f"{parts.recipe.method} {parts.recipe.warmup_epochs}")
        return RunResult(out, out, 0, {})

    run.fit = note
    pretrain(recipe, out, resume=True)


def test_all_processes_resume_with_the_settings_of_the_run(tiny, tmp_path: Path) -> None:
    open_to_choice = dict.fromkeys(
        ("method", "queue_length", "key_momentum", "dense_negatives", "warmup_epochs"), "auto"
    )
    pretrain(tiny(**{**open_to_choice, "method": "byol"}, steps=6, batch_size=8), tmp_path / "run")
    longer = tiny(**open_to_choice, steps=12, batch_size=8, devices=2)
    launch(resumed_settings, 2, longer, tmp_path / "run")
    assert (tmp_path / "rank0").read_text() == (tmp_path / "rank1").read_text() == "byol 0.2"


def test_an_error_of_one_process_ends_all(tiny, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    broken.mkdir()
    for number in range(24):
        (broken / f"{number}.png").write_bytes(b"not an image")
    with pytest.raises(UserError, match="replacements cannot be used"):
        pretrain(tiny(data=str(broken), devices=2), tmp_path / "run")


def test_ctrl_c_while_processes_start(photos: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "densecl", "pretrain", "--data", photos, "--out", tmp_path / "run"]
    settings = ["--backbone", "test_resnet", "--image-size", "32", "--output-stride", "8", "--devices", "2"]
    settings += ["--batch-size", "4", "--steps", "100000", "--workers", "0"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    # Of what a shell starts in the background, Ctrl-C is ignored from the start.
    heard = functools.partial(signal.signal, signal.SIGINT, signal.default_int_handler)
    with subprocess.Popen(
        [*map(str, command), *settings], start_new_session=True, preexec_fn=heard, **pipes
    ) as process:
        assert process.stdout is not None
        while "steps into" not in process.stdout.readline():
            assert process.poll() is None
        os.killpg(process.pid, signal.SIGINT)  # what a terminal does
        _, told = process.communicate(timeout=240)
    assert process.returncode == 130
    assert "Traceback" not in told and "interrupted" in told


def test_data_that_cannot_be_copied_to_processes(tiny, tmp_path: Path) -> None:
    class Local(torch.utils.data.TensorDataset):
        pass

    images = Local(torch.zeros(24, 3, 40, 40, dtype=torch.uint8))  # its class has no place to be found at
    with pytest.raises(UserError, match="devices=2 gives every process a copy .* cannot be pickled"):
        pretrain(tiny(data="dataset:Local", devices=2), tmp_path / "run", dataset=images)


def test_a_script_that_its_own_processes_import_does_not_train_in_them(
    tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(multiprocessing.current_process(), "_inheriting", True, raising=False)
    with pytest.raises(UserError, match="so the call must stand under if __name__ == '__main__'"):
        pretrain(tiny(), tmp_path / "run")
    assert not (tmp_path / "run").exists()
