"""Runs that follow frozen networks: exact resume, one view alone, and what is told and recorded."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
import safetensors
import torch
from safetensors.torch import load_file

from densecl.cli import main
from densecl.config.files import read_recipe
from densecl.errors import UserError
from densecl.images import maps
from densecl.images.maps import KeptMaps
from densecl.images.pairs import CropPairDataset
from densecl.model import DenseCL, create_backbone, save_backbone
from densecl.model.frozen import Frozen
from densecl.model.weights import Start
from densecl.normalization import Normalization
from densecl.training import guidance, kept_maps
from densecl.training.build import build
from densecl.training.checkpoints import load_checkpoint
from densecl.training.metrics import COLUMNS
from densecl.training.run import pretrain
from densecl.version import __version__
from tests.training.stopped import stop_after, stop_and_resume
from tests.training.test_resume import assert_same_run, rows

HALF = Normalization((0.5,) * 3, (0.25,) * 3)
ANCHOR = {"anchor": 2.0, "freeze_norm_statistics": "auto"}


@pytest.fixture(scope="session")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A ResNet with another stride and normalization than the student's."""
    torch.manual_seed(5)
    folder = tmp_path_factory.mktemp("teacher")
    save_backbone(create_backbone("test_resnet", output_stride=16), folder / "backbone.safetensors", HALF)
    return folder


@pytest.fixture(scope="session")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights to start from, whose batch norm has seen images."""
    torch.manual_seed(6)
    backbone = create_backbone("test_resnet", output_stride=8).train()
    for _ in range(20):
        backbone(torch.randn(8, 3, 32, 32))
    path = tmp_path_factory.mktemp("start") / "start.safetensors"
    save_backbone(backbone, path, HALF)
    return path


@pytest.fixture
def following(tiny, teacher: Path, start: Path):
    """Makes the recipe of a tiny run with a teacher, an anchor, both, or a teacher alone."""
    kinds = {
        "teacher": {"teacher": str(teacher), "teacher_weight": 0.5},
        "anchor": {"init": str(start), **ANCHOR},
        "both": {"teacher": str(teacher), "teacher_weight": 0.5, "init": str(start), **ANCHOR},
        "alone": {"teacher": str(teacher)},
        "itself": {"teacher": "init", "init": str(start)},
        "alone, anchored": {"teacher": str(teacher), "init": str(start), **ANCHOR},
    }
    return lambda kind, **settings: tiny(**{"optimizer": "adamw", "learning_rate": 0.001, **kinds[kind], **settings})


@pytest.mark.parametrize("kind", ["both", "alone", "itself", "alone, anchored"])
def test_resume_is_exact(following, tmp_path: Path, kind: str) -> None:
    recipe = following(kind, steps=5)
    stop_after(3, recipe, tmp_path / "run")
    checkpoint = load_checkpoint(tmp_path / "run" / "checkpoints" / "last.ckpt")
    assert checkpoint["step"] == 3
    names = checkpoint["model"].keys()
    assert "guidance.teacher.head.weight" in names
    frozen = {name for name in names if name.startswith("guidance") and "head" not in name}
    assert all(isinstance(checkpoint["model"][name], str) for name in frozen)  # no weights, but what tells them apart
    pretrain(recipe, tmp_path / "run", resume=True)
    pretrain(recipe, tmp_path / "whole")
    assert_same_run(tmp_path / "whole", tmp_path / "run")


@pytest.mark.parametrize(("kind", "settings"), [("both", {"dense_stage": (-2, -1)}), ("alone", {})])
def test_two_processes_resume_exactly(following, tmp_path: Path, kind: str, settings: dict) -> None:
    recipe = following(kind, steps=5, devices=2, **settings)
    stop_and_resume(3, recipe, tmp_path)
    assert_same_run(tmp_path / "whole", tmp_path / "run")


def test_two_processes_distill_as_one(following, tmp_path: Path) -> None:
    # Without batch norm's own statistics, those of half a batch are those of a whole one.
    settings = {"batch_size": 8, "backbone": "test_convnext", "output_stride": None, "image_size": 64}
    two = pretrain(following("alone", **settings, devices=2), tmp_path / "two")
    one = pretrain(following("alone", **settings), tmp_path / "one")
    weights = load_file(one.backbone)
    for name, tensor in load_file(two.backbone).items():
        torch.testing.assert_close(tensor, weights[name], atol=1e-5, rtol=1e-4)


def test_what_a_run_with_a_teacher_leaves(following, tmp_path: Path, capsys) -> None:
    run = pretrain(following("both"), tmp_path / "run")
    told = capsys.readouterr().out
    assert (
        "follows test_resnet at 64 px: 4x4 cells, objective cosine, weight 0.5; license of its weights: unknown" in told
    )
    assert "--teacher-size 64 (4x4 cells; the student has 4x4, and at 32 px the teacher would have 2x2)" in told
    assert "anchored to the starting weights: gram, weight 2" in told
    assert "The frozen networks took" in told and "a step." in told
    table = rows(run.out / "metrics.csv")
    assert all(float(row["teacher_loss"]) > 0 for row in table)
    assert float(table[0]["anchor_loss"]) == pytest.approx(0, abs=1e-6)
    assert float(table[0]["moved"]) == pytest.approx(0, abs=1e-5)
    assert float(table[-1]["moved"]) > 1e-5
    assert 0 < run.metrics["frozen_share"] < 1
    assert "head" not in " ".join(load_file(run.backbone))
    with safetensors.safe_open(run.backbone, framework="pt") as file:
        said = file.metadata()
    assert said["teacher"] == "test_resnet" and said["teacher_license"] == "unknown"
    assert said["steps"] == str(run.steps) and said["method"] == read_recipe(run.out / "recipe.yaml").method
    assert said["images"] == "24" and len(said["data_fingerprint"]) == 64 and said["densecl_version"] == __version__
    assert "/" not in said["init"]  # its folders are nobody's business
    assert read_recipe(run.out / "recipe.yaml").teacher_license == "unknown"


def test_an_anchor_alone_names_no_teacher(following, tmp_path: Path) -> None:
    run = pretrain(following("anchor", anchor_form="cells"), tmp_path / "run")
    last = rows(run.out / "metrics.csv")[-1]
    assert last["teacher_loss"] == "" and last["anchor_loss"] == last["moved"] != ""
    with safetensors.safe_open(run.backbone, framework="pt") as file:
        assert not any(name.startswith("teacher") for name in file.metadata())


def test_without_them_the_table_is_as_before(tiny, tmp_path: Path) -> None:
    run = pretrain(tiny(), tmp_path / "run")
    assert tuple((run.out / "metrics.csv").read_text().splitlines()[0].split(",")) == COLUMNS


def test_distillation_alone_takes_one_view_and_no_keys(following, tmp_path: Path, monkeypatch) -> None:
    drawn = []
    view = CropPairDataset._view
    monkeypatch.setattr(CropPairDataset, "_view", lambda self, *rest: drawn.append(self.single) or view(self, *rest))
    run = pretrain(following("alone", steps=6, checkpoint_every=100), tmp_path / "run")
    assert sum(drawn) == 6 * 4  # those of the fixed pairs are not single
    names = load_checkpoint(run.out / "checkpoints" / "last.ckpt")["model"].keys()
    assert {name.split(".")[0] for name in names} == {"backbone", "guidance"}
    last = rows(run.out / "metrics.csv")[-1]
    assert last["loss"] == last["teacher_loss"] and last["global_loss"] == "" and float(last["image_spread"]) > 0


def test_distillation_brings_the_student_nearer(following, tmp_path: Path) -> None:
    run = pretrain(following("alone", steps=30, learning_rate=0.003, warmup_epochs=0.0), tmp_path / "run")
    table = [float(row["teacher_loss"]) for row in rows(run.out / "metrics.csv")]
    assert sum(table[-5:]) < 0.8 * sum(table[:5])


def test_the_student_starts_as_it_would_without_a_teacher(following, tiny) -> None:
    plain = build(tiny(), None, None, None)[0].model
    guided = build(following("teacher"), None, None, None)[0].model
    assert isinstance(plain, DenseCL)
    theirs = guided.state_dict()
    assert all(torch.equal(one, theirs[name]) for name, one in plain.state_dict().items() if torch.is_tensor(one))


def test_a_teacher_for_other_channels(following, tmp_path: Path) -> None:
    settings = {"channels": 1, "mean": 0.5, "std": 0.25}
    with pytest.raises(UserError, match="Say with teacher_channels which ones it shall see, such as 0 0 0"):
        pretrain(following("teacher", **settings), tmp_path / "run")
    pretrain(following("teacher", **settings, teacher_channels=(0, 0, 0), teacher_size=64), tmp_path / "run")


def test_a_teacher_may_move_but_not_change(following, teacher: Path, tmp_path: Path) -> None:
    moved = tmp_path / "moved.safetensors"
    moved.write_bytes((teacher / "backbone.safetensors").read_bytes())
    run = pretrain(following("teacher", teacher=str(moved)), tmp_path / "run").out
    moved.unlink()
    with pytest.raises(UserError, match="moved.safetensors: no such run or file of weights"):
        pretrain(following("teacher", teacher=str(moved), steps=5), run, resume=True)
    save_backbone(create_backbone("test_resnet", output_stride=16), moved, HALF)
    with pytest.raises(UserError, match="The weights of teacher .*moved.safetensors are not those"):
        pretrain(following("teacher", teacher=str(moved), steps=5), run, resume=True)
    assert pretrain(following("teacher", steps=5), run, resume=True).steps == 5


def test_the_starting_weights_of_an_anchor_must_still_be_there(following, start: Path, tmp_path: Path) -> None:
    copied = tmp_path / "start.safetensors"
    copied.write_bytes(start.read_bytes())
    run = pretrain(following("anchor", init=str(copied)), tmp_path / "run").out
    copied.unlink()
    with pytest.raises(UserError, match="anchor needs the weights that the run started from.*no such run or file"):
        pretrain(following("anchor", init=str(copied), steps=5), run, resume=True)


def test_a_size_that_the_teacher_does_not_take(following, tmp_path: Path) -> None:
    save_backbone(create_backbone("test_vit"), tmp_path / "vit.safetensors", HALF)
    settings = {"teacher": str(tmp_path / "vit.safetensors"), "image_size": 40, "output_stride": 16}
    with pytest.raises(UserError, match="The teacher test_vit does not take images of 40x40 px.* Give teacher_size"):
        build(following("teacher", **settings, teacher_size=None), None, None, None)
    made = build(following("teacher", **settings), None, None, None)[0]  # in whole cells, no smaller than a view
    assert made.recipe.teacher_size == 48 and made.recipe.image_size == 40


def test_a_run_of_before_the_teachers_size_was_chosen_goes_on_as_it_began(following, tmp_path: Path, capsys) -> None:
    run = pretrain(following("alone", teacher_size=None), tmp_path / "run").out
    assert "teacher_size: null" in (run / "recipe.yaml").read_text()
    assert "warning: the teacher's feature map has 2x2 cells, fewer than the student's 4x4" in capsys.readouterr().out
    pretrain(following("alone", steps=5), run, resume=True)
    assert "follows test_resnet at 32 px: 2x2 cells" in capsys.readouterr().out
    assert read_recipe(run / "recipe.yaml").teacher_size is None


def test_a_run_of_before_features_were_standardized_goes_on_without(following, tmp_path: Path) -> None:
    settings, run = following("alone", steps=5, teacher_standardize=False), tmp_path / "run"
    stop_after(3, settings, run)
    recipe = run / "recipe.yaml"
    recipe.write_text("".join(line for line in recipe.read_text().splitlines(True) if "standardize" not in line))
    assert main(["pretrain", "--out", str(run), "--resume"]) == 0
    assert read_recipe(recipe).teacher_standardize is False
    pretrain(settings, tmp_path / "whole")
    assert_same_run(tmp_path / "whole", run)


def test_the_starting_weights_as_a_teacher(following, start: Path, tmp_path: Path, capsys) -> None:
    run = pretrain(following("itself"), tmp_path / "run")
    told = capsys.readouterr().out
    # Twice a view is 64 px. There the copy, at its own stride, would have 2x2 cells beside the student's 4x4.
    assert "distillation alone" in told and "follows its own starting weights at 128 px: 4x4 cells" in told
    assert read_recipe(run.out / "recipe.yaml").teacher == "init"
    with safetensors.safe_open(run.backbone, framework="pt") as file:
        assert file.metadata()["teacher"] == "its own starting weights"


def test_the_copy_is_of_what_the_run_starts_from(following, monkeypatch) -> None:
    backbone, whole = create_backbone("test_resnet", channels=1, output_stride=8), Start("", (), None, "")
    asked = following("itself", init="imagenet", channels=1)
    teacher = guidance.open_guides(asked, backbone, whole).teacher
    assert teacher is not None and teacher.normalization is None  # that of the run
    theirs = teacher.network.model.state_dict()
    assert all(torch.equal(one, theirs[name]) for name, one in backbone.model.state_dict().items())
    assert teacher.network.stride == 32 and teacher.network.in_channels == 1
    with pytest.raises(UserError, match="teacher init needs whole weights, and imagenet lacks 1 tensor, such as x"):
        guidance.open_guides(asked, backbone, whole._replace(missing=("x",)))
    read = []
    monkeypatch.setattr(guidance, "initialize_from", lambda network, init: read.append((network.name, init)) or whole)
    guidance.open_guides(asked, backbone, None)  # resumed
    assert read == [("test_resnet", "imagenet")]


def test_a_folder_called_init_is_not_the_teacher(
    photos: Path, start: Path, tmp_path: Path, monkeypatch, capsys
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("init").mkdir()
    command = ["pretrain", "--data", str(photos), "--out", "run", "--backbone", "test_resnet", "--init", str(start)]
    command += ["--teacher", "init", "--image-size", "32", "--steps", "1", "--batch-size", "4", "--workers", "0"]
    assert main(command) == 0 and "follows its own starting weights" in capsys.readouterr().out


def test_a_run_that_follows_nothing_needs_its_starting_weights_once(following, start: Path, tmp_path: Path) -> None:
    copied = tmp_path / "start.safetensors"
    copied.write_bytes(start.read_bytes())
    stop_after(3, following("anchor", init=str(copied), anchor=0.0, steps=5), tmp_path / "run")
    copied.unlink()
    assert main(["pretrain", "--out", str(tmp_path / "run"), "--resume"]) == 0


def test_wrong_teachers_end_with_code_2(photos: Path, tmp_path: Path, capsys) -> None:
    command = ["pretrain", "--data", str(photos), "--out", str(tmp_path / "run"), "--backbone", "test_resnet"]
    assert main([*command, "--teacher", "no/such.pth"]) == 2
    told = capsys.readouterr().err
    assert told == "densecl: error: --teacher no/such.pth: no such run or file of weights.\n"
    assert not (tmp_path / "run").exists()


@pytest.fixture
def kept(following, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Makes the recipe of a run that keeps its teacher's maps."""
    monkeypatch.setattr(maps, "FREE_BYTES", 0)
    return lambda kind, **settings: following(kind, teacher_cache=str(tmp_path / "maps"), **settings)


def test_kept_maps_are_made_once_and_a_stopped_run_ends_the_same(
    kept, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    whole = pretrain(kept("both", steps=4), tmp_path / "whole")
    told = capsys.readouterr().out
    assert "follows test_resnet on whole images at 144 px: 9x9 cells" in told  # 4 cells in a crop of a fifth: 9 in all
    assert "--teacher-cache: 24 maps are missing" in told and "the teacher's maps: image 24/24" in told
    files = sorted((tmp_path / "maps").glob("??/*.npy"))
    assert len(files) == 24
    monkeypatch.setattr(Frozen, "__call__", lambda self, pixels: pytest.fail("a second look at an image"))
    recipe = kept("both", steps=4, anchor=0.0, init=None)
    stop_after(2, recipe, tmp_path / "run")
    assert "maps are missing" not in capsys.readouterr().out
    pretrain(recipe, tmp_path / "run", resume=True)
    again = pretrain(recipe, tmp_path / "again")
    assert_same_run(again.out, tmp_path / "run")
    assert 0 < float(rows(whole.out / "metrics.csv")[0]["teacher_loss"]) < 4


def test_the_teacher_is_followed_at_the_places_of_the_view(kept, following, tmp_path: Path) -> None:
    """Where a view is the whole image in its own colors, cut out cells are those of the view."""
    plain = {"crop_scale": (1.0, 1.0), "jitter_probability": 0.0, "grayscale_probability": 0.0, "blur_probability": 0.0}
    plain |= {"teacher_size": 64, "image_size": 64, "output_stride": 16, "flip_probability": 0.0, "steps": 2}
    runs = [pretrain(make("alone", **plain), tmp_path / f"{number}") for number, make in enumerate((kept, following))]
    cut, seen = ([float(row["teacher_loss"]) for row in rows(run.out / "metrics.csv")] for run in runs)
    assert cut == pytest.approx(seen, rel=0.02)


def test_two_processes_share_the_making_of_maps(kept, tmp_path: Path) -> None:
    settings = {"steps": 2, "batch_size": 8, "backbone": "test_convnext", "output_stride": None, "image_size": 64}
    two = pretrain(kept("alone", **settings, devices=2), tmp_path / "two")
    assert len(list((tmp_path / "maps").glob("??/*.npy"))) == 24
    one = pretrain(kept("alone", **settings), tmp_path / "one")
    weights = load_file(one.backbone)
    for name, tensor in load_file(two.backbone).items():
        torch.testing.assert_close(tensor, weights[name], atol=1e-5, rtol=1e-4)


def test_a_signal_while_maps_are_made(kept, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    write = KeptMaps.write

    def stopped(self, index, features) -> None:
        write(self, index, features)
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(kept_maps, "AT_ONCE", 4)
    with monkeypatch.context() as patch:
        patch.setattr(KeptMaps, "write", stopped)
        with pytest.raises(SystemExit):
            pretrain(kept("alone"), tmp_path / "run")
    assert len(list((tmp_path / "maps").glob("??/*.npy"))) == 4
    assert "before the first step" in capsys.readouterr().out
    assert pretrain(kept("alone"), tmp_path / "run", resume=True).steps == 3
