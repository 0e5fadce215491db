from __future__ import annotations

import math
import re

import pytest
import timm
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from densecl.errors import UserError
from densecl.model.backbone import Backbone, create_backbone
from tests.frozen import WatchedNorm, frozen_norm, modes


@pytest.mark.parametrize(
    ("name", "stride", "channels"),
    [("resnet18", 32, 512), ("resnet50", 32, 2048), ("convnext_nano", 32, 640), ("vit_small_patch16_224", 16, 384)],
)
def test_every_kind_of_model_gives_a_map(name, stride, channels):
    backbone = create_backbone(name)
    assert (backbone.stride, backbone.channels) == (stride, channels)
    assert backbone(torch.randn(2, 3, 64, 96)).shape == (2, channels, 64 // stride, 96 // stride)
    assert backbone.grid_at(128) == (128 // stride, 128 // stride)


@pytest.mark.parametrize(("name", "stride"), [("resnet18", 16), ("resnet18", 8), ("convnext_nano", 16)])
def test_output_stride_refines_the_map_and_keeps_the_weights(name, stride):
    backbone = create_backbone(name, output_stride=stride)
    assert backbone.stride == stride
    timm.create_model(name, num_classes=0).load_state_dict(backbone.model.state_dict())


@pytest.mark.parametrize("name", ["tinynet_e", "resnet10t"])  # of 106 and 176 px
@pytest.mark.parametrize("stride", [None, 16, 8])
def test_the_stride_is_right_where_the_usual_image_is_no_whole_number_of_cells(name, stride):
    backbone = create_backbone(name, output_stride=stride)
    assert backbone.stride == (stride or 32)
    assert backbone.grid_at(192) == (192 // backbone.stride,) * 2


@pytest.mark.parametrize("name", ["efficientvit_m0", "shvit_s1"])
def test_a_stride_of_64_is_told_from_one_of_56_though_224_px_give_four_cells(name):
    backbone = create_backbone(name)
    assert backbone.grid_at(224) == (4, 4)
    assert backbone.stride == 64 == 512 // backbone.grid_at(512)[0]


@given(
    factors=st.sampled_from([1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 14, 16, 20, 24, 28, 32, 40, 48, 56, 64]).flatmap(
        lambda stride: st.permutations([prime for prime in (2, 3, 5, 7) for _ in range(times(prime, stride))])
    ),
    borders=st.lists(st.tuples(st.integers(0, 3), st.booleans(), st.booleans()), min_size=6, max_size=6),
    size=st.integers(96, 400),
)
def test_the_stride_is_right_whatever_the_borders(factors, borders, size):
    layers = [
        nn.MaxPool2d(factor + more, factor, padding=(factor + more) // 2 if padded else 0, ceil_mode=over_the_edge)
        for factor, (more, padded, over_the_edge) in zip(factors, borders, strict=False)
    ]
    module = nn.Sequential(*layers)
    module.pretrained_cfg = {"input_size": (3, size, size)}
    assert Backbone(module).stride == math.prod(factors)


def times(prime, number):
    """How often a prime divides a number."""
    return next(power for power in range(10) if number % prime ** (power + 1))


def test_the_stride_of_modules_with_bare_borders_or_one_size():
    assert Backbone(nn.Conv2d(3, 5, 5, stride=3)).stride == 3  # 74 rows of 224 px
    assert Backbone(nn.Sequential(nn.Conv2d(3, 5, 4, stride=4), nn.AdaptiveAvgPool2d(9))).stride == 224 // 9


def test_an_output_stride_that_a_model_cannot_have_is_an_error():
    with pytest.raises(UserError, match="output_stride=8.*vit_small_patch16_224"):
        create_backbone("vit_small_patch16_224", output_stride=8)


def test_unknown_model_names_the_nearest():
    with pytest.raises(UserError, match="'resnet18'"):
        create_backbone("resent18")


def test_the_papers_initialization():
    model = create_backbone("resnet50").model
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d) and module.weight.numel() > 50_000:
            fan_in = module.in_channels * module.kernel_size[0] * module.kernel_size[1]
            assert module.weight.std().item() == pytest.approx((2 / fan_in) ** 0.5, rel=0.03), name
        if isinstance(module, nn.BatchNorm2d):
            assert (module.weight == 1).all() and (module.bias == 0).all(), name


def test_models_without_batch_norm_keep_their_own_initialization():
    torch.manual_seed(3)
    ours = create_backbone("convnext_atto").model.state_dict()
    torch.manual_seed(3)
    theirs = timm.create_model("convnext_atto", num_classes=0).state_dict()
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)


def test_parameters_outside_the_map_are_frozen_and_all_others_train():
    backbone = create_backbone("convnext_atto")
    backbone(torch.randn(2, 3, 64, 64)).square().sum().backward()
    for name, parameter in backbone.model.named_parameters():
        assert parameter.requires_grad == (parameter.grad is not None) == (not name.startswith("head.norm"))


def test_any_module_that_returns_a_map_is_a_backbone():
    backbone = Backbone(nn.Conv2d(3, 5, 4, stride=4))
    assert (backbone.channels, backbone.stride, backbone.name) == (5, 4, "Conv2d")


def test_a_module_without_a_map_is_an_error():
    with pytest.raises(UserError, match="no feature map"):
        Backbone(nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten()))


class Maps(nn.Module):
    """What a test wants it to give."""

    def __init__(self, give):
        super().__init__()
        self.conv = nn.Conv2d(3, 5, 4, stride=4)
        self.give = give

    def forward(self, pixels):
        return self.give(self.conv(pixels))


@pytest.mark.parametrize(
    ("give", "found"),
    [
        (lambda maps: maps.permute(0, 2, 3, 1), r"one with the channels last: \(1, 56, 56, 5\)"),
        (lambda maps: maps.flatten(2), r"\(1, 5, 3136\)"),
        (lambda maps: [maps, maps], "a list"),
        (lambda maps: {"out": maps}, "a dict"),
    ],
)
def test_what_is_no_map_is_named(give, found):
    with pytest.raises(UserError, match=f"Maps gives no feature map.*but {found}. Wrap it"):
        Backbone(Maps(give))


def refuse(maps, cells, error):
    """Raises an error unless the map has this many columns."""
    if maps.shape[3] != cells:
        raise error
    return maps


@pytest.mark.parametrize(
    "error",
    [AssertionError(), IndexError("index 111 is out of bounds"), KeyError("x"), TypeError("no"), RuntimeError()],
)
def test_a_size_that_a_model_refuses_is_an_error_that_names_one_it_takes(error):
    backbone = Backbone(Maps(lambda maps: refuse(maps, 24, error)))  # of 96 px
    assert backbone.grid_at(96) == (24, 24) and backbone.stride == 4
    ending = re.escape(f": {error}." if str(error) else ".")
    with pytest.raises(UserError, match=f"^Maps does not take images of 128x128 px, but of 96x96 px{ending}$"):
        backbone.grid_at(128)
    with pytest.raises(UserError, match="Maps does not take images of 64x96 px"):
        backbone.grid_at(96, 64)
    with pytest.raises(UserError, match=f"Maps takes no images of 3 channels{ending}$"):
        Backbone(Maps(lambda maps: refuse(maps, 1000, error)))


def test_a_size_that_a_vit_refuses_is_an_error():
    with pytest.raises(UserError, match="10x10 px, but of 32x32 px"):
        create_backbone("test_vit").grid_at(10)


def test_a_model_of_timm_that_gives_its_maps_without_norm_alone():
    class Unnormed(Maps):
        def forward_intermediates(self, pixels, indices=None, norm=False, intermediates_only=True):
            assert not norm, "normalization of features not supported"
            maps = [self.conv(pixels), self.conv(pixels)[:, :, ::2, ::2]]
            return maps[-indices:] if indices else maps

    backbone = Backbone(Unnormed(None))
    assert backbone.stride == 8 and backbone.grid_at(64) == (8, 8)
    assert backbone.map_kinds() == [(5, 4), (5, 8)]
    assert [one.shape[2] for one in backbone.maps(torch.zeros(1, 3, 32, 32))] == [8, 4]


def test_a_model_that_timm_cannot_make_is_an_error_of_one_line(monkeypatch):
    with pytest.raises(UserError, match="^backbone resnet18.nonsense: timm cannot make it: Invalid pretrained tag"):
        create_backbone("resnet18.nonsense")

    def needs_more(*_, **__):
        raise ModuleNotFoundError("No module named\n'einops'")

    monkeypatch.setattr(timm, "create_model", needs_more)
    with pytest.raises(UserError, match="^backbone resnet18: timm cannot make it: No module named 'einops'.$"):
        create_backbone("resnet18")


def test_checkpointed_activations_leave_the_gradients_and_keep_less():
    gradients, kept = [], []
    for checkpointed in (False, True):
        torch.manual_seed(0)
        backbone = create_backbone("test_vit")
        if checkpointed:
            backbone.checkpoint_activations()
        sizes: list[int] = []
        pixels = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
        with torch.autograd.graph.saved_tensors_hooks(lambda one, sizes=sizes: sizes.append(one.numel()) or one, id_):
            loss = backbone(pixels).square().sum()
        loss.backward()
        kept.append(sum(sizes))
        gradients.append({name: one.grad for name, one in backbone.named_parameters() if one.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient)
    assert kept[1] < kept[0] / 2


def id_(tensor):
    return tensor


@pytest.mark.parametrize(
    ("backbone", "problem"),
    [
        (lambda: create_backbone("test_resnet"), "has batch norm"),
        (lambda: Backbone(nn.Conv2d(3, 4, 3)), "does not know how"),
    ],
)
def test_activations_that_cannot_be_checkpointed(backbone, problem):
    with pytest.raises(UserError, match=problem):
        backbone().checkpoint_activations()


def test_frozen_statistics_stay_while_weights_and_biases_train():
    backbone = create_backbone("test_resnet").train()
    backbone.freeze_norm_statistics()
    assert backbone.training
    before = {name: value.clone() for name, value in backbone.named_buffers()}
    backbone.eval().train()(torch.randn(2, 3, 32, 32)).square().sum().backward()
    after = dict(backbone.named_buffers())
    assert before and all(torch.equal(after[name], value) for name, value in before.items())
    norms = [module for module in backbone.modules() if isinstance(module, nn.BatchNorm2d)]
    assert all(norm.weight.grad.abs().sum() > 0 and norm.bias.grad.abs().sum() > 0 for norm in norms)
    assert not backbone.uses_batch_statistics


def test_freezing_statistics_leaves_all_other_parts_in_their_mode():
    for module in (frozen_norm(), frozen_norm().eval()):
        dropout = nn.Dropout2d()
        backbone = Backbone(nn.Sequential(module, dropout).train(module.training))
        dropout.eval()
        before = modes(backbone)
        backbone.freeze_norm_statistics()
        norms = [part for part in backbone.modules() if isinstance(part, nn.BatchNorm2d)]
        assert modes(backbone) == [
            mode and part not in norms for part, mode in zip(backbone.modules(), before, strict=True)
        ]


def test_what_uses_the_statistics_of_a_batch():
    assert create_backbone("test_resnet").uses_batch_statistics
    assert not create_backbone("test_vit").uses_batch_statistics
    without_own = Backbone(nn.Sequential(nn.Conv2d(3, 5, 4, stride=4), nn.BatchNorm2d(5, track_running_stats=False)))
    without_own.freeze_norm_statistics()
    assert without_own.uses_batch_statistics and not without_own.has_norm_statistics


def test_whether_batch_norm_has_seen_images():
    backbone = create_backbone("test_resnet").train()
    assert not backbone.has_norm_statistics
    backbone(torch.randn(2, 3, 32, 32))
    assert backbone.has_norm_statistics


def test_asking_a_module_leaves_every_part_in_its_mode():
    module = frozen_norm()
    before = modes(module)
    backbone = Backbone(module)
    backbone.grid_at(64)
    with pytest.raises(UserError, match="does not take images of 2x2 px, but of 32x32 px"):
        backbone.grid_at(2)
    assert modes(module) == before and not WatchedNorm.trained
