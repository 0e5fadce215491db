"""The dense loss on other feature maps than the last, and on several."""

from __future__ import annotations

import pytest
import torch
from torch.utils._pytree import tree_leaves

from densecl.errors import UserError
from densecl.model import METHODS, Backbone, DenseCL, create_backbone
from densecl.model.queue import Queue
from densecl.views import Views


def views(seed: int, size: int = 64) -> Views:
    generator = torch.Generator().manual_seed(seed)
    corners = torch.rand(4, 2, generator=generator) * 20
    pixels = torch.randn(4, 3, size, size, generator=generator)
    return Views(pixels, torch.cat([corners, corners + 40], dim=1), torch.zeros(4, dtype=torch.bool))


def model_with(*stages: int, method: str = "moco", **settings) -> DenseCL:
    torch.manual_seed(0)
    if method == "moco":
        settings = {"queue_length": 8, "dense_negatives": "pooled"} | settings
    backbone = create_backbone("test_resnet")
    return DenseCL(backbone, method=method, hidden_dim=8, dim=8, dense_stages=stages, **settings)


@pytest.mark.parametrize("method", METHODS)
def test_several_stages_have_the_mean_of_their_losses(method: str) -> None:
    several = model_with(2, 4, method=method)
    own = several.state_dict()
    losses = []
    for stage in (2, 4):
        alone = model_with(stage, method=method)
        state = {}
        for name in alone.state_dict():  # the parts of an earlier stage have names of their own
            earlier = name
            if stage == 2:
                for part in ("head", "objective", "queue"):
                    earlier = earlier.replace(f"dense_{part}.", f"earlier_{part.rstrip('s')}s.0.")
                earlier = earlier.replace("predictor.cell_layers.", "predictor.earlier_cell_layers.0.")
            state[name] = own[earlier]
        alone.load_state_dict(state)
        losses.append(alone(views(0), views(1)).dense_loss)
    output = several(views(0), views(1))
    torch.testing.assert_close(output.dense_loss, torch.stack(losses).mean())
    output.loss.backward()
    assert all(weight.grad is not None for weight in several.parameters() if weight.requires_grad)


def test_the_last_stage_is_the_default() -> None:
    torch.manual_seed(0)
    usual = DenseCL(
        create_backbone("test_resnet"), hidden_dim=8, dim=8, queue_length=8, dense_negatives="pooled"
    ).state_dict()
    for stage in (-1, 4):
        state = model_with(stage).state_dict()
        assert list(state) == list(usual)
        assert all(torch.equal(torch.as_tensor(state[name]), torch.as_tensor(usual[name])) for name in usual)


def test_each_stage_has_its_map_its_matches_and_its_queue() -> None:
    model = model_with(4, 2)  # in any order
    output = model(views(0), views(1))
    earlier, last = output.query.levels
    assert earlier.features.shape[2:] == (8, 8) and last.features.shape[2:] == (2, 2)
    assert earlier.cells is not None and earlier.cells.shape == (4, 64, 8)
    assert output.match.shape == (4, 4)
    for filled, level in zip((*model.earlier_queues, model.dense_queue), output.key.levels, strict=True):
        assert isinstance(filled, Queue) and level.pooled is not None
        assert torch.equal(filled.keys[:4], level.pooled)
    assert not any(tensor.requires_grad for tensor in tree_leaves(output.key))


def test_a_vit_has_its_blocks_as_stages() -> None:
    model = DenseCL(create_backbone("test_vit"), method="simclr", dense_stages=(-2, -1))
    earlier, last = model(views(0), views(1)).query.levels
    assert earlier.features.shape == last.features.shape


@pytest.mark.parametrize(
    ("stages", "complaint"),
    [
        ((5,), "dense_stage=5: test_resnet has the stages 1 to 4, of 4, 8, 16, 32 pixels a cell."),
        ((-5,), "dense_stage=-5: test_resnet has the stages 1 to 4"),
        ((3, -2), "dense_stage=3 -2 names a stage twice."),
    ],
)
def test_wrong_stages_are_one_clear_line(stages: tuple[int, ...], complaint: str) -> None:
    with pytest.raises(UserError) as caught:
        model_with(*stages)
    assert str(caught.value).startswith(complaint) and "\n" not in str(caught.value)


def test_a_network_of_ones_own_has_one_stage() -> None:
    backbone = Backbone(torch.nn.Conv2d(3, 4, 8, stride=8))
    assert [stage.stride for stage in backbone.stages_at([1])] == [8]
    with pytest.raises(UserError, match="dense_stage=2: Conv2d has one stage. Leave it out."):
        backbone.stages_at([2])
