"""`--freeze-norm-statistics`: what a run that begins with existing weights does by itself."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from densecl.config.files import read_recipe
from densecl.errors import UserError
from densecl.model import DenseCL, create_backbone, load_backbone, save_backbone
from densecl.model.backbone import Backbone
from densecl.model.weights import read_metadata
from densecl.normalization import Normalization
from densecl.training.build import build
from densecl.training.recorder import Recorder
from densecl.training.run import pretrain


@pytest.fixture
def start(tmp_path: Path) -> Path:
    """Starting weights whose batch norm has seen something."""
    torch.manual_seed(3)
    backbone = create_backbone("test_resnet", output_stride=8).train()
    backbone(torch.randn(4, 3, 32, 32))
    save_backbone(backbone, tmp_path / "start.safetensors", Normalization((0.5,) * 3, (0.5,) * 3), {"license": "mit"})
    return tmp_path / "start.safetensors"


def statistics(path: Path) -> dict[str, torch.Tensor]:
    return {name: value for name, value in load_file(path).items() if "running" in name}


@pytest.mark.parametrize("settings", [{}, {"method": "simclr", "queue_length": None, "key_momentum": None}])
def test_a_run_from_existing_weights_keeps_their_statistics(tiny, start: Path, tmp_path: Path, settings) -> None:
    if settings:
        settings |= {"dense_negatives": "auto"}
    result = pretrain(tiny(init=str(start), **settings), tmp_path / "run")
    kept, before = statistics(result.backbone), statistics(start)
    assert kept and all(torch.equal(kept[name], before[name]) for name in before)
    others = load_file(start).keys() - before.keys()
    moved = [name for name in others if not torch.equal(load_file(start)[name], load_file(result.backbone)[name])]
    assert any("bn" in name for name in moved)  # the weights and biases of batch norm are trained
    recipe = read_recipe(tmp_path / "run" / "recipe.yaml")
    assert recipe.freeze_norm_statistics is True and "freeze_norm_statistics" in recipe.settled
    assert recipe.key_norm in (None, "auto")  # there are no statistics of a batch that could leak
    metadata = read_metadata(result.backbone)
    assert metadata is not None and recipe.init_license == metadata.provenance["license"] == "mit"


def test_the_key_encoder_keeps_them_too(tiny, start: Path) -> None:
    model = build(tiny(init=str(start)), None, None, None)[0].model.train()
    assert isinstance(model, DenseCL) and model.key_encoder is not None
    norms = [module for module in model.key_encoder.backbone.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    assert norms and not any(norm.training for norm in norms)
    model.key_encoder.train()
    assert not any(norm.training for norm in norms)


def test_random_weights_and_who_says_so_take_the_statistics_of_their_batches(tiny, start: Path, tmp_path: Path) -> None:
    made, _ = build(tiny(), None, None, None)
    assert made.recipe.freeze_norm_statistics is False and made.model.backbone.uses_batch_statistics
    result = pretrain(tiny(init=str(start), freeze_norm_statistics=False, steps=1), tmp_path / "run")
    kept, before = statistics(result.backbone), statistics(start)
    assert not any(torch.equal(kept[name], before[name]) for name in before)


def test_it_resumes_to_the_same_bits(tiny, start: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = tiny(init=str(start), steps=4, checkpoint_every=2)
    whole = load_file(pretrain(recipe, tmp_path / "whole").backbone)

    class Stop(Exception):
        pass

    def stop(recorder: Recorder, *others) -> None:
        save(recorder, *others)
        raise Stop

    save = Recorder._save
    with monkeypatch.context() as patch:
        patch.setattr(Recorder, "_save", stop)
        with pytest.raises(Stop):
            pretrain(recipe, tmp_path / "parts")
    start.unlink()  # the checkpoint has all that is needed
    resumed = load_file(pretrain(recipe, tmp_path / "parts", resume=True).backbone)
    assert all(torch.equal(resumed[name], value) for name, value in whole.items())


def test_a_run_of_before_the_setting_goes_on_as_it_began(tiny, start: Path, tmp_path: Path) -> None:
    pretrain(tiny(init=str(start), freeze_norm_statistics=False, steps=1), tmp_path / "run")
    written = tmp_path / "run" / "recipe.yaml"
    lines = [line for line in written.read_text().splitlines() if not line.startswith("freeze_norm_statistics")]
    written.write_text("\n".join(lines))
    result = pretrain(tiny(init=str(start), steps=2), tmp_path / "run", resume=True)
    assert read_recipe(written).freeze_norm_statistics is False
    assert not all(torch.equal(value, statistics(start)[name]) for name, value in statistics(result.backbone).items())


def test_settings_of_statistics_that_are_frozen_are_refused(tiny, start: Path) -> None:
    with pytest.raises(UserError, match="key_norm ema: test_resnet has its statistics frozen"):
        build(tiny(init=str(start), key_norm="ema"), None, None, None)


def test_a_backbone_that_was_frozen_before_is_recorded_as_such(tiny, start: Path) -> None:
    backbone = load_backbone(start)[0]
    backbone.freeze_norm_statistics()
    assert build(tiny(), None, None, backbone)[0].recipe.freeze_norm_statistics is True
    with pytest.raises(UserError, match="freeze_norm_statistics=False: those of this test_resnet are frozen"):
        build(tiny(freeze_norm_statistics=False), None, None, backbone)


def test_it_is_said_where_there_are_no_statistics_to_keep(tiny, start: Path, tmp_path: Path) -> None:
    unseen = "warning: the batch norm of test_resnet has seen no images"
    assert any(unseen in line for line in build(tiny(freeze_norm_statistics=True), None, None, None)[1])
    state = {name: value for name, value in load_file(start).items() if "running" not in name}
    save_file(state, tmp_path / "bare.safetensors")
    for init, said in ((tmp_path / "bare.safetensors", True), (start, False)):
        assert any(unseen in line for line in build(tiny(init=str(init)), None, None, None)[1]) == said


def test_it_is_said_where_there_is_nothing_to_freeze(tiny) -> None:
    recipe = tiny(backbone="test_vit", output_stride=None, image_size=128, freeze_norm_statistics=True)
    made, reasons = build(recipe, None, None, None)
    assert "warning: --freeze-norm-statistics does nothing: test_vit has no batch norm" in reasons
    assert isinstance(made.model.backbone, Backbone)
