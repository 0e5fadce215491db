from __future__ import annotations

import argparse
from pathlib import Path

import pytest
import safetensors
import torch
from safetensors.torch import save_file

from densecl.errors import UserError
from densecl.evaluation.weights import open_weights
from densecl.model.backbone import Backbone, create_backbone
from densecl.model.weights import save_backbone
from densecl.normalization import Normalization

NORMALIZATION = Normalization((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    save_backbone(create_backbone("resnet10t"), folder / "backbone.safetensors", NORMALIZATION)
    return folder


def same(one: torch.nn.Module, other: torch.nn.Module) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), other.state_dict().values(), strict=True))


def test_given_weights_at_any_stride(run: Path) -> None:
    (weights,) = open_weights([run])
    assert (weights.architecture, weights.normalization, weights.random) == ("resnet10t", NORMALIZATION, False)
    usual, finer = weights.backbone(None), weights.backbone(8, seed=3)
    assert (usual.stride, finer.stride) == (16, 8)
    assert same(usual, finer) and same(usual.model, create_and_load(run))


def create_and_load(run: Path) -> torch.nn.Module:
    from densecl.model.weights import load_backbone

    return load_backbone(run)[0].model


def test_random_weights_follow_the_seed_and_the_others(run: Path) -> None:
    _, weights = open_weights([run, "random"])
    assert weights.random and (weights.architecture, weights.normalization) == ("resnet10t", NORMALIZATION)
    torch.manual_seed(7)
    before = torch.random.get_rng_state()
    open_weights(["random"], "resnet10t")
    first = weights.backbone(16, seed=0)
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.manual_seed(8)
    assert same(first, weights.backbone(8, seed=0)) and not same(first, weights.backbone(16, seed=1))


def test_a_stride_that_cannot_be_had() -> None:
    (weights,) = open_weights(["random"], "vit_tiny_patch16_224")
    assert weights.backbone(None).stride == 16
    with pytest.raises(UserError, match="output_stride=8"):
        weights.backbone(8)


def test_files_of_others_need_to_be_told_the_backbone(tmp_path: Path, run: Path) -> None:
    network = create_backbone("resnet10t")
    save_file(
        {f"module.{name}": tensor for name, tensor in network.model.state_dict().items()}, tmp_path / "w.safetensors"
    )
    torch.save({"state_dict": network.model.state_dict()}, tmp_path / "w.pth")
    for file in ("w.safetensors", "w.pth"):
        with pytest.raises(UserError, match="does not say which backbone.*backbone"):
            open_weights([tmp_path / file])
        (weights,) = open_weights([tmp_path / file], "resnet10t")
        assert same(weights.backbone(None).model, network.model) and weights.normalization.mean[0] == 0.485
        assert open_weights([run, tmp_path / file])[1].architecture == "resnet10t"
    with pytest.raises(UserError, match="tensors of resnet18 matched"):
        open_weights([tmp_path / "w.pth"], "resnet18")
    with pytest.raises(UserError, match="resnet18: .* says that it is a resnet10t. Leave it out"):
        open_weights([run], "resnet18")
    with pytest.raises(UserError, match="resnet18: .* says that it is a resnet10t. Leave it out"):
        open_weights([run, "test_vit"], "resnet18")  # none of them needs it
    with pytest.raises(UserError, match="resnet18: .* says that it is a resnet10t. Leave it out"):
        open_weights([run, "random"], "resnet18")  # those are of the run's network
    torch.save(create_backbone("resnet18").model.state_dict(), tmp_path / "18.pth")
    stated, random, file = open_weights([run, "random", tmp_path / "18.pth"], "resnet18")
    assert file.architecture == "resnet18"
    assert random.architecture == stated.architecture == "resnet10t" and random.warnings == ()
    assert stated.warnings == (
        "it says that it is a resnet10t; --backbone resnet18 is only for weights that do not say theirs",
    )


def test_wrong_names(tmp_path: Path, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="randon: no such run folder or file of weights. Did you mean 'random'?"):
        open_weights([run, "randon"])
    with pytest.raises(UserError, match="given twice"):
        open_weights(["random", "random"], "resnet10t")
    with pytest.raises(UserError, match="backbone"):
        open_weights(["random"])
    with pytest.raises(UserError, match="timm has no such model.*resnet10t"):
        open_weights(["random"], "resnet10tt")
    with pytest.raises(UserError, match="Give weights"):
        open_weights([])
    with pytest.raises(UserError, match="no such file of weights"):
        open_weights([tmp_path])
    (tmp_path / "broken.safetensors").write_bytes(b"12345678901234567890")
    with pytest.raises(UserError, match="cannot be read as weights"):
        open_weights([tmp_path / "broken.safetensors"])
    (tmp_path / "text.pth").write_text("no weights")
    with pytest.raises(UserError, match="text.pth cannot be read as weights: it is damaged, or a file of another kind"):
        open_weights([tmp_path / "text.pth"], "resnet10t")

    def forbidden(*_: object, **__: object) -> None:
        raise FileNotFoundError  # what safetensors says

    monkeypatch.setattr(safetensors, "safe_open", forbidden)
    with pytest.raises(UserError, match="Are you allowed to read it"):
        open_weights([tmp_path / "broken.safetensors"])


def test_checkpoints_of_any_training_are_judged(tmp_path: Path, run: Path) -> None:
    network = create_backbone("resnet10t")
    state = {f"backbone.{name}": tensor for name, tensor in network.model.state_dict().items()}
    torch.save({"teacher": state, "args": argparse.Namespace(out=tmp_path)}, tmp_path / "checkpoint.pth")
    (weights,) = open_weights([tmp_path / "checkpoint.pth"], "resnet10t")
    assert same(weights.backbone(None).model, network.model) and weights.normalization.mean[0] == 0.485
    unfinished = tmp_path / "run/checkpoints"
    unfinished.mkdir(parents=True)
    torch.save({"model": {f"query_encoder.{name}": tensor for name, tensor in state.items()}}, unfinished / "last.ckpt")
    with pytest.raises(UserError, match="does not say which backbone.*Give backbone"):
        open_weights([tmp_path / "run"])
    (weights,) = open_weights([tmp_path / "run"], "resnet10t")
    assert same(weights.backbone(None).model, network.model)


def test_models_of_timm_by_name(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def download(backbone: Backbone) -> torch.nn.Module:
        asked.append(backbone.name)
        return backbone.model

    monkeypatch.setattr("densecl.model.weights.start._download", download)
    names = ["test_resnet:r160_in1k", "test_resnet.r160_in1k", "test_vit", "random", "imagenet"]
    found = open_weights(names)
    assert [weights.name for weights in found] == names
    one, other, vit, random, imagenet = found
    assert one.architecture == other.architecture == "test_resnet.r160_in1k" and vit.architecture == "test_vit"
    assert one.normalization == Normalization((0.5,) * 3, (0.5,) * 3)
    # "imagenet" is timm's first choice, not the tag of the others.
    assert random.random and random.architecture == imagenet.architecture == "test_resnet"
    assert asked == ["test_resnet.r160_in1k", "test_resnet.r160_in1k", "test_vit", "test_resnet"]
    # Beside a run, "imagenet" is of the first that says its architecture.
    assert open_weights(["imagenet", run, "test_vit.r160_in1k"])[0].architecture == "resnet10t"
    # A file of that name is the file.
    monkeypatch.chdir(tmp_path)
    save_backbone(create_backbone("resnet10t"), tmp_path / "test_vit", NORMALIZATION)
    assert open_weights(["test_vit"], "resnet10t")[0].architecture == "resnet10t"


@pytest.mark.parametrize(
    ("name", "complaint"),
    [
        (
            "test_resnet:r16_in1k",
            "test_resnet:r16_in1k: no such run folder or file of weights. Did you mean 'test_resnet:r160_in1k'?",
        ),
        ("test_resnet.zzz", "timm has these of test_resnet: r160_in1k."),
        ("resnet9999", "resnet9999: no such run folder or file of weights."),
        ("no_model:tag", "no_model:tag: no such run folder or file of weights."),
    ],
)
def test_names_that_timm_does_not_have(name: str, complaint: str) -> None:
    with pytest.raises(UserError) as raised:
        open_weights([name])
    assert complaint in raised.value.args[0]


def test_weights_of_photographs_beside_a_run_of_other_channels(tmp_path: Path) -> None:
    gray = Normalization((0.4,), (0.2,))
    save_backbone(create_backbone("resnet10t", channels=1), tmp_path / "backbone.safetensors", gray)
    network = create_backbone("resnet10t")
    torch.save(network.model.state_dict(), tmp_path / "photographs.pth")
    run, file = open_weights([tmp_path, tmp_path / "photographs.pth"])
    assert run.in_channels == file.in_channels == 1 and file.normalization == gray
    assert file.state is not None and file.state["conv1.0.weight"].shape[1] == 1
    assert "adapted to images of 1 channel" in file.report
    assert same(file.backbone(None).model.layer1, network.model.layer1)  # pyright: ignore[reportArgumentType]


def test_without_a_network_the_model_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*_: object, **__: object) -> None:
        raise OSError("no network")

    monkeypatch.setattr("densecl.model.weights.start.create_model", offline)
    monkeypatch.setattr("densecl.model.weights.hub.can_be_had", lambda said: True)
    with pytest.raises(
        UserError, match=r"could not get pretrained weights for resnet10t: no network Bring .* place of 'imagenet': "
    ):
        open_weights(["resnet10t"])


def test_the_backbone_of_a_torchvision_detector(tmp_path: Path) -> None:
    from torchvision.models.detection.backbone_utils import resnet_fpn_backbone

    detector = torch.nn.Module()
    detector.backbone = resnet_fpn_backbone(backbone_name="resnet18", weights=None)
    torch.save(detector.state_dict(), tmp_path / "coco.pth")
    (weights,) = open_weights([tmp_path / "coco.pth"], "resnet18")
    assert weights.state is not None and weights.warnings == ()
    assert "taken for: a torchvision detector, the weights under 'backbone.body'" in weights.report
    body = detector.backbone.body.state_dict()
    assert body and all(torch.equal(weights.state[name], tensor) for name, tensor in body.items())
    assert weights.normalization.mean[0] == 0.485
    # Beside a run of another network, and what that began with.
    run = tmp_path / "run"
    run.mkdir()
    save_backbone(create_backbone("resnet10t"), run / "backbone.safetensors", NORMALIZATION)
    found = open_weights([run, "random", tmp_path / "coco.pth"], "resnet18")
    assert [weights.architecture for weights in found] == ["resnet10t", "resnet10t", "resnet18"]
    # What a file lacks is said.
    torch.save({name: tensor for name, tensor in body.items() if "layer4.1" not in name}, tmp_path / "part.pth")
    (weights,) = open_weights([tmp_path / "part.pth"], "resnet18")
    assert "not in the file, and so untrained: layer4.1.conv1.weight" in weights.warnings[0]


def test_the_normalization_of_a_configuration_is_taken(tmp_path: Path) -> None:
    torch.save(create_backbone("test_resnet").model.state_dict(), tmp_path / "w.pth")
    (weights,) = open_weights([tmp_path / "w.pth"], "test_resnet.r160_in1k")
    assert weights.normalization == Normalization((0.5,) * 3, (0.5,) * 3)


def test_a_file_whose_metadata_cannot_be_is_one_line(tmp_path: Path) -> None:
    state = create_backbone("test_resnet").model.state_dict()
    metadata = {"architecture": "test_resnet", "in_channels": "-3", "output_stride": "null", "mean": "[]", "std": "[]"}
    save_file(state, tmp_path / "w.safetensors", metadata)
    with pytest.raises(UserError, match="w.safetensors: its metadata is damaged: in_channels is '-3'"):
        open_weights([tmp_path / "w.safetensors"])
