from __future__ import annotations

import math
from pathlib import Path

import pytest
import safetensors
import safetensors.torch
import timm
import torch
import torchvision

from densecl.errors import UserError
from densecl.model.backbone import create_backbone
from densecl.model.weights import hub, initialize_from
from densecl.normalization import Normalization

NORMALIZATION = Normalization((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))


def test_what_is_not_there_is_said_with_a_name_that_is(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"imagnet: no such run or file of weights. Did you mean 'imagenet'\?"):
        initialize_from(create_backbone("test_resnet"), tmp_path / "imagnet")


def test_torchvision_weights_start_our_resnet(tmp_path):
    torch.save(torchvision.models.resnet18().state_dict(), tmp_path / "resnet18.pth")
    assert initialize_from(create_backbone("resnet18"), tmp_path / "resnet18.pth").report.startswith("120 of 120")


def test_weights_of_another_model_are_an_error(tmp_path):
    torch.save(create_backbone("convnext_atto").model.state_dict(), tmp_path / "other.pth")
    with pytest.raises(UserError, match="only 0 of 120 tensors"):
        initialize_from(create_backbone("resnet18"), tmp_path / "other.pth")


def test_pretrained_weights_without_a_network_say_so(monkeypatch):
    monkeypatch.setattr(hub, "answers", lambda: False)
    monkeypatch.setattr(hub, "is_cached", lambda name: False)
    with pytest.raises(UserError) as told:
        initialize_from(create_backbone("test_resnet.r160_in1k"), "imagenet")
    assert told.value.args[0] == (
        "timm's weights of test_resnet.r160_in1k cannot be downloaded here. Bring the file model.safetensors of"
        " timm/test_resnet.r160_in1k (Hugging Face) from a machine with a network, and give it in place of 'imagenet':"
        " --init FILE with pretrain, the file with other commands."
    )


def test_what_is_infinite_in_float32_is_refused_and_eight_bits_are_read(tmp_path: Path) -> None:
    state = create_backbone("test_resnet").model.state_dict()
    huge = {**state, "layer2.0.conv1.weight": state["layer2.0.conv1.weight"].double().fill_(1e300)}
    torch.save(huge, tmp_path / "b.pth")
    with pytest.raises(UserError, match="layer2.0.conv1.weight holds NaN or infinities"):
        initialize_from(create_backbone("test_resnet"), tmp_path / "b.pth")
    small = {name: one.to(torch.float8_e5m2) if one.is_floating_point() else one for name, one in state.items()}
    torch.save(small, tmp_path / "b.pth")
    safetensors.torch.save_file(small, tmp_path / "b.safetensors")
    for name in ("b.pth", "b.safetensors"):
        assert initialize_from(create_backbone("test_resnet"), tmp_path / name).report.startswith("90 of 90")


def test_nan_outside_the_backbone_does_not_matter(tmp_path: Path) -> None:
    state = timm.create_model("test_resnet", num_classes=3).state_dict()
    state["fc.bias"][0] = math.nan
    torch.save(state, tmp_path / "b.pth")
    assert initialize_from(create_backbone("test_resnet"), tmp_path / "b.pth").report.startswith("90 of 90")


def test_whose_license_the_weights_have(tmp_path: Path) -> None:
    state = create_backbone("test_resnet").model.state_dict()

    def found(metadata: dict[str, str]) -> tuple[str | None, str]:
        safetensors.torch.save_file(state, tmp_path / "model.safetensors", metadata)
        return initialize_from(create_backbone("test_resnet"), tmp_path / "model.safetensors").license

    assert found({"license": "dinov3-license"}) == ("dinov3-license", "its file says so")
    # A result of ours: that of the weights it began with binds it, and so may that of its teacher.
    assert found({"license": "mit", "teacher_license": "cc-by-nc-4.0"})[0] == "mit, and of its teacher cc-by-nc-4.0"
    assert found({"license": "unknown", "teacher_license": "mit"})[0] == "mit"
    assert found({"license": "unknown"}) == found({}) == (None, "")
    assert found({"license": "x\x1b[2J\n y"})[0] == "x?[2J y"  # what a stranger wrote goes to a terminal
    (tmp_path / "config.json").write_text('{"pretrained_cfg": {"license": "apache-2.0"}}')
    assert found({}) == ("apache-2.0", "the file beside it says so")
    torch.save(state, tmp_path / "plain.pth")
    (tmp_path / "config.json").write_text("[")
    assert initialize_from(create_backbone("test_resnet"), tmp_path / "plain.pth").license.name is None


@pytest.mark.parametrize(
    ("said", "advice"),
    [
        (None, "Is it another architecture?"),
        ("resnet18", "It says that it is a resnet18: --backbone resnet18."),
        ("test_resnet.r160_in1k", "Is it another architecture?"),  # that is the one that was asked for
    ],
)
def test_weights_of_another_network_are_told_by_what_they_say(said: str | None, advice: str, tmp_path: Path) -> None:
    metadata = None if said is None else {"architecture": said}
    safetensors.torch.save_file({"x": torch.zeros(1)}, tmp_path / "x.safetensors", metadata)
    with pytest.raises(UserError) as told:
        initialize_from(create_backbone("test_resnet"), tmp_path / "x.safetensors")
    assert told.value.args[0].endswith(advice)
