from __future__ import annotations

import json
import pickle

import pytest
import safetensors
import safetensors.torch
import timm
import torch
import torchvision
from torch import nn

from densecl.errors import UserError
from densecl.model.backbone import Backbone, create_backbone
from densecl.model.weights import Normalisation, initialise_from, load_backbone, save_backbone

NORMALISATION = Normalisation((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))


def test_file_loads_into_timm_and_torchvision_with_every_key(tmp_path):
    backbone = create_backbone("resnet18", output_stride=16)
    save_backbone(backbone, tmp_path / "backbone.safetensors", NORMALISATION)
    state = safetensors.torch.load_file(tmp_path / "backbone.safetensors")
    timm.create_model("resnet18", num_classes=0).load_state_dict(state)
    missing, unexpected = torchvision.models.resnet18().load_state_dict(state, strict=False)
    assert set(missing) == {"fc.weight", "fc.bias"} and not unexpected
    assert [path.name for path in tmp_path.iterdir()] == ["backbone.safetensors"]


@pytest.mark.parametrize(("name", "stride"), [("resnet18", 16), ("vit_tiny_patch16_224", None)])
def test_the_file_alone_is_enough_to_load_it(tmp_path, name, stride):
    backbone = create_backbone(name, channels=4, output_stride=stride)
    save_backbone(backbone, tmp_path / "backbone.safetensors", NORMALISATION)
    for place in (tmp_path, tmp_path / "backbone.safetensors"):
        loaded, normalisation = load_backbone(place)
        assert normalisation == NORMALISATION
        pixels = torch.randn(1, 4, 96, 96)
        assert torch.equal(loaded.eval()(pixels), backbone.eval()(pixels))


def test_a_module_of_ones_own_is_loaded_into_an_instance(tmp_path):
    module = nn.Conv2d(3, 5, 4, stride=4)
    save_backbone(Backbone(module), tmp_path / "backbone.safetensors", NORMALISATION)
    loaded, _ = load_backbone(tmp_path, nn.Conv2d(3, 5, 4, stride=4))
    assert torch.equal(loaded.model.weight, module.weight)
    with pytest.raises(UserError, match="does not fit"):
        load_backbone(tmp_path, nn.Conv2d(3, 6, 4, stride=4))


def test_files_that_are_not_ours_are_told_apart(tmp_path):
    with pytest.raises(UserError, match="no such file"):
        load_backbone(tmp_path)
    safetensors.torch.save_file({"weight": torch.zeros(2)}, tmp_path / "other.safetensors")
    with pytest.raises(UserError, match="does not say what it holds"):
        load_backbone(tmp_path / "other.safetensors")
    (tmp_path / "text.safetensors").write_text("hello")
    with pytest.raises(UserError, match="cannot be read as weights"):
        load_backbone(tmp_path / "text.safetensors")


@pytest.mark.parametrize("prefix", ["", "module.encoder_q.", "backbone."])
def test_starting_weights_are_found_under_a_prefix(tmp_path, prefix):
    source = create_backbone("resnet18")
    state = {prefix + name: tensor for name, tensor in source.model.state_dict().items()}
    state |= {
        "module.encoder_k." + name: torch.zeros_like(tensor) for name, tensor in source.model.state_dict().items()
    }
    torch.save({"epoch": 3, "state_dict": state}, tmp_path / "weights.pth")
    target = create_backbone("resnet18", output_stride=16)
    message = initialise_from(target, tmp_path / "weights.pth")
    assert message.startswith("120 of 120 tensors")
    ours, theirs = (backbone.model.state_dict()["conv1.weight"] for backbone in (target, source))
    assert torch.equal(ours, theirs)


def test_torchvision_weights_start_our_resnet(tmp_path):
    torch.save(torchvision.models.resnet18().state_dict(), tmp_path / "resnet18.pth")
    assert initialise_from(create_backbone("resnet18"), tmp_path / "resnet18.pth").startswith("120 of 120")


def test_an_image_of_other_channels_is_named_as_the_only_mismatch(tmp_path):
    torch.save(create_backbone("resnet18").model.state_dict(), tmp_path / "rgb.pth")
    message = initialise_from(create_backbone("resnet18", channels=5), tmp_path / "rgb.pth")
    assert message.startswith("119 of 120") and "conv1.weight" in message


def test_weights_of_another_model_are_an_error(tmp_path):
    torch.save(create_backbone("convnext_atto").model.state_dict(), tmp_path / "other.pth")
    with pytest.raises(UserError, match="only 0 of 120 tensors"):
        initialise_from(create_backbone("resnet18"), tmp_path / "other.pth")


class Payload:
    def __reduce__(self):
        return (print, ("unpickled!",))


def test_objects_are_never_unpickled(tmp_path, capsys):
    (tmp_path / "evil.pth").write_bytes(pickle.dumps(Payload()))
    torch.save({"state_dict": Payload()}, tmp_path / "evil2.pth")
    for name in ("evil.pth", "evil2.pth"):
        with pytest.raises(UserError, match="holds pickled objects, which could run any code and are never read"):
            initialise_from(create_backbone("resnet18"), tmp_path / name)
    assert "unpickled" not in capsys.readouterr().out


def test_pretrained_weights_without_a_network_say_so(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(UserError, match="imagenet.*Offline"):
        initialise_from(create_backbone("test_resnet.r160_in1k"), "imagenet")


def test_metadata_is_readable_without_densecl(tmp_path):
    save_backbone(create_backbone("resnet18", output_stride=16), tmp_path / "b.safetensors", NORMALISATION)
    with safetensors.safe_open(tmp_path / "b.safetensors", framework="pt") as file:
        metadata = file.metadata()
    assert metadata["architecture"] == "resnet18"
    assert json.loads(metadata["mean"]) == [0.1, 0.2, 0.3] and json.loads(metadata["std"]) == [0.4, 0.5, 0.6]
