from __future__ import annotations

import json
import pickle
import re
from pathlib import Path

import pytest
import safetensors.torch
import timm
import torch

from densecl.errors import UserError
from densecl.model import create_backbone, save_backbone
from densecl.model.weights import hub, load_teacher, teacher
from densecl.normalization import IMAGENET, Normalization

HALF = Normalization((0.5,) * 3, (0.25,) * 3)


@pytest.fixture
def resnet():
    torch.manual_seed(1)
    return create_backbone("test_resnet")


def same(one: torch.nn.Module, other: torch.nn.Module) -> bool:
    theirs = other.state_dict()
    return all(torch.equal(value, theirs[name]) for name, value in one.state_dict().items())


def test_a_run_and_its_result_say_everything_themselves(resnet, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    save_backbone(resnet, tmp_path / "run" / "backbone.safetensors", HALF)
    before = torch.random.get_rng_state()
    for source in (tmp_path / "run", tmp_path / "run" / "backbone.safetensors"):
        found = load_teacher(str(source))
        assert same(found.network.model, resnet.model)
        assert found.normalization == HALF and found.license is None
    assert torch.equal(torch.random.get_rng_state(), before)


def test_a_result_hands_on_the_license_of_its_own_teacher(resnet, tmp_path: Path) -> None:
    save_backbone(resnet, tmp_path / "a.safetensors", HALF, {"teacher": "x", "teacher_license": "cc-by-nc-4.0"})
    found = load_teacher(str(tmp_path / "a.safetensors"))
    assert (found.license, found.whose_license) == ("cc-by-nc-4.0", "its file says so")
    save_backbone(resnet, tmp_path / "b.safetensors", HALF, {"teacher": "x", "teacher_license": "unknown"})
    assert load_teacher(str(tmp_path / "b.safetensors")).license is None


def test_a_plain_file_needs_its_architecture(resnet, tmp_path: Path) -> None:
    torch.save(resnet.model.state_dict(), tmp_path / "x.pth")
    with pytest.raises(UserError, match="does not say what model it is of. Say it with teacher_backbone"):
        load_teacher(str(tmp_path / "x.pth"))
    found = load_teacher(str(tmp_path / "x.pth"), "test_resnet")
    assert same(found.network.model, resnet.model) and found.license is None
    tagged = load_teacher(str(tmp_path / "x.pth"), "test_resnet.r160_in1k")
    assert (tagged.license, tagged.whose_license) == ("apache-2.0", "timm says so of test_resnet.r160_in1k")
    assert tagged.normalization == HALF._replace(std=(0.5,) * 3)


def test_a_folder_from_a_hub_says_what_it_is(resnet, tmp_path: Path) -> None:
    safetensors.torch.save_file(resnet.model.state_dict(), tmp_path / "model.safetensors")
    own = {"tag": "r160_in1k", "license": "mit", "mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6]}
    (tmp_path / "config.json").write_text(json.dumps({"architecture": "test_resnet", "pretrained_cfg": own}))
    found = load_teacher(str(tmp_path))
    assert found.network.name == "test_resnet.r160_in1k" and found.license == "mit"
    assert found.normalization == Normalization((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))


def test_weights_that_do_not_say_their_normalization_get_imagenets(tmp_path: Path) -> None:
    state = create_backbone("test_vit").model.state_dict()
    torch.save({"network": {"student": state}}, tmp_path / "x.pth")
    found = load_teacher(str(tmp_path / "x.pth"), "test_vit")
    assert found.normalization == IMAGENET and any("does not say its mean" in note for note in found.notes)


def test_the_channels_are_those_of_the_file(tmp_path: Path) -> None:
    save_backbone(
        create_backbone("test_resnet", channels=4), tmp_path / "a.safetensors", Normalization((0.5,) * 4, (0.5,) * 4)
    )
    assert load_teacher(str(tmp_path / "a.safetensors")).network.in_channels == 4
    torch.save(create_backbone("test_resnet", channels=5).model.state_dict(), tmp_path / "x.pth")
    with pytest.raises(UserError, match="x.pth does not say which mean and standard deviation it expects"):
        load_teacher(str(tmp_path / "x.pth"), "test_resnet")


class Evil:
    def __reduce__(self):
        return (Path.touch, (Path("/tmp/was-run"),))


def test_wrong_teachers_are_told_in_one_line(resnet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_backbone(resnet, tmp_path / "result.safetensors", HALF)
    resnet.name = "module:Mine"
    save_backbone(resnet, tmp_path / "mine.safetensors", HALF)
    torch.save(resnet.model.state_dict(), tmp_path / "plain.pth")
    half = {name: one for name, one in resnet.model.state_dict().items() if not name.startswith("layer4.0.conv2")}
    torch.save(half, tmp_path / "half.pth")
    (tmp_path / "code.pth").write_bytes(pickle.dumps(Evil()))
    (tmp_path / "text.pth").write_text("no weights")
    (tmp_path / "empty").mkdir()
    wrong = [
        ("resnet81", None, "no such run or file of weights, and no model of timm's. Did you mean 'resnet18'"),
        ("no/such.pth", None, "teacher no/such.pth: no such run or file of weights"),
        ("test_resnet", "resnet18", "is a model by name. Leave it out"),
        ("result.safetensors", "resnet18", "result.safetensors says that it is a test_resnet. Leave it out"),
        ("mine.safetensors", None, "holds the weights of a module:Mine, which timm does not know. It cannot teach"),
        ("plain.pth", "resnet_18", "teacher_backbone resnet_18: timm has no such model. Did you mean 'resnet18'"),
        (
            "plain.pth",
            "resnet18",
            r"plain.pth: only \d+ of 120 tensors of resnet18 matched",
        ),
        ("half.pth", "test_resnet", "lacks 1 of the tensors of test_resnet, such as layer4.0.conv2.weight"),
        ("code.pth", "test_resnet", "code.pth (holds no tensors|cannot be read)"),
        ("text.pth", "test_resnet", "text.pth cannot be read as weights"),
        ("empty", "test_resnet", "empty is a folder without weights"),
    ]
    monkeypatch.chdir(tmp_path)
    for source, architecture, message in wrong:
        with pytest.raises(UserError, match=message) as told:
            load_teacher(source, architecture)
        assert "\n" not in str(told.value)
    assert not Path("/tmp/was-run").exists()


def test_a_model_without_a_feature_map_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    torch.save({"fc.weight": torch.zeros(3)}, tmp_path / "x.pth")
    monkeypatch.setattr("densecl.model.backbone.create_model", lambda *_, **__: torch.nn.Flatten())
    with pytest.raises(UserError, match="gives no feature map"):
        load_teacher(str(tmp_path / "x.pth"), "test_resnet")


def test_offline_it_says_which_file_to_bring(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(hub, "can_be_had", lambda said: asked.append(said))
    with pytest.raises(UserError) as told:
        load_teacher("test_resnet")
    assert len(asked) == 1  # it may take many seconds
    assert told.value.args[0] == (
        "--teacher test_resnet: timm's weights of test_resnet cannot be downloaded here. Bring the file"
        " model.safetensors of timm/test_resnet.r160_in1k (Hugging Face) from a machine with a network, and give"
        " --teacher FILE --teacher-backbone test_resnet.r160_in1k."
    )


def test_a_hub_that_fails_while_it_downloads_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "answers", lambda: True)

    def fail(*_: object, **__: object) -> None:
        raise UserError("imagenet: 503, come back later.")

    monkeypatch.setattr(teacher, "initialize_from", fail)
    with pytest.raises(UserError, match="teacher test_resnet: imagenet: 503, come back later. Bring the file"):
        load_teacher("test_resnet")


def test_by_name_it_comes_with_its_license(resnet, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "answers", lambda: True)
    monkeypatch.setattr("densecl.model.weights.start._download", lambda backbone: resnet.model)
    found = load_teacher("test_resnet")
    assert same(found.network.model, resnet.model)
    assert found.license == "apache-2.0" and found.whose_license == "timm says so of test_resnet.r160_in1k"
    assert found.normalization == Normalization((0.5,) * 3, (0.5,) * 3)


@pytest.mark.parametrize(
    ("name", "license"),
    [
        ("vit_small_patch14_dinov2.lvd142m", "apache-2.0"),
        ("vit_pe_spatial_tiny_patch16_512.fb", "apache-2.0"),
        ("vit_small_patch16_dinov3.lvd1689m", "dinov3-license"),
    ],
)
def test_foundation_models_by_name(name: str, license: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # What timm knows of them is what is tested. A small network stands in for theirs, which take long to make.
    network = create_backbone("test_vit")
    network.model.pretrained_cfg = timm.get_pretrained_cfg(name).to_dict()  # pyright: ignore[reportOptionalMemberAccess]
    monkeypatch.setattr(teacher, "create_backbone", lambda *_, **__: network)
    monkeypatch.setattr(hub, "answers", lambda: False)
    with pytest.raises(UserError, match=f"Bring the file model.safetensors of timm/{re.escape(name)}") as told:
        load_teacher(name)
    assert told.value.args[0].endswith(f"--teacher FILE --teacher-backbone {name}.")
    monkeypatch.setattr("densecl.model.weights.start._download", lambda backbone: backbone.model)
    assert load_teacher(name).license == license


def test_a_model_that_timm_has_no_weights_of() -> None:
    with pytest.raises(UserError, match="timm has no weights for it. Give a file of weights or a run"):
        load_teacher("lcnet_035")
