"""A run from end to end, and what it says when it cannot be."""

from __future__ import annotations

import csv
import dataclasses
import errno
import fcntl
import io
import itertools
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import timm
import torch
from filelock import FileLock
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

import densecl
from densecl.config.files import read_recipe, write_recipe
from densecl.errors import UserError
from densecl.model import DenseCL, load_backbone, log_sum_exp
from densecl.model.methods import METHODS
from densecl.training import checkpoints, explanations, recorder, run, run_folder
from densecl.training.alarms import PATIENCE
from densecl.training.build import build
from densecl.training.metrics import COLUMNS
from densecl.training.run import pretrain
from tests.frozen import WatchedNorm, frozen_norm, modes

#: Without the settings of `tiny` that are MoCo's alone.
FREE = {"queue_length": "auto", "key_momentum": "auto", "dense_negatives": "auto"}


def read(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_what_a_run_says_of_itself(tiny, tmp_path: Path, capsys) -> None:
    out = tmp_path / "run"
    pretrain(tiny(steps=2), out)
    said = capsys.readouterr().out
    assert f"  densecl evaluate {out} random --baseline random --task correspondence --data " in said
    assert f"  backbone, normalization = densecl.load_backbone('{out}/backbone.safetensors')" in said
    assert "Match accuracy on fixed views: " in said
    log = (out / "train.log").read_text()
    assert f"densecl {densecl.__version__}, Python " in log and f"torch {torch.__version__}" in log and "cores" in log
    assert all(line.strip() in log for line in said.splitlines())
    recipe = (out / "recipe.yaml").read_text()
    assert recipe.startswith(f"# densecl {densecl.__version__}: moco, test_resnet at 32 px, 2 steps.\n")
    assert "auto" not in recipe
    with safe_open(out / "backbone.safetensors", "pt") as file:
        metadata = file.metadata()
    assert {name: metadata[name] for name in ("densecl_version", "method", "dense_weight", "steps", "image_size")} == {
        "densecl_version": densecl.__version__,
        "method": "moco",
        "dense_weight": "0.5",
        "steps": "2",
        "image_size": "32",
    }


def test_what_ends_a_run_stands_in_its_log(tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(recorder, "save_checkpoint", full)
    with pytest.raises(UserError):
        pretrain(tiny(steps=1), tmp_path / "run")
    last = (tmp_path / "run" / "train.log").read_text().splitlines()[-1]
    assert "error: Cannot write" in last and "--resume" in last


def test_what_a_run_leaves(tiny, tmp_path: Path, capsys) -> None:
    before = torch.get_rng_state()
    out = tmp_path / "runs" / "first"
    result = pretrain(
        tiny(steps=7, log_every=3, loggers=("tensorboard",), queue_length="auto", learning_rate="auto"), out
    )
    assert (result.out, result.steps) == (out, 7)
    assert result.metrics["step"] == 7
    assert torch.equal(torch.get_rng_state(), before)

    model = timm.create_model("test_resnet", num_classes=0)
    model.load_state_dict(load_file(result.backbone))
    table = read(out / "metrics.csv")
    assert tuple(table[0]) == COLUMNS
    assert [row["step"] for row in table] == ["1", "3", "6", "7"]
    assert [row["epoch"] for row in table] == ["0.166667", "0.5", "1", "1.16667"]
    assert all(value for row in table for value in row.values())
    matches = read(out / "watched.csv")
    assert [row["step"] for row in matches] == [str(step) for step in range(8)]  # about ten times
    assert 0 < float(matches[0]["match_chance"]) < float(matches[0]["match_accuracy"]) < 1
    assert any(path.name.startswith("events.out") for path in (out / "tensorboard").iterdir())
    assert not [path for path in out.rglob("*") if path.suffix in (".part", ".tmp")]

    recipe = read_recipe(out / "recipe.yaml")
    assert (recipe.queue_length, recipe.learning_rate, recipe.key_norm) == (24, 0.03 * 4 / 256, "shuffle")
    assert "auto" not in [getattr(recipe, name) for name in ("precision", "workers", "mean")]
    said = capsys.readouterr().out
    assert "24 images, 6 steps an epoch" in said
    assert "--queue-length 24 (for 24 images" in said
    assert "feature map of 4x4 cells" in said
    assert {"queue_length", "learning_rate", "key_norm", "mean", "std"} <= set(recipe.settled)
    assert "key_momentum" not in recipe.settled


def test_the_recorded_recipe_repeats_the_run(tiny, tmp_path: Path) -> None:
    first = load_file(pretrain(tiny(), tmp_path / "first").backbone)
    second = load_file(pretrain(read_recipe(tmp_path / "first" / "recipe.yaml"), tmp_path / "second").backbone)
    assert all(torch.equal(tensor, second[name]) for name, tensor in first.items())


@pytest.mark.parametrize("settings", [{}, {**FREE, "method": "simclr", "optimizer": "adamw"}])
def test_a_command_repeats_its_run_however_long_things_take(tiny, tmp_path: Path, monkeypatch, settings: dict) -> None:
    auto = {"precision": "auto", "channels_last": "auto", "learning_rate": "auto", "warmup_epochs": "auto"}
    whole = [dict(load_file(pretrain(tiny(**auto, **settings), tmp_path / "quiet").backbone))]
    for name in ("perf_counter", "monotonic", "process_time"):  # as on a machine that does much else
        chance = random.Random(name)
        ticks = itertools.accumulate(chance.expovariate(0.1) for _ in itertools.count())
        monkeypatch.setattr(time, name, lambda ticks=ticks: next(ticks))
    whole.append(dict(load_file(pretrain(tiny(**auto, **settings), tmp_path / "busy").backbone)))
    assert all(torch.equal(tensor, whole[1][name]) for name, tensor in whole[0].items())
    assert len({read_recipe(tmp_path / run / "recipe.yaml") for run in ("quiet", "busy")}) == 1


class Drawing(torch.utils.data.Dataset):
    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> Image.Image:
        return Image.radial_gradient("L").rotate(10 * index).convert("RGB")


def test_a_dataset_and_a_module_of_ones_own(tiny, tmp_path: Path) -> None:
    module = nn.Sequential(nn.Conv2d(3, 8, 3, stride=8), nn.ReLU())
    recipe = tiny(data="dataset:Drawing", backbone="module:Sequential", output_stride=None)
    result = pretrain(recipe, tmp_path / "run", dataset=Drawing(), backbone=module)
    assert torch.equal(load_file(result.backbone)["0.weight"], module[0].weight)


@pytest.mark.parametrize("whole", [False, True])
def test_what_the_owner_put_into_evaluation_mode_stays_in_it(tiny, tmp_path: Path, capsys, whole: bool) -> None:
    module = frozen_norm()
    if whole:
        module.eval()
    before, state = modes(module), {name: tensor.clone() for name, tensor in module.state_dict().items()}
    recipe = tiny(backbone="module:Sequential", output_stride=None, key_norm="split", key_split=2)
    pretrain(recipe, tmp_path / "run", backbone=module)
    assert modes(module) == before and not WatchedNorm.trained
    moved = {name for name, tensor in module.state_dict().items() if not torch.equal(tensor, state[name])}
    assert "0.weight" in moved and not moved & {"1.running_mean", "1.running_var", "1.num_batches_tracked"}
    assert ("Sequential is in evaluation mode and stays so" in capsys.readouterr().out) == whole


@pytest.mark.parametrize("optimizer", ["lars", "adamw"])
def test_other_optimizers(tiny, tmp_path: Path, optimizer: str) -> None:
    assert pretrain(tiny(optimizer=optimizer, learning_rate=0.001), tmp_path / "run").metrics["loss"] > 0


def test_settings_that_a_method_does_not_have_stand_as_none(tiny, tmp_path: Path) -> None:
    pretrain(tiny(**FREE, method="vicreg", local_crops=1, image_size=64, hidden_dim=8), tmp_path / "run")
    recipe = read_recipe(tmp_path / "run" / "recipe.yaml")
    assert (recipe.queue_length, recipe.key_momentum, recipe.temperature, recipe.dense_negatives) == (None,) * 4
    assert (recipe.dense_statistics, recipe.symmetric, recipe.local_crop_size) == ("cells", True, 32)
    pretrain(recipe, tmp_path / "again")
    first, second = (load_file(tmp_path / run / "backbone.safetensors") for run in ("run", "again"))
    assert all(torch.equal(tensor, second[name]) for name, tensor in first.items())


@pytest.mark.parametrize(
    ("settings", "method", "reason"),
    [
        ({}, "simclr", "negatives from a batch, for 4 images a device"),
        ({"accumulate": 2}, "moco", "negatives from a queue, for 2 images a device"),
        ({"devices": 2}, "moco", "negatives from a queue, for 2 images a device"),
        ({"devices": 2, "batch_size": 8}, "simclr", "negatives from a batch, for 4 images a device"),
        ({"queue_length": 16}, "moco", "for --queue-length"),
        ({"key_norm": "ema"}, "moco", "for --key-norm"),
        ({"key_momentum_end": 1.0}, "moco", "for --key-momentum-end"),
        ({"dense_negatives": "cells"}, "moco", "for --dense-negatives cells"),
        ({"dense_negatives": "pooled"}, "simclr", "negatives from a batch, for 4 images a device"),
        ({"recipe": "paper"}, "moco", "for --recipe paper"),
        ({"method": "byol"}, "byol", None),
    ],
)
def test_the_method_is_chosen_by_what_is_given(
    tiny, tmp_path: Path, capsys, settings: dict, method: str, reason: str | None
) -> None:
    out = tmp_path / "run"
    recipe = tiny(**{**FREE, "method": "auto", "steps": 1, **settings})
    pretrain(recipe, out)
    resolved = read_recipe(out / "recipe.yaml")
    assert (resolved.method, "method" in resolved.settled) == (method, reason is not None)
    said = capsys.readouterr().out
    assert f"\n{method}, test_resnet at 32 px" in said
    assert (f"--method {method} ({reason})" in said) == (reason is not None)
    assert pretrain(recipe, out, resume=True).steps == 1  # which finds nothing else


def test_the_batch_size_is_chosen_for_the_images_and_kept(tiny, tmp_path: Path, capsys) -> None:
    out = tmp_path / "run"
    free = {**FREE, "batch_size": "auto"}
    pretrain(tiny(**free, epochs=1, steps=None), out)
    first = read_recipe(out / "recipe.yaml")
    assert (first.batch_size, "batch_size" in first.settled) == (16, True)
    assert "--batch-size 16 (for 1 epoch of 24 images on a CPU)" in capsys.readouterr().out
    assert pretrain(tiny(**free, steps=3), out, resume=True).steps == 3


@pytest.mark.parametrize(
    ("settings", "size", "method"),
    [
        ({"devices": 3}, 15, "simclr"),
        ({"accumulate": 6}, 24, "simclr"),  # 4 images a part, with fewer it would be moco
        ({"accumulate": 12, "method": "vicreg"}, 24, "vicreg"),
        ({"accumulate": 12}, 24, "moco"),
        ({"key_norm": "split", "key_split": 10}, 20, "moco"),
    ],
)
def test_an_automatic_batch_has_what_the_method_needs(tiny, settings: dict, size: int, method: str) -> None:
    parts, _ = build(tiny(**{**FREE, "method": "auto", "batch_size": "auto", **settings}), None, None, None)
    assert (parts.recipe.batch_size, parts.recipe.method) == (size, method)


def test_a_run_whose_method_was_given_is_resumed_without_giving_it_again(tiny, tmp_path: Path) -> None:
    free = {**FREE, "batch_size": 8, "steps": 1}
    pretrain(tiny(**free, method="byol"), tmp_path / "run")
    assert pretrain(tiny(**{**free, "steps": 2}, method="auto"), tmp_path / "run", resume=True).steps == 2
    assert read_recipe(tmp_path / "run" / "recipe.yaml").method == "byol"


# --- what the user is told --------------------------------------------------------------------------


def test_settings_that_do_nothing_are_named(tiny) -> None:
    idle = {"key_split": 2, "teacher_warmup": 0.5, "temperature_period": 0.5, "local_crop_scale": (0.1, 0.3)}
    idle |= {"match_radius": 0.5, "matching": "features", "optimizer": "adamw", "momentum": 0.5}
    _, said = build(tiny(**idle), None, None, None)
    needed = {
        "--key-split": "--key-norm split",
        "--teacher-warmup": "--method dino",
        "--temperature-period": "--temperature-max",
        "--local-crop-scale": "--local-crops",
        "--match-radius": "--matching geometry or both, or --dense-negatives batch",
        "--momentum": "--optimizer sgd or lars",
    }
    warnings = {line for line in said if "does nothing" in line}
    assert warnings == {f"warning: {name} does nothing without {what}" for name, what in needed.items()}


def test_settings_that_do_something_are_not(tiny) -> None:
    settings = {"key_norm": "split", "key_split": 2, "temperature_max": 0.5, "temperature_period": 0.5}
    settings |= {"match_radius": 0.5, "matching": "both", "optimizer": "sgd", "momentum": 0.5}
    radius = {"match_radius": 0.5, "matching": "features", "dense_negatives": "batch"}
    for chosen in (settings, radius, {}):
        assert not any("does nothing" in line for line in build(tiny(**chosen), None, None, None)[1])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"batch_size": 32}, "batch_size=32 is larger than the data set of 24 images. Take 16."),
        ({"batch_size": "auto", "accumulate": 25}, "24 images cannot be shared by 1 device.* in 25 part.*less"),
        ({"backbone": "test_resne"}, "Did you mean"),
        ({"data": "/no/such/folder"}, "/no/such/folder"),
        ({"image_size": 16, "output_stride": 16}, r"is 1x1: .* Use image_size=64\."),
        ({"output_stride": 32}, r"is 1x1: .* Use image_size=128 or output_stride=8\."),
        ({"grid": 7}, "grid=7: the feature map has only 4x4 cells"),
        ({"sync_batch_norm": True}, "no synchronized batch norm on the CPU"),
        ({"time_limit": "9s", "schedule_per": "epoch"}, "schedule_per epoch"),
        ({"backbone": "test_vit", "output_stride": None, "key_norm": "ema"}, "has no batch norm"),
        ({**FREE, "method": "byol", "queue_length": 16}, "queue_length=16: byol has no queue length. Leave it out."),
        (
            {**FREE, "method": "dino", "dense_negatives": "batch"},
            "dense_negatives batch: dino has no dense negatives",
        ),
        ({**FREE, "method": "simclr", "key_momentum_end": 1.0}, "key_momentum_end=1.0: simclr has no key momentum"),
        ({**FREE, "method": "barlow", "temperature_max": 0.3}, "temperature_max=0.3: barlow has no temperature"),
        ({**FREE, "method": "vicreg", "teacher_temperature": (0.1, 0.2)}, "teacher_temperature=0.1: vicreg has no"),
        ({**FREE, "method": "vicreg", "batch_size": 1}, "vicreg takes statistics .* at least 2 images .* at least 2"),
        ({**FREE, "method": "byol", "batch_size": 2, "devices": 2}, "on 2 device.* byol .* Give at least 4"),
        ({"batch_size": 1, "dense_negatives": "others"}, "there are no others. Give batch_size=2"),
        ({"key_momentum": None}, "key_momentum=None: moco does not go without. Leave it out."),
        ({"queue_length": None}, "queue_length=None: moco does not go without. Leave it out."),
        ({**FREE, "method": "simclr", "dense_negatives": None}, "dense_negatives=None: simclr does not go without"),
        ({**FREE, "method": "vicreg", "dense_statistics": None}, "dense_statistics=None: vicreg does not go without"),
        ({"local_crops": 2, "local_crop_size": 24}, "local_crop_size=24: .* is then 3x3, .* needs 4x4 .* least 32"),
        ({"local_crops": 2, "grid": 4, "image_size": 48, "local_crop_size": 16}, "is then 2x2, .* at least 32"),
    ],
)
def test_wrong_settings_leave_nothing_behind(tiny, tmp_path: Path, settings: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        pretrain(tiny(**settings), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_small_grid_warns(tiny, tmp_path: Path, capsys) -> None:
    pretrain(tiny(image_size=24, steps=1), tmp_path / "run")
    assert "only 3x3 cells, on which the dense loss means little; use --image-size 32" in capsys.readouterr().out


def test_a_run_is_not_overwritten(tiny, tmp_path: Path) -> None:
    pretrain(tiny(steps=1), tmp_path / "run")
    with pytest.raises(UserError, match="exists already. Go on with resume=True, or choose another folder"):
        pretrain(tiny(steps=1), tmp_path / "run")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.tex").touch()
    with pytest.raises(UserError, match="holds other files"):
        pretrain(tiny(steps=1), tmp_path / "other")
    with pytest.raises(UserError, match="is a file"):
        pretrain(tiny(steps=1), tmp_path / "other" / "thesis.tex")


def test_two_processes_do_not_share_a_run(tiny, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(run_folder, "LEAVING", 0.1)
    pretrain(tiny(steps=1), tmp_path / "run")
    before = (tmp_path / "run" / "recipe.yaml").read_bytes()
    with FileLock(tmp_path / "run" / ".lock"), pytest.raises(UserError, match="another process is at work on this run"):
        pretrain(tiny(steps=2), tmp_path / "run", resume=True)
    assert (tmp_path / "run" / "recipe.yaml").read_bytes() == before
    assert pretrain(tiny(steps=2), tmp_path / "run", resume=True).steps == 2


def test_a_run_is_not_shortened(tiny, tmp_path: Path) -> None:
    pretrain(tiny(steps=3), tmp_path / "run")
    before = (tmp_path / "run" / "recipe.yaml").read_bytes()
    with pytest.raises(UserError, match="has done 3 steps, more than the 2 that it shall have"):
        pretrain(tiny(steps=2), tmp_path / "run", resume=True)
    with pytest.raises(UserError, match="recipe='auto' -> paper"):
        pretrain(tiny(steps=4, recipe="paper"), tmp_path / "run", resume=True)
    assert (tmp_path / "run" / "recipe.yaml").read_bytes() == before


def test_a_lost_result_is_written_again(tiny, tmp_path: Path) -> None:
    result = pretrain(tiny(), tmp_path / "run")
    weights = load_file(result.backbone)
    result.backbone.unlink()
    again = load_file(pretrain(tiny(), tmp_path / "run", resume=True).backbone)
    assert all(torch.equal(tensor, again[name]) for name, tensor in weights.items())


def test_the_data_may_move_but_not_change(tiny, photos: Path, tmp_path: Path) -> None:
    shutil.copytree(photos, tmp_path / "here")
    pretrain(tiny(data=str(tmp_path / "here"), steps=2), tmp_path / "run")
    (tmp_path / "here").rename(tmp_path / "there")
    pretrain(tiny(data=str(tmp_path / "there"), steps=3), tmp_path / "run", resume=True)
    (tmp_path / "there" / "00.png").rename(tmp_path / "there" / "other.png")  # as many images as before
    with pytest.raises(UserError, match="data .*there holds other images"):
        pretrain(tiny(data=str(tmp_path / "there"), steps=4), tmp_path / "run", resume=True)


def test_a_disk_that_is_too_small_is_noticed_at_the_start(tiny, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=2**20, total=2**30))
    with pytest.raises(UserError, match="1 MiB are free on this disk, but a run of this model needs [1-9]"):
        pretrain(tiny(), tmp_path / "run")
    assert not (tmp_path / "run" / "recipe.yaml").exists()


def test_the_space_that_a_run_asks_for_is_what_it_takes(tiny, tmp_path: Path, monkeypatch) -> None:
    usage = shutil.disk_usage
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=0, total=2**30))
    with pytest.raises(UserError, match="needs") as error:
        pretrain(tiny(optimizer="adamw"), tmp_path / "run")
    asked = float(str(error.value).split("needs ")[1].split(" MiB")[0]) * 2**20
    monkeypatch.setattr(shutil, "disk_usage", usage)
    pretrain(tiny(optimizer="adamw"), tmp_path / "run")
    taken = sum((tmp_path / "run" / name).stat().st_size for name in ("checkpoints/last.ckpt", "backbone.safetensors"))
    assert asked == pytest.approx(2 * taken, rel=0.3)


def test_modules_that_cannot_be_trained(tiny, tmp_path: Path) -> None:
    recipe = tiny(backbone="module:Conv2d", output_stride=None)
    for module, message in (
        (nn.Conv2d(3, 8, 3, stride=8).requires_grad_(False), "no parameters to train"),
        (nn.Conv2d(3, 8, 3, stride=8).double(), r"parameters in float64. Give it in float32"),
    ):
        with pytest.raises(UserError, match=message):
            pretrain(recipe, tmp_path / "run", backbone=module)


class Tied(nn.Module):
    """Two layers with one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1)
        self.second.weight = self.first.weight

    def forward(self, pixels: Tensor) -> Tensor:
        return torch.nn.functional.avg_pool2d(self.second(self.first(pixels)), 8)


def test_tied_weights_are_saved(tiny, tmp_path: Path) -> None:
    result = pretrain(tiny(backbone="module:Tied", output_stride=None), tmp_path / "run", backbone=(module := Tied()))
    backbone, _ = load_backbone(tmp_path / "run", Tied())
    assert torch.equal(backbone.model.state_dict()["second.weight"], module.first.weight)
    with pytest.raises(UserError, match="weights of a Tied, which timm does not know. Give an instance as module="):
        load_backbone(result.backbone)


def test_a_run_that_never_reached_a_checkpoint_is_begun_anew(tiny, tmp_path: Path) -> None:
    for number in range(24):
        (tmp_path / f"{number}.png").write_bytes(b"not an image")
    with pytest.raises(UserError, match="replacements cannot be used"):
        pretrain(tiny(data=str(tmp_path)), tmp_path / "run")
    assert (tmp_path / "run" / "quarantine.csv").exists()
    pretrain(tiny(), tmp_path / "run")
    assert not (tmp_path / "run" / "quarantine.csv").exists()


def test_images_that_were_left_out_are_told_at_the_end_and_when_the_run_goes_on(
    tiny, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "photos").mkdir()
    for number in range(7):
        Image.new("RGB", (40, 40), (30 * number, 200, 9)).save(tmp_path / "photos" / f"{number}.png")
    (tmp_path / "photos" / "7.png").write_bytes(b"not an image")
    asked = {"data": str(tmp_path / "photos"), "max_bad_images": 0.5}
    told = f"1 of 8 images could not be used: see {tmp_path / 'run' / 'quarantine.csv'}"
    pretrain(tiny(**asked, steps=4), tmp_path / "run")
    lines = capsys.readouterr().out.replace("\n", " ")
    assert lines.count(told) == 1 and lines.index(told) < lines.index("Done after")
    pretrain(tiny(**asked, steps=5), tmp_path / "run", resume=True)
    assert (tmp_path / "run" / "train.log").read_text().count(told) == 3


def test_nan_stops_the_run_at_its_step_and_is_never_saved(tiny, tmp_path: Path, monkeypatch) -> None:
    forward = DenseCL.forward

    def spoiled(self, *views):
        output = forward(self, *views)
        return output._replace(loss=output.loss * float("nan")) if self.steps == 5 else output

    monkeypatch.setattr(DenseCL, "forward", spoiled)
    with pytest.raises(UserError, match="Step 5: .*clip_gradient"):
        pretrain(tiny(steps=20, log_every=8, checkpoint_every=2), tmp_path / "run")
    assert checkpoints.load_checkpoint(tmp_path / "run" / "checkpoints" / "last.ckpt")["step"] == 4
    assert all(tensor.isfinite().all() for tensor in load_file(tmp_path / "run" / "backbone.safetensors").values())


class Constant(nn.Module):
    """Gives the same features for every image and every cell."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Parameter(torch.ones(8))

    def forward(self, pixels: Tensor) -> Tensor:
        return self.features[None, :, None, None].expand(len(pixels), 8, 4, 4)


def test_collapse_stops_the_run(tiny, tmp_path: Path) -> None:
    recipe = tiny(backbone="module:Constant", output_stride=None, steps=30)
    with pytest.raises(UserError, match=f"Step {PATIENCE}: collapsed"):
        pretrain(recipe, tmp_path / "run", backbone=Constant())


def hungry(*anything: object, **settings: object) -> None:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB")


def test_out_of_memory_names_sizes_to_try(tiny, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(DenseCL, "forward", hungry)
    with pytest.raises(
        UserError, match="Out of memory at batch_size=4 .* batch_size=2, accumulate=2, output_stride=16"
    ):
        pretrain(tiny(), tmp_path / "run")
    with pytest.raises(UserError, match=", method moco"):
        pretrain(tiny(**FREE, method="simclr"), tmp_path / "other")


class Deadly(torch.utils.data.Dataset):
    """Kills the process that reads its images."""

    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> Image.Image:
        if torch.utils.data.get_worker_info() is not None:
            signal.raise_signal(signal.SIGKILL)
        return Image.radial_gradient("L").convert("RGB")


def test_a_process_that_reads_images_and_was_killed(tiny, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="was killed, most likely by the system .* memory"):
        pretrain(tiny(data="dataset:Deadly", workers=1), tmp_path / "run", dataset=Deadly())


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ("is killed by signal: Bus error. It is possible that dataloader's workers are", "want of shared memory.*shm"),
        ("is killed by signal: Killed. ", "want of memory"),
        ("is killed by signal: Segmentation fault. ", r"died of a signal \(Segmentation fault\)"),
        ("exited unexpectedly with exit code 1. Details are lost", "ended before it could say why; .* workers=0"),
        ("exited unexpectedly", "ended before it could say why; .* workers=0"),
    ],
)
def test_what_torch_says_of_a_dead_worker_is_put_in_words(tiny, said: str, told: str) -> None:
    with pytest.raises(UserError, match=told), explanations.memory_explained(tiny(workers=2)):
        raise RuntimeError(f"DataLoader worker (pid 7) {said}")


def test_out_of_memory_in_a_resumed_run_names_no_sizes(tiny, tmp_path: Path, monkeypatch) -> None:
    pretrain(tiny(steps=1), tmp_path / "run")
    monkeypatch.setattr(DenseCL, "forward", hungry)
    with pytest.raises(UserError, match="which a resumed run keeps. .* init .*run and a smaller batch_size"):
        pretrain(tiny(steps=2), tmp_path / "run", resume=True)


def test_out_of_memory_before_the_first_step(tiny, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("densecl.training.build.DenseCL", hungry)
    with pytest.raises(UserError, match="Try one of: batch_size=16, output_stride=16"):
        pretrain(tiny(batch_size="auto"), tmp_path / "run")
    with pytest.raises(UserError, match="Try one of: batch_size=4, accumulate=2, method moco"):
        pretrain(tiny(**FREE, method="simclr", batch_size=8), tmp_path / "run")


def test_a_full_disk_is_one_line_and_leaves_the_last_checkpoint(tiny, tmp_path: Path, monkeypatch) -> None:
    save = checkpoints.save_checkpoint

    def full(checkpoint, path: Path) -> None:
        if checkpoint["step"] == 4:

            class Full(io.FileIO):
                def write(self, data: object) -> int:
                    raise OSError(28, os.strerror(28))

            monkeypatch.setattr(Path, "open", lambda self, mode, **_: Full(self, mode))
        save(checkpoint, path)

    monkeypatch.setattr(recorder, "save_checkpoint", full)
    with pytest.raises(UserError, match="No space left on device"):
        pretrain(tiny(steps=6, checkpoint_every=2), tmp_path / "run")
    monkeypatch.undo()
    assert checkpoints.load_checkpoint(tmp_path / "run" / "checkpoints" / "last.ckpt")["step"] == 2


def refused(*_: object) -> None:
    raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))


def test_a_folder_that_takes_no_checkpoints_is_noticed_before_the_first_step(tiny, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(run, "fit", None)  # is not reached
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "checkpoints").touch()  # no folder
    with pytest.raises(
        UserError,
        match=r"Cannot write .*last.ckpt: File exists\. .* begin again with resume=True; there is no checkpoint yet",
    ):
        pretrain(tiny(), tmp_path / "run", resume=True)


def test_without_the_result_there_is_still_a_checkpoint(tiny, tmp_path: Path, monkeypatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(recorder, "save_backbone", refused)
        with pytest.raises(
            UserError, match=r"Cannot write .*backbone.safetensors: Permission denied\. .*resume=True; the"
        ):
            pretrain(tiny(), tmp_path / "run")
    (tmp_path / "run" / "backbone.safetensors").write_bytes(b"of an earlier step")
    result = pretrain(tiny(), tmp_path / "run", resume=True)  # which has nothing left to do
    whole = load_file(pretrain(tiny(), tmp_path / "whole").backbone)
    assert all(torch.equal(tensor, whole[name]) for name, tensor in load_file(result.backbone).items())


def test_a_file_system_without_locks_is_told(tiny, tmp_path: Path, monkeypatch, capsys) -> None:
    def without(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", without)
    pretrain(tiny(steps=1), tmp_path / "run")
    assert "has no locks; start no second run" in capsys.readouterr().out


def test_a_logger_that_fails_in_the_midst_is_left_out(tiny, tmp_path: Path, monkeypatch, capsys) -> None:
    def gone(self, metrics: dict[str, float], step: int | None = None) -> None:
        if "loss" in metrics:
            raise ConnectionError("no route to the server")

    monkeypatch.setattr("lightning.pytorch.loggers.TensorBoardLogger.log_metrics", gone)
    assert pretrain(tiny(loggers=("tensorboard",)), tmp_path / "run").steps == 3
    told = "warning: TensorBoardLogger fails and is left out from now on: no route to the server"
    assert capsys.readouterr().out.count(told) == 1


@pytest.mark.parametrize("name", ["[bold]", "[/x]", "a\udcff", "line\nbreak", "\x1b[31m", "{x}", "ü→"])
def test_a_run_folder_of_any_name(tiny, tmp_path: Path, name: str) -> None:
    out = tmp_path / name
    assert pretrain(tiny(steps=1), out).steps == 1
    assert pretrain(tiny(steps=1), out, resume=True).steps == 1


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("method", "precision"), [*((method, "32") for method in METHODS), ("moco", "bf16"), ("simclr", "bf16")]
)
def test_a_gpu_computes_what_a_cpu_does(method: str, precision: str, tiny, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    recipe = tiny(**FREE, method=method, precision=precision, image_size=64, steps=3)
    pretrain(recipe, tmp_path / "gpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    pretrain(recipe, tmp_path / "cpu")
    rows = zip(read(tmp_path / "gpu" / "metrics.csv"), read(tmp_path / "cpu" / "metrics.csv"), strict=True)
    for step, (found, expected) in enumerate(rows):
        # Steps on nearly the same gradients end apart a little, and matches are counted: one may tip.
        close = {"32": (1e-4, 1e-3, 0.05), "bf16": (0.02, 0.05, 0.2)}[precision][step]
        for name in ("loss", "global_loss", "dense_loss"):
            assert float(found[name]) == pytest.approx(float(expected[name]), rel=close, abs=1e-6), (step, name)
        assert float(found["match_accuracy"]) == pytest.approx(float(expected["match_accuracy"]), abs=0.1), step


@pytest.mark.gpu
@pytest.mark.parametrize(("precision", "products"), [("32", torch.float32), ("bf16", torch.float16)])
def test_cells_on_a_gpu_meet_their_negatives_in(precision: str, products, tiny, tmp_path: Path, monkeypatch) -> None:
    seen = []
    attend = log_sum_exp.attend
    monkeypatch.setattr(log_sum_exp, "attend", lambda *those: seen.append(those[0].dtype) or attend(*those))
    pretrain(tiny(**FREE, method="simclr", dense_weight=1.0, precision=precision, steps=1), tmp_path / "run")
    assert products in seen


@pytest.mark.gpu
def test_on_a_gpu_by_its_own_choice(tiny, tmp_path: Path) -> None:
    """From the images to weights that load on a CPU, interrupted in between, in bf16 where the GPU has it."""
    chosen = {
        "batch_size": "auto",
        "precision": "auto",
        "channels_last": "auto",
        "workers": "auto",
        "optimizer": "adamw",
    }
    recipe = tiny(**FREE, **chosen, method="auto", learning_rate="auto", image_size=64, steps=4)
    pretrain(recipe, tmp_path / "whole")
    settled = read_recipe(tmp_path / "whole" / "recipe.yaml")
    assert settled.batch_size == 16  # of 24 images
    assert "auto" not in (settled.precision, settled.channels_last)
    pretrain(dataclasses.replace(recipe, steps=2), tmp_path / "parts")
    pretrain(recipe, tmp_path / "parts", resume=True)
    whole, parts = (float(read(tmp_path / name / "metrics.csv")[-1]["loss"]) for name in ("whole", "parts"))
    assert parts == pytest.approx(whole, rel=0.1)
    backbone, _ = load_backbone(tmp_path / "parts")
    assert all(parameter.device.type == "cpu" and parameter.isfinite().all() for parameter in backbone.parameters())


@pytest.mark.gpu
@pytest.mark.timeout(600)
@pytest.mark.parametrize("precision", ["32", "bf16"])
def test_compiled_on_a_gpu(precision: str, tiny, tmp_path: Path) -> None:
    """In processes without this suite's checks of shapes, which torch.compile cannot follow."""
    losses = []
    for compiled in (False, True):
        out = tmp_path / str(compiled)
        write_recipe(tiny(precision=precision, channels_last=True, compile=compiled), tmp_path / "recipe.yaml")
        command = [sys.executable, "-m", "densecl", "pretrain", "--config", str(tmp_path / "recipe.yaml"), "--out", out]
        ended = subprocess.run(command, capture_output=True, text=True, timeout=300)
        assert ended.returncode == 0, ended.stderr
        losses.append([float(row["loss"]) for row in read(out / "metrics.csv")])
    assert losses[1] == pytest.approx(losses[0], rel=0.05)
