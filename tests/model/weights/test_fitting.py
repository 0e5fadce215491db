from __future__ import annotations

import argparse
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file
from timm.models import adapt_input_conv
from torch import Tensor, nn

from densecl.errors import UserError
from densecl.model.backbone import Backbone, create_backbone
from densecl.model.weights import Start, initialize_from
from densecl.model.weights.fitting import adapted_to_channels
from densecl.names import counted

State = dict[str, Tensor]


@pytest.fixture(scope="module")
def state() -> State:
    """The weights of a small network of a timm family."""
    return timm.create_model("test_resnet", num_classes=10).state_dict()


@pytest.fixture(scope="module")
def transformer() -> State:
    return timm.create_model("test_vit", num_classes=10).state_dict()


def under(prefix: str, state: State) -> State:
    return {prefix + name: tensor for name, tensor in state.items()}


def other(state: State) -> State:
    """Weights of the same network that are not the wanted ones."""
    return {name: torch.zeros_like(tensor) for name, tensor in state.items()}


def renamed(state: State) -> State:
    """Names that have nothing in common with ours but their last word."""
    return {f"n{index}.{name.rpartition('.')[2]}": tensor for index, (name, tensor) in enumerate(state.items())}


def start(content: Any, folder: Path, architecture: str = "test_resnet", **how: Any) -> tuple[Start, State]:
    torch.save(content, folder / "x.pth")
    backbone = create_backbone(architecture, **how)
    return initialize_from(backbone, folder / "x.pth"), backbone.model.state_dict()


def taken(found: State, given: State) -> bool:
    return all(torch.equal(tensor, given[name]) for name, tensor in found.items())


#: A checkpoint of the weights in its argument, and the prefix under which they are to be found.
LAYOUTS: dict[str, tuple[Callable[[State], Any], str]] = {
    "plain": (lambda w: w, ""),
    "PyTorch's ImageNet example": (
        lambda w: {"epoch": 3, "state_dict": under("module.", w), "best_acc1": torch.tensor(61.2)},
        "state_dict.module",
    ),
    "PyTorch's tutorial": (lambda w: {"model_state_dict": w, "loss": torch.tensor(0.4)}, "model_state_dict"),
    "DataParallel": (lambda w: under("module.", w), "module"),
    "MoCo": (
        lambda w: {
            "state_dict": {
                **under("module.encoder_k.", other(w)),
                **under("module.encoder_q.", w),
                "module.queue": torch.zeros(128, 8),
            }
        },
        "state_dict.module.encoder_q",
    ),
    "mmcv": (lambda w: {"meta": {"epoch": 1}, "state_dict": under("backbone.", w)}, "state_dict.backbone"),
    "DenseCL's training": (
        lambda w: {"state_dict": {**under("encoder_k.0.", other(w)), **under("encoder_q.0.", w)}},
        "state_dict.encoder_q.0",
    ),
    "DINO": (
        lambda w: {
            "student": under("module.backbone.", other(w)),
            "teacher": under("backbone.", w),
            "args": argparse.Namespace(arch="x", out=Path("x")),
        },
        "teacher.backbone",
    ),
    "Lightning": (
        lambda w: {
            "state_dict": {**under("model.backbone.", w), **under("model.backbone_momentum.", other(w))},
            "hyper_parameters": argparse.Namespace(lr=1),
            "callbacks": {"checkpoint": {"best": torch.tensor(1.0)}},
        },
        "state_dict.model.backbone",
    ),
    "BYOL": (
        lambda w: {**under("target_network.encoder.", other(w)), **under("online_network.encoder.", w)},
        "online_network.encoder",
    ),
    "I-JEPA": (
        lambda w: {"encoder": under("module.", other(w)), "target_encoder": under("module.", w)},
        "target_encoder.module",
    ),
    "timm's training": (lambda w: {"state_dict": other(w), "state_dict_ema": w, "metric": 3.0}, "state_dict_ema"),
    "a detector": (lambda w: {"model": under("backbone.body.", w)}, "model.backbone.body"),
    "an average": (lambda w: {"model": other(w), "average_model": w}, "average_model"),
    "an optimizer by name": (lambda w: {"opt": {"exp_avg": other(w), "exp_avg_sq": other(w)}, "net": w}, "net"),
    "deep inside": (lambda w: {"a": {"b": [{"weights": w}]}}, "a.b.0.weights"),
    "torch.compile": (lambda w: {"model": under("_orig_mod.", w)}, "model._orig_mod"),
    "wrappers within": (lambda w: {name.replace("layer1.", "layer1._orig_mod."): one for name, one in w.items()}, ""),
    "16 bits": (lambda w: {name: one.half() if one.is_floating_point() else one for name, one in w.items()}, ""),
    "arrays": (lambda w: {"model": {name: one.numpy() for name, one in w.items()}}, "model"),
}  # fmt: skip


@pytest.mark.parametrize("layout", LAYOUTS)
def test_weights_are_found_wherever_they_stand(layout: str, state: State, tmp_path: Path) -> None:
    make, place = LAYOUTS[layout]
    given = {name: one.half().float() if one.is_floating_point() else one for name, one in state.items()}
    found, weights = start(make(given), tmp_path)
    assert taken(weights, given)
    where = f"the weights under '{place}'" if place else "a plain state dict"
    assert found.report.startswith(f"90 of 90 tensors of test_resnet matched in {tmp_path / 'x.pth'}, taken for: ")
    assert where in found.report
    assert not found.warnings


def test_the_equals_are_named(state: State, tmp_path: Path) -> None:
    found, _ = start({"student": under("module.", other(state)), "teacher": state}, tmp_path)
    assert found.report.endswith(
        "'teacher' (not 'student.module', because a teacher is the moving average of its student, and better)"
    )


def test_the_same_tensors_under_other_names_are_taken_in_order(state: State, tmp_path: Path) -> None:
    found, weights = start({"optimizer": {"state": {}, "param_groups": []}, "net": renamed(state)}, tmp_path)
    assert taken(weights, state)
    assert "90 of 90" in found.report and "under 'net' (their names are others, their shapes agree" in found.report
    slashes = {name.replace(".", "/"): one for name, one in renamed(state).items()}
    assert taken(start(slashes, tmp_path)[1], state)
    without = {name: one for name, one in renamed(state).items() if not name.endswith("num_batches_tracked")}
    found, weights = start(without, tmp_path)
    assert found.report.startswith("75 of 75") and torch.equal(
        weights["layer4.0.conv1.weight"], state["layer4.0.conv1.weight"]
    )


def test_an_order_that_may_mislead_is_not_followed(transformer: State, tmp_path: Path) -> None:
    network = timm.create_model("test_vit", num_classes=0)
    bare = network.state_dict()
    others = {"weight": "bias", "bias": "weight"}
    swapped = {
        f"{name[: -len(last)]}{others.get(last, last)}": one
        for name, one in renamed(bare).items()
        for last in (name.rpartition(".")[2],)
    }
    deeper = renamed({**bare, **{f"more.{index}.weight": torch.zeros(64) for index in range(9)}})
    optimizer = {"momentum": {index: {"momentum_buffer": one} for index, one in enumerate(network.parameters())}}
    for content in (swapped, deeper, optimizer, list(bare.values())):
        with pytest.raises(UserError, match="tensors of test_vit matched by name and shape"):
            start(content, tmp_path, "test_vit")
    save_file(renamed(bare), tmp_path / "sorted.safetensors")
    with pytest.raises(UserError, match="tensors of test_vit matched by name and shape"):
        initialize_from(create_backbone("test_vit"), tmp_path / "sorted.safetensors")


@pytest.mark.parametrize("prefix", ["", "teacher.backbone."])
@pytest.mark.parametrize("made", [{"img_size": 96}, {"patch_size": 8, "img_size": 80}])
def test_embeddings_for_other_sizes_are_resampled(prefix: str, made: dict[str, int], tmp_path: Path) -> None:
    given = timm.create_model("test_vit", num_classes=10, **made).state_dict()
    found, weights = start(under(prefix, given), tmp_path, "test_vit")
    count = len(weights)
    assert (
        found.report.startswith(f"{count} of {count}") and "translated by timm" in found.report and not found.warnings
    )
    model = timm.create_model("test_vit", num_classes=10)
    expected = timm.models.vision_transformer.checkpoint_filter_fn(dict(given), model)
    assert taken(weights, expected)


def test_names_of_other_projects_are_translated_by_timm(tmp_path: Path) -> None:
    given = timm.create_model("test_convnext", num_classes=10).state_dict()
    ours_and_theirs = (  # of the authors of ConvNeXt
        (r"stem\.", "downsample_layers.0."),
        (r"stages\.(\d)\.downsample", r"downsample_layers.\1"),
        (r"\.blocks\.", "."),
        ("conv_dw", "dwconv"),
        (r"mlp\.fc", "pwconv"),
        (r"head\.norm", "norm"),
        (r"head\.fc", "head"),
    )
    theirs = {}
    for name, tensor in given.items():
        for ours, their in ours_and_theirs:
            name = re.sub(ours, their, name)
        theirs[name] = tensor
    theirs = {name: theirs[name] for name in sorted(theirs, reverse=True)}  # so that the order tells nothing
    found, weights = start({"model": theirs, "epoch": 3}, tmp_path, "test_convnext")
    assert found.report.endswith("the weights under 'model' (names and shapes translated by timm)")
    assert taken(weights, given) and not found.warnings


@pytest.mark.parametrize(("had", "channels"), [(3, 1), (3, 5), (3, 12), (4, 3), (1, 3), (6, 1)])
def test_a_first_convolution_is_adapted_to_the_channels(had: int, channels: int, tmp_path: Path) -> None:
    given = timm.create_model("test_resnet", in_chans=had, num_classes=0).state_dict()
    found, weights = start(given, tmp_path, channels=channels)
    assert f"conv1.0.weight adapted to images of {counted(channels, 'channel')}" in found.report
    assert found.report.startswith("90 of 90")
    first = adapted_to_channels(given["conv1.0.weight"], channels)
    assert torch.equal(weights["conv1.0.weight"], first)
    if had == 3:
        assert torch.allclose(first, adapt_input_conv(channels, given["conv1.0.weight"]))


def test_a_shape_that_cannot_be_adapted_is_refused(state: State, transformer: State, tmp_path: Path) -> None:
    wrong = {**state, "layer2.0.conv1.weight": torch.zeros(5, 5)}
    with pytest.raises(
        UserError, match=r"1 of 90 tensors .* layer2.0.conv1.weight: 5x5 in the file, 48x32x3x3 in test_r"
    ):
        start(wrong, tmp_path)
    odd = {**transformer, "pos_embed": torch.zeros(1, 23, 64)}
    with pytest.raises(UserError, match="pos_embed: 1x23x64 in the file"):
        start(odd, tmp_path, "test_vit")


def test_what_is_missing_or_left_over_is_a_warning(state: State, tmp_path: Path) -> None:
    found, _ = start({name: one for name, one in state.items() if not name.startswith("layer4.0.bn1")}, tmp_path)
    assert found.report.startswith("85 of 89")
    (line,) = found.warnings
    assert line.startswith("warning: not in the file, and so untrained: layer4.0.bn1.weight, layer4.0.bn1.bias")
    assert line.endswith(", ... (4 of 89 tensors)")
    more = {name.replace("layer1.0.", "layer1.1."): one for name, one in state.items() if "layer1.0." in name}
    found, _ = start({**state, **more}, tmp_path)
    (line,) = found.warnings
    assert "more tensors stand in the same parts of the file's network, such as layer1.1." in line


def test_whole_numbers_are_no_weights(state: State, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="only 15 of 90 tensors"):
        start({name: one.long() for name, one in state.items()}, tmp_path)


def test_a_module_of_ones_own(tmp_path: Path) -> None:
    module = nn.Sequential(nn.Conv2d(3, 4, 4, stride=4), nn.Conv2d(4, 5, 1))
    torch.save({"net": {"encoder." + name: one for name, one in module.state_dict().items()}}, tmp_path / "x.pth")
    backbone = Backbone(nn.Sequential(nn.Conv2d(2, 4, 4, stride=4), nn.Conv2d(4, 5, 1)), in_channels=2)
    assert initialize_from(backbone, tmp_path / "x.pth").report.startswith("4 of 4")
    assert torch.equal(backbone.model.get_parameter("1.weight"), module[1].weight)
    wrapped = Backbone(nn.DataParallel(nn.Sequential(nn.Conv2d(3, 4, 4, stride=4), nn.Conv2d(4, 5, 1))))
    assert initialize_from(wrapped, tmp_path / "x.pth").report.startswith("4 of 4")
    assert torch.equal(wrapped.model.get_parameter("module.1.weight"), module[1].weight)
