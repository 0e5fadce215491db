"""Files as other projects lay them out, made from a small network by renaming: everything arrives, bit by bit."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import timm
import torch
import torchvision
from timm.models.resnet import BasicBlock, ResNet
from torch import Tensor, nn

from densecl.errors import UserError
from densecl.model.backbone import Backbone, create_backbone
from densecl.model.weights import initialize_from
from densecl.model.weights.layouts import LAYOUTS, NAMINGS

State = dict[str, Tensor]
Rules = tuple[tuple[str, str], ...]

#: From timm's names to those of others.
DETECTRON2: Rules = (
    (r"^conv1", "stem.conv1"),
    (r"^bn1", "stem.conv1.norm"),
    (r"\.bn(\d)", r".conv\1.norm"),
    (r"downsample\.0", "shortcut"),
    (r"downsample\.1", "shortcut.norm"),
    (r"^layer1", "res2"),
    (r"^layer2", "res3"),
    (r"^layer3", "res4"),
    (r"^layer4", "res5"),
)
NUMBERS: Rules = (
    (r"^conv1", "0"),
    (r"^bn1", "1"),
    (r"^layer1", "4"),
    (r"^layer2", "5"),
    (r"^layer3", "6"),
    (r"^layer4", "7"),
)
MM_TRANSFORMER: Rules = (
    (r"^norm\.", "ln1."),
    (r"^patch_embed\.proj", "patch_embed.projection"),
    (r"^blocks", "layers"),
    (r"\.norm(\d)", r".ln\1"),
    (r"mlp\.fc1", "ffn.layers.0.0"),
    (r"mlp\.fc2", "ffn.layers.1"),
)
MM_CONVNEXT: Rules = (
    (r"^stem", "downsample_layers.0"),
    (r"^stages\.(\d)\.downsample", r"downsample_layers.\1"),
    (r"\.blocks\.", "."),
    ("conv_dw", "depthwise_conv"),
    (r"mlp\.fc", "pointwise_conv"),
    (r"^head\.norm", "norm3"),
)
HF_RESNET: Rules = (
    (r"^conv1", "embedder.embedder.convolution"),
    (r"^bn1", "embedder.embedder.normalization"),
    (r"^layer1", "encoder.stages.0.layers"),
    (r"^layer2", "encoder.stages.1.layers"),
    (r"^layer3", "encoder.stages.2.layers"),
    (r"^layer4", "encoder.stages.3.layers"),
    (r"(layers\.\d)\.conv1", r"\1.layer.0.convolution"),
    (r"(layers\.\d)\.conv2", r"\1.layer.1.convolution"),
    (r"(layers\.\d)\.bn1", r"\1.layer.0.normalization"),
    (r"(layers\.\d)\.bn2", r"\1.layer.1.normalization"),
    (r"downsample\.0", "shortcut.convolution"),
    (r"downsample\.1", "shortcut.normalization"),
)
HF_CONVNEXT: Rules = (
    (r"^stem\.0", "embeddings.patch_embeddings"),
    (r"^stem\.1", "embeddings.layernorm"),
    (r"^stages\.(\d)\.downsample", r"encoder.stages.\1.downsampling_layer"),
    (r"^stages\.(\d)\.blocks", r"encoder.stages.\1.layers"),
    ("conv_dw", "dwconv"),
    (r"mlp\.fc", "pwconv"),
    (r"^head\.norm", "layernorm"),
    (r"(layers\.\d)\.norm", r"\1.layernorm"),
    ("gamma", "layer_scale_parameter"),
)


def renamed(state: State, rules: Rules) -> State:
    found = {}
    for name, tensor in state.items():
        for ours, theirs in rules:
            name = re.sub(ours, theirs, name)
        found[name] = tensor
    return found


def under(prefix: str, state: State) -> State:
    return {prefix + name: tensor for name, tensor in state.items()}


def other(state: State) -> State:
    """Weights of the same network that are not the wanted ones."""
    return {name: torch.zeros_like(tensor) for name, tensor in state.items()}


def plain(state: State) -> State:
    return {name: tensor for name, tensor in state.items() if not name.endswith("num_batches_tracked")}


def linear(state: State) -> State:
    """With the layers that timm makes convolutions as linear ones, as the authors of ConvNeXt do."""
    return {name: one.flatten(1) if one.shape[2:] == (1, 1) else one for name, one in state.items()}


def small_resnet() -> ResNet:
    """It has a plain stem, as those of other projects; the ones that timm has for tests do not."""
    return ResNet(BasicBlock, (1, 1, 1, 1), num_classes=0, channels=(8, 8, 16, 16))


@pytest.fixture(scope="module")
def weights() -> dict[str, State]:
    """Of small networks; none has values that a new network has."""
    found = {
        "resnet": small_resnet().state_dict(),
        "test_vit": timm.create_model("test_vit", num_classes=0).state_dict(),
        "test_convnext": timm.create_model("test_convnext", num_classes=0).state_dict(),
    }
    torch.manual_seed(1)
    return {
        architecture: {
            name: torch.randn_like(one) if one.is_floating_point() else one + 3 for name, one in state.items()
        }
        for architecture, state in found.items()
    }


def network(architecture: str) -> Backbone:
    if architecture == "resnet":
        return Backbone(small_resnet(), name="resnet")
    return create_backbone(architecture)


Make = Callable[[State], Any]

#: (what the file is taken for, network, the file's content, prefix of the weights)
FILES: tuple[tuple[str, str, Make, str], ...] = (
    ("detectron2's ResNet", "resnet",
     lambda w: {"model": {**under("backbone.bottom_up.", renamed(plain(w), DETECTRON2)),
                          "backbone.fpn_lateral2.weight": torch.zeros(9, 8, 1, 1)}, "iteration": 9},
     "model.backbone.bottom_up"),
    ("detectron2's ResNet", "resnet",
     lambda w: {"model": {name: one.numpy() for name, one in renamed(plain(w), DETECTRON2).items()},
                "__author__": "torchvision", "matching_heuristics": True}, "model"),
    ("Ultralytics' TorchVision layer", "resnet",
     lambda w: {"model": under("model.0.m.", renamed(w, NUMBERS)), "ema": None, "train_args": {}}, "model.model.0.m"),
    ("LightlySSL's checkpoint", "resnet",
     lambda w: {"state_dict": {**under("backbone_momentum.", other(renamed(w, NUMBERS))),
                               **under("backbone.", renamed(w, NUMBERS))},
                "pytorch-lightning_version": "2.5"}, "state_dict.backbone"),
    ("a ResNet whose parts have numbers (nn.Sequential)", "resnet", lambda w: renamed(w, NUMBERS), ""),
    ("a file of mmpretrain or mmselfsup, with their names", "test_vit",
     lambda w: {"meta": {}, "state_dict": under("backbone.", renamed(w, MM_TRANSFORMER))}, "state_dict.backbone"),
    ("a file of mmpretrain or mmselfsup, with their names", "test_convnext",
     lambda w: {"meta": {}, "state_dict": under("backbone.", renamed(linear(w), MM_CONVNEXT))}, "state_dict.backbone"),
    ("a network of transformers", "resnet", lambda w: under("resnet.", renamed(w, HF_RESNET)), "resnet"),
    ("a network of transformers", "test_convnext",
     lambda w: under("convnext.", renamed(linear(w), HF_CONVNEXT)), "convnext"),
    (
        "a network of timm's with features_only (also smp's tu- and transformers' TimmBackbone)",
        "test_convnext",
        lambda w: under("encoder.model.", {re.sub(r"^(stem|stages)\.", r"\1_", name): one for name, one in w.items()}),
        "encoder.model",
    ),
    ("a checkpoint of DenseCL's authors", "resnet",
     lambda w: {"meta": {"epoch": 200}, "state_dict": {**under("encoder_k.0.", other(w)), **under("encoder_q.0.", w),
                                                       **under("backbone.", w), "queue2": torch.zeros(4, 8)}},
     "state_dict.encoder_q.0"),
    ("a checkpoint of OpenMMLab (mmselfsup, mmpretrain, mmdetection, mmsegmentation)", "resnet",
     lambda w: {"meta": {}, "state_dict": {**under("target_net.0.", other(w)), **under("backbone.", w)}},
     "state_dict.backbone"),
    ("MoCo's checkpoint", "resnet",
     lambda w: {"state_dict": {**under("module.encoder_k.", other(w)), **under("module.encoder_q.", w)}},
     "state_dict.module.encoder_q"),
    ("MoCo v3's checkpoint", "test_vit",
     lambda w: {"state_dict": {**under("module.momentum_encoder.", other(w)), **under("module.base_encoder.", w)}},
     "state_dict.module.base_encoder"),
    ("VISSL's checkpoint", "resnet",
     lambda w: {"classy_state_dict": {"base_model": {"model": {"trunk": under("_feature_blocks.", w)}}}},
     "classy_state_dict.base_model.model.trunk._feature_blocks"),
    ("a checkpoint like DINO's", "test_vit",
     lambda w: {"student": under("module.backbone.", other(w)), "teacher": under("backbone.", w)}, "teacher.backbone"),
    ("LightlySSL's or another Lightning checkpoint", "test_vit",
     lambda w: {"state_dict": under("backbone.", w), "pytorch-lightning_version": "2.5"}, "state_dict.backbone"),
    ("a Lightning checkpoint", "test_vit",
     lambda w: {"state_dict": under("net.", w), "pytorch-lightning_version": "2.5"}, "state_dict.net"),
    ("a torchvision detector", "resnet",
     lambda w: {"model": {**under("backbone.body.", plain(w)), "backbone.fpn.x.weight": torch.zeros(2)}},
     "model.backbone.body"),
    ("a torchvision segmenter", "resnet",
     lambda w: {**under("backbone.", w), "classifier.4.bias": torch.zeros(2)}, "backbone"),
    ("a segmenter of segmentation-models-pytorch", "resnet",
     lambda w: {**under("encoder.", w), "segmentation_head.0.bias": torch.zeros(2)}, "encoder"),
    ("transformers' wrapper of timm", "test_vit", lambda w: under("timm_model.", w), "timm_model"),
    ("a checkpoint of timm's training", "test_vit",
     lambda w: {"state_dict": other(w), "state_dict_ema": w, "metric": 3.0}, "state_dict_ema"),
    ("a checkpoint of PyTorch's ImageNet example", "resnet",
     lambda w: {"state_dict": under("module.", w), "best_acc1": torch.tensor(1.0)}, "state_dict.module"),
    ("weights saved from DataParallel or DistributedDataParallel", "resnet", lambda w: under("module.", w), "module"),
    ("a plain state dict", "test_vit", lambda w: w, ""),  # also LightlyTrain's exports
)  # fmt: skip


@pytest.mark.parametrize("number", range(len(FILES)), ids=[f"{name}, {kind}" for name, kind, _, _ in FILES])
def test_every_layout_is_recognized_and_arrives_whole(number: int, weights: dict[str, State], tmp_path: Path) -> None:
    name, architecture, make, place = FILES[number]
    torch.save(make(weights[architecture]), tmp_path / "x.pth")
    backbone = network(architecture)
    start = initialize_from(backbone, tmp_path / "x.pth")
    found = backbone.model.state_dict()
    expected = {key: one for key, one in weights[architecture].items() if key in found}
    assert {key for key, one in expected.items() if not torch.equal(found[key], one)} <= {
        key for key in found if key.endswith("num_batches_tracked")
    }
    where = f", the weights under '{place}'" if place else ""
    assert f"taken for: {name}{where}" in start.report
    total = len(expected) if start.report.startswith(f"{len(expected)} of") else len(plain(expected))
    assert start.report.startswith(f"{total} of {total} tensors") and not start.missing


def test_each_row_has_a_file_here() -> None:
    made = {name for name, *_ in FILES}
    assert {layout.name for layout in LAYOUTS} - made == {"a network of torchvision, with its names"}  # see below
    assert {layout.naming for layout in LAYOUTS} - {""} == NAMINGS.keys()


def test_names_decide_where_the_order_of_tensors_says_nothing(weights: dict[str, State], tmp_path: Path) -> None:
    for rules in (DETECTRON2, NUMBERS, HF_RESNET):
        safetensors.torch.save_file(renamed(weights["resnet"], rules), tmp_path / "x.safetensors")
        backbone = network("resnet")
        initialize_from(backbone, tmp_path / "x.safetensors")
        assert all(torch.equal(one, weights["resnet"][name]) for name, one in backbone.model.state_dict().items())


def test_torchvisions_own_networks(tmp_path: Path) -> None:
    transformer = torchvision.models.VisionTransformer(
        image_size=64, patch_size=16, num_layers=2, num_heads=2, hidden_dim=64, mlp_dim=256
    ).eval()
    nn.init.normal_(transformer.encoder.layers[0].self_attention.in_proj_bias)  # pyright: ignore
    torch.save(transformer.state_dict(), tmp_path / "x.pth")
    ours = timm.models.VisionTransformer(
        img_size=64, patch_size=16, depth=2, num_heads=2, embed_dim=64, mlp_ratio=4, num_classes=0, global_pool="token"
    )
    backbone = Backbone(ours.eval(), name="transformer")
    report = initialize_from(backbone, tmp_path / "x.pth").report
    assert "taken for: a network of torchvision, with its names" in report and report.startswith("30 of 30")
    image = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        tokens = torch.cat([transformer.class_token, transformer._process_input(image)], 1)
        assert torch.allclose(ours.forward_features(image), transformer.encoder(tokens), atol=1e-5)


def test_it_says_why_one_of_two_encoders_is_taken(weights: dict[str, State], tmp_path: Path) -> None:
    state = weights["test_vit"]
    reasons = {
        "not 'encoder_k', which only gives the targets of the training": ("encoder_k.", "encoder_q."),
        "not 'student', because a teacher is the moving average of its student": ("student.", "teacher."),
        "not 'model', because a moving average of the weights is better": ("model.", "model_ema."),
        "'a' would fit as well; the first one is taken": ("b.", "a."),
    }
    for reason, (rival, taken) in reasons.items():
        first, second = (taken, rival) if "first" in reason else (rival, taken)
        if "first" in reason:
            reason = reason.replace("'a'", "'b'")
        content = {**under(first, state if first == taken else other(state)),
                   **under(second, state if second == taken else other(state))}  # fmt: skip
        torch.save(content, tmp_path / "x.pth")
        backbone = network("test_vit")
        report = initialize_from(backbone, tmp_path / "x.pth").report
        assert reason in report, report
        assert torch.equal(backbone.model.get_parameter("cls_token"), state["cls_token"])
    torch.save({**under("b.", state), **under("a.", state)}, tmp_path / "x.pth")
    assert "would fit" not in initialize_from(network("test_vit"), tmp_path / "x.pth").report  # the same numbers


def test_another_network_under_known_names_is_refused(weights: dict[str, State], tmp_path: Path) -> None:
    torch.save({"model": renamed(weights["resnet"], DETECTRON2)}, tmp_path / "x.pth")
    with pytest.raises(UserError, match=r"only \d+ of 120 tensors of resnet18 matched by name and shape"):
        initialize_from(create_backbone("resnet18"), tmp_path / "x.pth")


def test_detectron2s_habits_are_warned_of(weights: dict[str, State], tmp_path: Path) -> None:
    torch.save({"model": renamed(weights["resnet"], DETECTRON2)}, tmp_path / "x.pth")
    (warning,) = initialize_from(network("resnet"), tmp_path / "x.pth").warnings
    assert "BGR pixels of 0 to 255" in warning and "1x1" in warning


def test_the_documentation_has_each_row() -> None:
    text = (Path(__file__).parents[3] / "docs" / "automatic-settings.md").read_text(encoding="utf-8")
    for layout in LAYOUTS:
        assert f"| {layout.name} | {layout.checked or 'no real file'} |" in text
