from __future__ import annotations

import copy
import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from faster_coco_eval import COCO
from safetensors import safe_open

from densecl.cli import main
from densecl.errors import UserError
from densecl.evaluation.compare import evaluate
from densecl.evaluation.weights import open_weights
from densecl.finetuning.fit import BEST, CHECKPOINT, LAST, TIMINGS
from densecl.finetuning.pixels import named
from densecl.finetuning.run import TunedRun
from densecl.finetuning.tuned import load_tuned
from tests.finetuning.conftest import Killed

Tune = Callable[..., TunedRun]

EVERY = {"validate_every": 2, "log_every": 1, "checkpoint_every": 2}


def rows(run: Path) -> list[dict[str, str]]:
    with (run / "metrics.csv").open(newline="") as file:
        return [{name: value for name, value in row.items() if name not in TIMINGS} for row in csv.DictReader(file)]


@pytest.fixture
def scored(monkeypatch: pytest.MonkeyPatch) -> list[list[dict]]:
    """All detections that are scored, a list for each time."""
    load, lists = COCO.loadRes, []

    def kept(self: COCO, detections: list[dict], *others) -> COCO:
        lists.append(copy.deepcopy(detections))
        return load(self, detections, *others)

    monkeypatch.setattr(COCO, "loadRes", kept)
    return lists


@pytest.mark.parametrize(("task", "data"), [("detection", "squares"), ("segmentation", "scenes")])
def test_it_scores_as_evaluate_does_and_a_killed_run_ends_the_same(
    task: str, data: str, weights: Path, tune: Tune, killed: Callable, tmp_path: Path, request, scored
) -> None:
    folder = request.getfixturevalue(data)
    before = torch.get_rng_state()
    whole = tune(weights, task, folder, tmp_path / "whole", seed=3, steps=4, **EVERY)
    assert torch.equal(torch.get_rng_state(), before)
    settings = {"image_size": (64, 64), "steps": 4, "batch_size": 2, "learning_rate": 1e-3}
    (judged,) = evaluate(
        [weights], task, folder, fine_tune=True, seeds=1, first_seed=3, json=None, test_split="val", **settings
    )
    assert judged.scores.keys() & {"ap", "miou"}
    for name in judged.scores.keys() & whole.last_scores.keys():  # single classes are told by evaluate alone
        assert whole.last_scores[name] == pytest.approx(judged.scores[name], nan_ok=True, abs=0)
    if (
        task == "detection"
    ):  # after so few steps nothing found is right, and AP is 0; so what was found must be the same
        assert scored[-1] == scored[-2] and len(scored[-1]) > 10

    killed(3)
    with pytest.raises(Killed):
        tune(weights, task, folder, tmp_path / "killed", seed=3, steps=4, **EVERY)
    assert torch.load(tmp_path / "killed" / CHECKPOINT, weights_only=True)["step"] == 2
    moved = tmp_path / "moved.safetensors"
    moved.write_bytes(b"the starting weights are not needed any more")
    record = json.loads((tmp_path / "killed/finetune.json").read_text())
    record["asked"]["weights"] = str(moved)
    (tmp_path / "killed/finetune.json").write_text(json.dumps(record))
    assert main(["finetune", "--resume", "--out", str(tmp_path / "killed")]) == 0

    runs = tmp_path / "whole", tmp_path / "killed"
    for name in (BEST, LAST):
        one, other = ((run / name).read_bytes() for run in runs)
        assert one == other, name
    assert rows(runs[0]) == rows(runs[1]) and [row["step"] for row in rows(runs[0])] == list("1234")
    results = [json.loads((run / "finetune.json").read_text())["result"] for run in runs]
    assert results[0]["best"] == results[1]["best"] and results[0]["last"] == results[1]["last"]
    assert (runs[1] / "validation.png").stat().st_size > 1000


def test_what_a_run_says_of_itself(weights: Path, squares: Path, tune: Tune, tmp_path: Path, capsys) -> None:
    run = tune(weights, "detection", squares, tmp_path / "run", steps=1)
    said = capsys.readouterr().out
    assert "4 images to learn from, 2 to validate on (val)" in said and "2 classes: red, green" in said
    assert ("No object was found in validation" in said) == (run.best_scores["f1"] == 0)
    with safe_open(run.best, framework="pt") as file:
        metadata = {name: json.loads(value) for name, value in file.metadata().items() if name != "format"}
    assert metadata["classes"] == ["red", "green"] and metadata["backbone"] == "resnet10t"
    assert metadata["mean"] == [0.5] * 3 and metadata["std"] == [0.25] * 3 and metadata["image_size"] == [64, 64]
    assert metadata["source"]["metadata"]["teacher_license"] == "mine" and len(metadata["source"]["sha256"]) == 64
    assert metadata["threshold"] == run.threshold and metadata["step"] == 1
    model, tuned = load_tuned(run.out)
    assert tuned.classes == ("red", "green") and not model.training
    (onward,) = open_weights([run.out], "resnet10t")  # its backbone goes on, with what its pixels need
    assert onward.normalization.std == (0.25,) * 3
    own = dict(model.get_submodule("backbone.backbone.model").named_parameters())
    assert onward.state is not None and all(torch.equal(onward.state[name], one) for name, one in own.items())
    norms = [name for name in model.state_dict() if name.endswith("num_batches_tracked")]
    assert norms and all(int(model.state_dict()[name]) == 1 for name in norms)  # batch norm was trained
    # A complete run has nothing left to do; without --resume its folder is taken.
    again = tune(None, None, None, tmp_path / "run", resume=True, steps=1)
    assert again.best_scores == run.best_scores and again.last_scores == run.last_scores
    with pytest.raises(UserError, match=r"exists already. Go on with resume=True"):
        tune(weights, "detection", squares, tmp_path / "run")
    with pytest.raises(UserError, match="has other settings: seed=0 -> 1"):
        tune(None, None, None, tmp_path / "run", resume=True, steps=1, seed=1)


@pytest.mark.parametrize("architecture", ["retinanet", "mask-rcnn"])
def test_other_detectors(architecture: str, weights: Path, squares: Path, tune: Tune, tmp_path: Path) -> None:
    data = tmp_path / "data"
    shutil.copytree(squares, data)
    for path in data.glob("annotations/*.json"):
        content = json.loads(path.read_text())
        for each in content["annotations"]:
            x, y, width, height = each["bbox"]
            each["segmentation"] = [[x, y, x + width, y, x + width, y + height, x, y + height]]
        path.write_text(json.dumps(content))
    run = tune(weights, "detection", data, tmp_path / "run", architecture=architecture, steps=2, validate_every=1)
    assert ("mask_ap" in run.best_scores) == (architecture == "mask-rcnn")
    model, tuned = load_tuned(run.last)
    assert tuned.network == architecture and type(model).__name__ == {"retinanet": "RetinaNet"}.get(
        architecture, "MaskRCNN"
    )


@pytest.mark.parametrize(
    ("what", "complaint"),
    [
        ({"weights": None}, "Give WEIGHTS"),
        ({"task": None}, "Give task detection"),
        ({"task": "detect"}, "task takes detection or segmentation, not 'detect'. Did you mean 'detection'"),
        ({"architecture": "fcn"}, "architecture takes faster-rcnn, retinanet or mask-rcnn for detection, not 'fcn'"),
        ({"architecture": "mask-rcnn"}, "has a box and no outline"),
        ({"weights": "missing"}, "no such run folder or file of weights"),
        ({"data": "missing"}, "no such folder of images with boxes"),
        ({"val_split": "tset"}, "has no boxes of 'tset'"),
        ({"steps": 0}, "steps must be at least 1"),
        ({"stepps": 3}, "There is no setting stepps"),
        ({"learning_rate": -1.0}, "learning_rate must be a number above 0"),
        ({"checkpoint_minutes": 0.0}, "checkpoint_minutes must be a number above 0"),
        ({"class_names": ("a", "b")}, "class_names is for label maps"),
        ({"resume": True}, "there is no run in"),
    ],
)
def test_what_cannot_be_done_is_told_before_any_work(
    what: dict, complaint: str, weights: Path, squares: Path, tune: Tune, tmp_path: Path
) -> None:
    given = {"weights": weights, "task": "detection", "data": squares} | what
    if given.get("resume"):
        given |= dict.fromkeys(("weights", "task", "data"))
    positional = [given.pop(name) for name in ("weights", "task", "data")]
    with pytest.raises(UserError, match=complaint) as told:
        tune(*positional, tmp_path / "run", **given)
    assert "\n" not in str(told.value)
    assert not (tmp_path / "run" / CHECKPOINT).exists()


def changed(data: Path, split: str, change: Callable[[dict], object]) -> None:
    path = data / f"annotations/instances_{split}.json"
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda content: content["annotations"][0].update(category_id=9), "category 9, which the file does not list"),
        (lambda content: content["annotations"][0].update(bbox=[64, 0, 9, 9]), "lies outside of the image of 64x64"),
        (lambda content: content["annotations"].clear(), "there is no object in the split val"),
        (lambda content: content["images"][0].update(file_name="../../x.png"), "there is no file"),
    ],
)
def test_wrong_boxes(change: Callable, complaint: str, weights, squares: Path, tune: Tune, tmp_path: Path) -> None:
    shutil.copytree(squares, tmp_path / "data")
    changed(tmp_path / "data", "val", change)
    with pytest.raises(UserError, match=complaint):
        tune(weights, "detection", tmp_path / "data", tmp_path / "run")


def test_the_names_of_labels_come_from_a_file_beside_them(
    weights: Path, scenes: Path, tune: Tune, tmp_path: Path, capsys
) -> None:
    data = tmp_path / "data"
    shutil.copytree(scenes, data)
    (data / "classes.txt").write_text("ground\n\tround thing \n")
    run = tune(weights, "segmentation", data, tmp_path / "run", steps=1)
    assert "classes: ground, round thing, 2" in capsys.readouterr().out
    assert load_tuned(run.best)[1].classes[:3] == ("ground", "round thing", "2")
    assert named({0: "a", 1: "a"}, 3) == ("0", "1", "2") and named({5: "x"}, 2) == ("0", "1")


def test_wrong_label_maps_and_names(weights: Path, scenes: Path, tune: Tune, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="but there are 2 classes"):
        tune(weights, "segmentation", scenes, tmp_path / "run", class_names=("ground", "thing"))
    with pytest.raises(UserError, match="a name twice"):
        tune(weights, "segmentation", scenes, tmp_path / "run", class_names=("a", "a"))


def test_data_that_changed(weights: Path, squares: Path, tune: Tune, killed: Callable, tmp_path: Path) -> None:
    shutil.copytree(squares, tmp_path / "data")
    killed(1)
    with pytest.raises(Killed):
        tune(weights, "detection", tmp_path / "data", tmp_path / "run", checkpoint_every=1)
    changed(tmp_path / "data", "train", lambda content: content["annotations"][0].update(bbox=[1, 2, 3, 4]))
    with pytest.raises(UserError, match="is of other data"):
        tune(None, None, None, tmp_path / "run", resume=True)
    (tmp_path / "run" / CHECKPOINT).write_bytes(b"PK\x03\x04broken")
    with pytest.raises(UserError, match="is damaged and cannot be resumed"):
        tune(None, None, None, tmp_path / "run", resume=True)


def test_a_signal_ends_a_run_after_a_checkpoint(
    weights: Path, squares: Path, tune: Tune, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    import os
    import signal

    from densecl.evaluation.fine_tuning import Descent

    step = Descent.step

    def hook(self: Descent) -> torch.Tensor:
        if self.done == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return step(self)

    monkeypatch.setattr(Descent, "step", hook)
    with pytest.raises(SystemExit) as left:
        tune(weights, "detection", squares, tmp_path / "my run")
    assert left.value.code == 143
    assert torch.load(tmp_path / "my run" / CHECKPOINT, weights_only=True)["step"] == 2
    assert f"Go on with: densecl finetune --out '{tmp_path}/my run' --resume\n" in capsys.readouterr().out
