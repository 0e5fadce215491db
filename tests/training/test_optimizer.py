"""Which parameters decay, and that a resumed run finds the state of each again."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import timm
import timm.optim
import torch
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

from densecl.errors import UserError
from densecl.model import Backbone, DenseCL, create_backbone
from densecl.training.optimizer import layers_from_the_end, make_optimizer, regrouped, set_learning_rates


def decay(model: nn.Module, name: str = "adamw") -> dict[str, float]:
    """The weight decay of each parameter that is trained."""
    groups = make_optimizer(model, name, weight_decay=0.02).param_groups
    return {each: group["weight_decay"] for group in groups for each in group["param_names"]}


class OwnTransformer(nn.Module):
    """One that does not say what is not to decay."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 8, 4, stride=4)
        self.positions = nn.Parameter(torch.zeros(1, 8, 1, 1))
        self.class_token = nn.Parameter(torch.zeros(1, 1, 8))
        self.attention = nn.MultiheadAttention(8, 2)
        self.mix = weight_norm(nn.Conv2d(8, 8, 1))
        self.layer_scale = nn.Parameter(torch.ones(8, 1, 1))


@pytest.mark.parametrize("optimizer", ["adamw", "lars"])
def test_the_weights_of_layers_decay_and_nothing_else(optimizer: str) -> None:
    found = decay(OwnTransformer(), optimizer)
    assert {name for name, value in found.items() if value} == {
        "patches.weight",
        "attention.in_proj_weight",
        "attention.out_proj.weight",
        "mix.parametrizations.weight.original0",
        "mix.parametrizations.weight.original1",
    }
    assert set(found.values()) == {0.0, 0.02}
    assert {"positions", "class_token", "layer_scale", "patches.bias", "attention.in_proj_bias"} <= set(found)


@pytest.mark.parametrize(
    ("backbone", "spared"),
    [
        ("vit_tiny_patch16_224", ("pos_embed", "cls_token", "norm.weight")),
        ("vit_tiny_patch16_dinov3_qkvb", ("cls_token", "reg_token", "blocks.0.gamma_1")),
        ("swin_tiny_patch4_window7_224", ("layers.0.blocks.0.attn.relative_position_bias_table",)),
        ("hiera_base_abswin_256", ("pos_embed", "pos_embed_win")),
        ("fastvit_ma36", ("stages.0.blocks.0.layer_scale.gamma", "stages.0.blocks.0.token_mixer.layer_scale.gamma")),
        ("visformer_tiny", ("pos_embed1", "pos_embed3")),
        ("convnext_atto", ("stages.0.blocks.0.gamma", "stem.1.weight", "stem.0.bias")),
        ("resnet18", ("bn1.weight", "bn1.bias")),
    ],
)
def test_what_timms_networks_spare(backbone: str, spared: tuple[str, ...]) -> None:
    with torch.device("meta"):
        model = timm.create_model(backbone, num_classes=0)
    found = decay(nn.ModuleDict({"query_encoder": nn.ModuleDict({"backbone": model})}))
    within = {name.removeprefix("query_encoder.backbone."): value for name, value in found.items()}
    assert {name: within[name] for name in spared} == dict.fromkeys(spared, 0.0)
    layers = {f"{path}.weight" for path, each in model.named_modules() if isinstance(each, (nn.Linear, nn.Conv2d))}
    assert {within[name] for name in layers} == {0.02}


def test_with_sgd_everything_decays_as_in_the_paper() -> None:
    model = DenseCL(create_backbone("test_vit"), dim=4, queue_length=4)
    found = decay(model, "sgd")
    assert set(found.values()) == {0.02}
    assert list(found) == [name for name, parameter in model.named_parameters() if parameter.requires_grad]


# --- a resumed run ----------------------------------------------------------------------------------------------------


def of_before(model: nn.Module, name: str) -> torch.optim.Optimizer:
    """As optimizers were made when they knew no names, and decayed whatever has more than one dimension."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if name == "sgd":
        return torch.optim.SGD(trained, lr=0.1, momentum=0.9)
    groups = [
        {"params": [parameter for parameter in trained if parameter.ndim > 1], "weight_decay": 0.02},
        {"params": [parameter for parameter in trained if parameter.ndim <= 1], "weight_decay": 0.0},
    ]
    if name == "lars":
        return timm.optim.Lars(groups, lr=0.1, momentum=0.9)  # pyright: ignore[reportArgumentType]
    return torch.optim.AdamW(groups, lr=0.1)


def transformer() -> Backbone:
    torch.manual_seed(0)
    return create_backbone("test_vit")


def learn(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    chance = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=chance)
    optimizer.step()


def by_name(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    return {name: optimizer.state[parameter] for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("before", ["names", "no names"])
@pytest.mark.parametrize("name", ["sgd", "lars", "adamw"])
def test_each_parameter_gets_its_own_state_back(name: str, before: str) -> None:
    model = transformer()
    if before == "names":
        one = make_optimizer(model, name, weight_decay=0.02)
        one.param_groups[0]["lr"] = one.param_groups[-1]["lr"] = 0.1
    else:
        one = of_before(model, name)
    learn(model, one)
    again = copy.deepcopy(model)
    other = make_optimizer(again, name, weight_decay=0.02)
    other.load_state_dict(regrouped(one.state_dict(), other, again))
    expected, found = by_name(model, one), by_name(again, other)
    assert expected.keys() == found.keys()
    for parameter, state in expected.items():
        assert state.keys() == found[parameter].keys()
        for what, value in state.items():
            assert torch.equal(torch.as_tensor(value), torch.as_tensor(found[parameter][what])), (parameter, what)
    assert {group["weight_decay"] for group in other.param_groups} == ({0.02} if name == "sgd" else {0.0, 0.02})


@pytest.mark.parametrize("before", ["names", "no names"])
def test_the_state_of_other_parameters_is_refused(before: str) -> None:
    model = transformer()
    one = make_optimizer(model, "adamw", weight_decay=0.02) if before == "names" else of_before(model, "adamw")
    next(model.parameters()).requires_grad_(False)
    other = make_optimizer(model, "adamw", weight_decay=0.02)
    with pytest.raises(UserError, match="optimizer is of other parameters"):
        regrouped(one.state_dict(), other, model)


# --- rates of their own -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["sgd", "lars", "adamw"])
def test_earlier_layers_learn_slower_and_heads_at_the_full_rate(name: str) -> None:
    model = nn.ModuleDict({"backbone": transformer(), "head": nn.Linear(4, 4)})
    backbone = model["backbone"]
    assert isinstance(backbone, Backbone)
    optimizer = make_optimizer(model, name, weight_decay=0.02, backbone=backbone, layer_decay=0.5)
    set_learning_rates(optimizer.param_groups, 0.1, backbone_factor=0.25)
    rate = {each: group["lr"] for group in optimizer.param_groups for each in group["param_names"]}
    expected = {"head.weight": 0.1, "head.bias": 0.1}
    # The stem and six blocks; timm counts the last norm with the last block.
    within = {"norm.weight": 0, "blocks.5.attn.qkv.weight": 0, "blocks.0.norm1.bias": 5, "pos_embed": 6}
    expected |= {f"backbone.model.{each}": 0.025 * 0.5**after for each, after in within.items()}
    assert {each: rate[each] for each in expected} == pytest.approx(expected)
    plain = make_optimizer(model, name, weight_decay=0.02)
    assert {each for group in plain.param_groups for each in group["param_names"]} == set(rate)
    of = {each: group["weight_decay"] for group in optimizer.param_groups for each in group["param_names"]}
    assert of == {each: group["weight_decay"] for group in plain.param_groups for each in group["param_names"]}


@pytest.mark.parametrize("name", ["test_resnet", "test_vit", "test_efficientnet", "test_convnext"])
def test_the_layers_are_timms(name: str) -> None:
    backbone = create_backbone(name)
    groups = timm.optim.param_groups_layer_decay(backbone.model, layer_decay=0.5)
    theirs = {parameter: group["lr_scale"] for group in groups for parameter in group["params"]}
    last = max(theirs.values())  # with layers behind it that are not trained, timm's is below 1
    ours = layers_from_the_end(backbone)
    assert {parameter: 0.5**after for parameter, after in ours.items()} == pytest.approx(
        {parameter: scale / last for parameter, scale in theirs.items()}
    )
    assert len(set(ours.values())) > 3


def test_a_state_finds_its_parameters_in_groups_of_other_rates() -> None:
    model = transformer()
    one = make_optimizer(model, "adamw", weight_decay=0.02)
    one.param_groups[0]["lr"] = one.param_groups[-1]["lr"] = 0.1
    learn(model, one)
    other = make_optimizer(model, "adamw", weight_decay=0.02, backbone=model, layer_decay=0.5)
    other.load_state_dict(regrouped(one.state_dict(), other, model))
    expected, found = by_name(model, one), by_name(model, other)
    assert all(torch.equal(found[each]["exp_avg"], state["exp_avg"]) for each, state in expected.items())
    assert len({group["lr_scale"] for group in other.param_groups}) == 7
