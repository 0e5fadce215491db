"""Where the backbone learns later or slower than the heads: `--freeze-backbone-steps` and `--layer-decay`."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from densecl.errors import UserError
from densecl.model import create_backbone, save_backbone
from densecl.normalization import Normalization
from densecl.training.build import build
from densecl.training.checkpoints import load_checkpoint
from densecl.training.run import pretrain
from tests.training.stopped import stop_and_resume
from tests.training.test_resume import assert_same_run

PACE = {"freeze_backbone_steps": 2, "layer_decay": 0.5, "optimizer": "adamw", "learning_rate": 0.001}
OPEN = dict.fromkeys(("queue_length", "dense_negatives", "key_momentum"), "auto")
HALF = Normalization((0.5,) * 3, (0.25,) * 3)


@pytest.fixture(scope="session")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights to start from, and to be taught by; their batch norm has seen images."""
    torch.manual_seed(6)
    backbone = create_backbone("test_resnet", output_stride=8).train()
    backbone(torch.randn(8, 3, 32, 32))
    path = tmp_path_factory.mktemp("start") / "start.safetensors"
    save_backbone(backbone, path, HALF)
    return path


@pytest.mark.parametrize(
    "settings",
    [
        {"devices": 2},
        {"init": "START", "method": "simclr", **OPEN, "accumulate": 2, "clip_gradient": 1.0},
        {"method": "byol", **OPEN, "hidden_dim": 16, "optimizer": "lars", "weight_decay": 0.01},
        {"teacher": "START", "teacher_weight": 1.0, "optimizer": "sgd"},
    ],
    ids=["two processes", "accumulated, frozen statistics", "lars", "distillation alone, sgd"],
)
def test_first_the_heads_then_all_and_resumed_exactly(tiny, start: Path, tmp_path: Path, settings: dict) -> None:
    settings = {name: str(start) if value == "START" else value for name, value in settings.items()}
    recipe = tiny(**{**PACE, "steps": 4, **settings})
    stop_and_resume(2, recipe, tmp_path)
    stopped = load_checkpoint(tmp_path / "stopped.ckpt")
    first = build(recipe, None, None, None)[0].model
    parameters = dict(first.named_parameters())
    of_backbone = {name for name in parameters if ".backbone." in f".{name}"}
    assert stopped["step"] == 2 and of_backbone
    for name, value in parameters.items():
        head = name not in of_backbone and value.requires_grad
        if head and "bias" not in name:  # in front of batch norm a bias has no effect
            assert not torch.equal(stopped["model"][name], value), name
        elif not head and name in of_backbone:  # also not by weight decay; nor in the momentum encoder
            assert torch.equal(stopped["model"][name], value), name
    names = [name for group in stopped["optimizer"]["param_groups"] for name in group["param_names"]]
    remembered = {names[number] for number in stopped["optimizer"]["state"]}
    assert remembered and not remembered & of_backbone

    assert_same_run(tmp_path / "whole", tmp_path / "run")
    ended = load_file(tmp_path / "run" / "backbone.safetensors")
    now = first.backbone.model.state_dict()
    assert not torch.equal(ended["conv1.0.weight"], now["conv1.0.weight"])


def test_two_processes_learn_as_one(tiny, tmp_path: Path) -> None:
    # Without batch norm's own statistics, those of half a batch are those of a whole one.
    recipe = {**PACE, "steps": 4, "batch_size": 8, "backbone": "test_convnext", "output_stride": None, "image_size": 64}
    two = pretrain(tiny(**recipe, weight_decay=0.1, devices=2), tmp_path / "two")
    one = pretrain(tiny(**recipe, weight_decay=0.1), tmp_path / "one")
    weights = load_file(one.backbone)
    for name, tensor in load_file(two.backbone).items():
        torch.testing.assert_close(tensor, weights[name], atol=1e-5, rtol=1e-4)


def test_what_is_told(tiny, tmp_path: Path, capsys) -> None:
    pretrain(tiny(**PACE, steps=3), tmp_path / "run")
    told = capsys.readouterr().out
    assert "the heads learn alone until step 2; until step 4 the backbone's rate rises to theirs" in told
    assert "layer decay: the first of 5 layers learns at 0.062 of the last one's rate" in told


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"freeze_backbone_steps": 3},
            "freeze_backbone_steps=3: the run has 3 steps, so that the backbone would never",
        ),
        (
            {"teacher": "START", "teacher_weight": 1.0, "teacher_objective": "relational"},
            "there is no head that could learn alone",
        ),
        ({"layer_decay": 0.0}, "layer_decay must lie above 0 and up to 1, not 0.0"),
        ({"freeze_backbone_steps": -1}, "freeze_backbone_steps must be at least 0"),
    ],
)
def test_what_cannot_be(tiny, start: Path, settings: dict, message: str) -> None:
    settings = {name: str(start) if value == "START" else value for name, value in settings.items()}
    with pytest.raises(UserError, match=message):
        build(tiny(**{**PACE, **settings}), None, None, None)


def test_layers_of_a_network_that_does_not_say_which_come_first(tiny) -> None:
    own = nn.Sequential(nn.Conv2d(3, 8, 3, stride=8, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 1))
    with pytest.raises(UserError, match="layer_decay=0.5: Sequential does not say which of its layers come first"):
        build(tiny(**PACE), None, None, own)
    made = build(tiny(freeze_backbone_steps=1), None, None, own)[0]  # heads are told from any backbone
    assert made.recipe.freeze_backbone_steps == 1
