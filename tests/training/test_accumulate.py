"""A step whose batch is computed in parts."""

from __future__ import annotations

import csv

import pytest
import torch
from safetensors.torch import load_file
from timm.models.vision_transformer import Block

from densecl.augment import augment
from densecl.errors import UserError
from densecl.images.batch import collate
from densecl.images.pairs import CropPairDataset
from densecl.images.sampler import StepSampler
from densecl.model import DenseCL
from densecl.model.objectives import DINO
from densecl.training.build import build
from densecl.training.checkpoints import load_checkpoint
from densecl.training.fit import _photometrics
from densecl.training.recorder import Recorder
from densecl.training.run import pretrain


@pytest.mark.parametrize("parts", [1, 2, 4])
def test_a_step_follows_the_mean_gradient_of_its_parts(tiny, tmp_path, parts):
    recipe = tiny(batch_size=8, accumulate=parts, steps=1, momentum=0.0, weight_decay=0.0)
    pretrain(recipe, tmp_path / "run")
    made, _ = build(recipe, None, None, None)
    recipe, model = made.recipe, made.model.train()
    assert isinstance(model, DenseCL)
    start = {name: value.clone() for name, value in model.query_encoder.named_parameters()}
    pairs = CropPairDataset(
        made.source,
        image_size=recipe.image_size,
        crop_scale=recipe.crop_scale,
        flip_probability=recipe.flip_probability,
        draw_photometrics=_photometrics(recipe, recipe.image_size),
        seed=recipe.seed,
    )
    whole = StepSampler(len(made.source), 8, seed=recipe.seed, stop_step=1)
    places = [place for batch in whole for place in batch]
    model.set_schedule(model.scheduled._replace(key_momentum=1.0))  # before the step, the keys' encoder is the queries'
    for part in range(parts):
        batch = collate([pairs[place] for place in places[part * 8 // parts : (part + 1) * 8 // parts]])
        views = [augment(crop, made.normalization) for crop in (batch.pairs.first, batch.pairs.second)]
        (model(*views).loss / parts).backward()
    after = load_checkpoint(tmp_path / "run" / "checkpoints" / "last.ckpt")["model"]
    for name, parameter in model.query_encoder.named_parameters():
        if parameter.grad is not None:
            expected = start[name] - 0.05 * parameter.grad
            torch.testing.assert_close(after[f"query_encoder.{name}"], expected, rtol=1e-4, atol=1e-6)


def test_the_key_encoder_moves_once_a_step(tiny, tmp_path):
    # In the second step: in the first there is nothing to follow yet.
    ends = {}
    for steps in (1, 2):
        pretrain(tiny(batch_size=8, accumulate=4, steps=steps, key_momentum=0.9), tmp_path / str(steps))
        ends[steps] = load_checkpoint(tmp_path / str(steps) / "checkpoints" / "last.ckpt")["model"]
    name = "global_head.layers.0.weight"
    key, query = ends[1][f"key_encoder.{name}"], ends[1][f"query_encoder.{name}"]
    torch.testing.assert_close(ends[2][f"key_encoder.{name}"], 0.9 * key + 0.1 * query, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("parts", [1, 4])
def test_dinos_centers_move_once_a_step(tiny, tmp_path, monkeypatch, parts):
    observe = DINO.observe
    monkeypatch.setattr(
        DINO, "observe", lambda self, keys, micro_batches: observe(self, torch.ones_like(keys), micro_batches)
    )
    own = dict.fromkeys(("queue_length", "dense_negatives", "key_momentum"), "auto")
    pretrain(tiny(method="dino", hidden_dim=16, batch_size=8, accumulate=parts, steps=2, **own), tmp_path)
    model = load_checkpoint(tmp_path / "checkpoints" / "last.ckpt")["model"]
    for level in ("global", "dense"):
        center = model[f"{level}_objective.center"]
        torch.testing.assert_close(center, torch.full_like(center, 1 - 0.9**2))  # after two steps from 0 towards 1


def test_rows_count_whole_steps(tiny, tmp_path):
    pretrain(tiny(batch_size=8, accumulate=2, steps=4), tmp_path)
    with (tmp_path / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["step"] for row in rows] == ["1", "2", "3", "4"]
    assert [float(row["key_momentum"]) for row in rows] == [0.99] * 4
    assert float(rows[-1]["epoch"]) == pytest.approx(4 * 8 / 24, rel=1e-4)


def test_resumed_at_the_same_length_is_exact(tiny, tmp_path):
    recipe = tiny(batch_size=8, accumulate=2, steps=4, checkpoint_every=2)
    pretrain(recipe, tmp_path / "whole")
    save = Recorder._save

    def then_stop(self, module):
        save(self, module)
        if self.done == 2:
            raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Recorder, "_save", then_stop)
        with pytest.raises(KeyboardInterrupt):
            pretrain(recipe, tmp_path / "parts")
    pretrain(recipe, tmp_path / "parts", resume=True)
    whole, parts = (load_file(tmp_path / run / "backbone.safetensors") for run in ("whole", "parts"))
    assert all(torch.equal(whole[name], parts[name]) for name in whole)


def test_parts_must_be_equal_and_large_enough(tiny, tmp_path):
    with pytest.raises(UserError, match="accumulate=3: 8 images a device"):
        tiny(batch_size=8, accumulate=3)
    recipe = tiny(
        method="barlow", batch_size=4, accumulate=4, queue_length="auto", dense_negatives="auto", key_momentum="auto"
    )
    with pytest.raises(UserError, match="in 4 parts: barlow takes statistics .* Give at least 8"):
        pretrain(recipe, tmp_path / "run")


def test_activations_computed_twice_train_the_same_weights(tiny, tmp_path, monkeypatch):
    """The other way to save memory, through whole steps: the query encoder's blocks run once more on the way back."""
    ran, states = {}, {}
    forward = Block.forward

    def counted(self, *arguments, **settings):
        ran[checkpointed] += 1
        return forward(self, *arguments, **settings)

    monkeypatch.setattr(Block, "forward", counted)
    for checkpointed in (False, True):
        recipe = tiny(
            backbone="test_vit", output_stride=None, image_size=48, accumulate=2, checkpoint_activations=checkpointed
        )
        ran[checkpointed] = 0
        pretrain(recipe, tmp_path / str(checkpointed))
        states[checkpointed] = load_checkpoint(tmp_path / str(checkpointed) / "checkpoints" / "last.ckpt")["model"]
    depth, batches = 6, 3 * 2
    assert ran[True] - ran[False] == depth * batches
    start = build(recipe, None, None, None)[0].model.state_dict()
    for name, value in states[False].items():
        if isinstance(value, torch.Tensor):
            torch.testing.assert_close(states[True][name], value, msg=lambda text, name=name: f"{name}: {text}")
    name = "query_encoder.backbone.model.blocks.0.attn.qkv.weight"
    assert (states[True][name] - start[name]).abs().max() > 1e-4  # or it would be no wonder
