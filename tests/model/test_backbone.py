from __future__ import annotations

import pytest
import timm
import torch
from torch import nn

from densecl.errors import UserError
from densecl.model.backbone import Backbone, create_backbone


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


def test_the_stride_of_modules_with_bare_borders_or_one_size():
    assert Backbone(nn.Conv2d(3, 5, 5, stride=3)).stride == 3  # 74 rows of 224 px
    assert Backbone(nn.Sequential(nn.Conv2d(3, 5, 4, stride=4), nn.AdaptiveAvgPool2d(9))).stride == 224 // 9


def test_an_output_stride_that_a_model_cannot_have_is_an_error():
    with pytest.raises(UserError, match="output-stride 8.*vit_small_patch16_224"):
        create_backbone("vit_small_patch16_224", output_stride=8)


def test_unknown_model_names_the_nearest():
    with pytest.raises(UserError, match="'resnet18'"):
        create_backbone("resent18")


def test_the_papers_initialisation():
    model = create_backbone("resnet50").model
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d) and module.weight.numel() > 50_000:
            fan_in = module.in_channels * module.kernel_size[0] * module.kernel_size[1]
            assert module.weight.std().item() == pytest.approx((2 / fan_in) ** 0.5, rel=0.03), name
        if isinstance(module, nn.BatchNorm2d):
            assert (module.weight == 1).all() and (module.bias == 0).all(), name


def test_models_without_batch_norm_keep_their_own_initialisation():
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


def test_an_image_size_that_the_model_refuses_is_an_error():
    with pytest.raises(UserError, match="10 px"):
        create_backbone("vit_tiny_patch16_224").grid_at(10)


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
