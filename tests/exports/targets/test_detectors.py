"""The targets whose libraries are not installed here: what is written, read back as their loaders do.

That the libraries themselves take it is shown by benchmarks/exports.py, where they are installed.
"""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torchvision
import yaml
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from densecl.errors import UserError
from densecl.exports import targets
from densecl.exports.committed import committed_shapes
from densecl.exports.delivery import Delivery
from densecl.exports.export import export
from densecl.exports.targets import detectron2
from densecl.exports.targets.ultralytics import BODY, EPS, NORMALIZES
from densecl.exports.verify import verify
from densecl.model.backbone import create_backbone
from densecl.model.weights import initialize_from
from densecl.normalization import Normalization

NORMALIZATION = Normalization((0.41, 0.43, 0.39), (0.21, 0.2, 0.19))
LISTED = ("detectron2", "mmdetection", "mmsegmentation")


def delivered(architecture: str, output_stride: int | None = None) -> Delivery:
    """Weights of which no part is a default that a library could have of its own."""
    torch.manual_seed(0)
    network = create_backbone(architecture, output_stride=output_stride)
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, _BatchNorm) and module.running_mean is not None and module.running_var is not None:
                module.running_mean.normal_(0, 0.1)
                module.running_var.uniform_(0.001, 1.5)
                module.weight.uniform_(0.5, 1.5)
    return Delivery(network.eval(), NORMALIZATION, {"method": "moco"})


@pytest.fixture(scope="module")
def delivery() -> Delivery:
    return delivered("resnet18")


def written(target: str, delivery: Delivery, folder: Path) -> dict[str, Tensor]:
    """The tensors, read without running anything."""
    targets.load(target).write(delivery, folder)
    content = torch.load(folder / "model.pth", weights_only=True)
    return content["model" if target == "detectron2" else "state_dict"]


@pytest.mark.parametrize("name", LISTED)
def test_names_and_shapes_are_those_that_the_library_has(name: str, delivery: Delivery, tmp_path: Path) -> None:
    target = targets.load(name)
    tensors = written(name, delivery, tmp_path)
    listed = committed_shapes(name, target.tried, "resnet18")
    assert listed == {key: tuple(tensor.shape) for key, tensor in tensors.items()}
    (finding,) = verify(target, delivery, tmp_path)
    assert (finding.matched, finding.total) == (120, 120)
    for deeper in ("resnet34", "resnet50", "resnet101"):
        assert committed_shapes(name, target.tried, deeper), deeper


@pytest.mark.parametrize("name", LISTED)
def test_what_was_written_starts_our_network_again(name: str, delivery: Delivery, tmp_path: Path) -> None:
    targets.load(name).write(delivery, tmp_path)
    backbone = create_backbone("resnet18")
    report = initialize_from(backbone, tmp_path / "model.pth").report
    assert report.startswith("120 of 120")
    assert all(torch.equal(one, delivery.state[key]) for key, one in backbone.model.state_dict().items())


def test_a_name_that_does_not_fit_leaves_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    names = [pair for pair in detectron2.NAMES if pair[1] != "shortcut"]
    monkeypatch.setattr(detectron2, "NAMES", names)
    with pytest.raises(
        UserError, match=r"failed its check, so nothing is left of it: .*res3\.0\.downsample\.0\.weight is"
    ):
        export("random", "detectron2", tmp_path / "out", backbone="resnet18")
    assert not (tmp_path / "out").exists()


def test_detectron2s_configuration_has_no_default_that_hurts(delivery: Delivery, tmp_path: Path) -> None:
    written("detectron2", delivery, tmp_path)
    said = yaml.safe_load((tmp_path / "config.yaml").read_text())
    model, resnet = said["MODEL"], said["MODEL"]["RESNETS"]
    assert (resnet["DEPTH"], resnet["STRIDE_IN_1X1"], resnet["NORM"]) == (18, False, "SyncBN")
    assert (resnet["RES2_OUT_CHANNELS"], model["BACKBONE"]["FREEZE_AT"]) == (64, 0)
    assert said["INPUT"]["FORMAT"] == "RGB"
    assert model["PIXEL_MEAN"] == pytest.approx([255 * value for value in NORMALIZATION.mean])
    assert model["PIXEL_STD"] == pytest.approx([255 * value for value in NORMALIZATION.std])


def values(call: ast.Call) -> dict[str, Any]:
    """The keywords of `dict(...)`, of those inside, too."""
    return {
        one.arg or "": values(one.value) if isinstance(one.value, ast.Call) else ast.literal_eval(one.value)
        for one in call.keywords
    }


@pytest.mark.parametrize(
    ("stride", "strides", "dilations"), [(32, (1, 2, 2, 2), (1, 1, 1, 1)), (8, (1, 2, 1, 1), (1, 1, 2, 4))]
)
def test_openmmlabs_configurations(
    stride: int, strides: tuple[int, ...], dilations: tuple[int, ...], tmp_path: Path
) -> None:
    delivery = delivered("resnet18", stride)
    for name in ("mmdetection", "mmsegmentation"):
        target = targets.load(name)
        if stride == 8 and name == "mmdetection":
            assert not target.keeps_output_stride(delivery.network)
            continue
        (tmp_path / name).mkdir()
        target.write(delivery, tmp_path / name)
        text = (tmp_path / name / "config.py").read_text()
        made = ast.parse(text).body[-1]
        assert isinstance(made, ast.Assign) and isinstance(made.value, ast.Call)
        model = values(made.value)
        backbone = model["backbone"]
        assert (backbone["type"], backbone["depth"], backbone["style"]) == ("ResNet", 18, "pytorch")
        assert (backbone["frozen_stages"], backbone["norm_eval"], backbone["_delete_"]) == (-1, False, True)
        assert backbone["init_cfg"]["checkpoint"] == "{{ fileDirname }}/model.pth"
        assert model["data_preprocessor"]["mean"] == pytest.approx([255 * value for value in NORMALIZATION.mean])
        assert model["data_preprocessor"]["bgr_to_rgb"] is True
        if name == "mmdetection":
            assert model["neck"]["in_channels"] == [64, 128, 256, 512]
        else:
            assert (backbone["strides"], backbone["dilations"]) == (strides, dilations)
            assert model["decode_head"] == {"in_channels": 512, "c1_in_channels": 64}


def test_d_fine_is_checked_with_the_network_that_it_makes(delivery: Delivery, tmp_path: Path) -> None:
    target = targets.load("d-fine")
    target.write(delivery, tmp_path)
    (finding,) = verify(target, delivery, tmp_path)
    assert (finding.matched, finding.total, finding.difference) == (120, 120, 0)
    said = yaml.safe_load((tmp_path / "backbone.yml").read_text())
    backbone = said["DFINE"]["backbone"]
    assert backbone["pretrained"] is True and said["HybridEncoder"]["in_channels"] == [128, 256, 512]
    backbone["pretrained_cfg_overlay"]["file"] = str(tmp_path / "model.safetensors")
    assert backbone.pop("type") == "TimmModel"
    layers = backbone.pop("return_layers")
    model: Any = timm.create_model(backbone.pop("name"), features_only=True, **backbone)
    assert torch.equal(model.state_dict()["conv1.weight"], delivery.state["conv1.weight"])
    assert set(layers) <= set(model.feature_info.module_name())


class TheirTorchVision(nn.Module):
    """What Ultralytics makes of the two lines of the YAML: its eps, and torchvision's ResNet child by child."""

    def __init__(self) -> None:
        super().__init__()
        self.normalizes = nn.Conv2d(3, 3, 1)
        self.body = nn.Sequential(*list(torchvision.models.resnet18().children())[:-2])
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eps = EPS

    def forward(self, pixels: Tensor) -> list[Tensor]:
        features, found = self.normalizes(pixels), []
        for child in self.body:
            features = child(features)
            found.append(features)
        return found[4:]


def test_ultralytics_gets_the_same_features_from_raw_pixels_and_with_its_eps(delivery: Delivery) -> None:
    tensors = targets.load("ultralytics").tensors(delivery)
    theirs = TheirTorchVision().eval()
    names = {NORMALIZES: "normalizes.", BODY: "body."}
    theirs.load_state_dict(
        {
            new + key.removeprefix(old): one
            for key, one in tensors.items()
            for old, new in names.items()
            if key.startswith(old)
        }
    )
    assert torch.equal(theirs.body.get_parameter("0.weight"), delivery.state["conv1.weight"])
    raw = torch.rand(1, 3, 64, 96)
    mean, std = (torch.tensor(values)[:, None, None] for values in NORMALIZATION)
    with torch.no_grad():
        for ours, found in zip(delivery.network.maps((raw - mean) / std)[-4:], theirs(raw), strict=True):
            assert torch.allclose(ours, found, rtol=1e-3, atol=1e-4 * float(ours.abs().max()))
        for module in theirs.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eps = 1e-5  # so that the scaling is seen to matter
        last = delivery.network((raw - mean) / std)
        assert float((theirs(raw)[-1] - last).abs().max() / last.abs().max()) > 1e-3


def test_ultralytics_must_be_installed(tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"needs ultralytics. Install it: pip install ultralytics \(its license is AGPL"
    ):
        export("random", "ultralytics", tmp_path / "out", backbone="resnet18")


@pytest.mark.parametrize("name", ["ultralytics", "d-fine", *LISTED])
def test_what_cannot_go_there_is_told_with_what_to_take_instead(name: str) -> None:
    target = targets.load(name)
    transformer, other = create_backbone("test_vit"), create_backbone("resnet26d")
    for network, word in ((transformer, "only resnet18, "), (other, "This one has another stem or other blocks")):
        refusal = target.refusal(network)
        assert refusal is not None and word in refusal and "\n" not in refusal
        assert any(instead in refusal for instead in ("--to ", "resnet50", "densecl.pretrain")), refusal
    gray = target.refusal(create_backbone("resnet18", channels=1))
    assert gray is not None and "3 channels, and these weights take 1" in gray


def test_rf_detr_is_not_possible() -> None:
    with pytest.raises(UserError, match=r"RF-DETR takes only DINOv2 .* take .*d-fine\."):
        targets.load("rf-detr")


@pytest.mark.parametrize("name", ["smp", "transformers"])
def test_instructions_load_the_file_and_do_not_draw(name: str, delivery: Delivery, tmp_path: Path) -> None:
    target = targets.load(name)
    for one in (delivery, delivered("test_vit"), delivered("test_convnext")):
        text = target.instructions(one)
        for block in text.split("```python")[1:]:
            ast.parse(block.split("```")[0])  # it is Python
        assert "FOLDER" in text
    if name == "smp":
        assert "encoder_weights=None" in target.instructions(delivery)
        assert "num_classes=0" in target.instructions(delivered("test_vit"))
        assert target.refusal(create_backbone("test_convnext", channels=5)) is not None


@pytest.mark.parametrize(("name", "architecture"), [("smp", "test_convnext"), ("transformers", "test_resnet")])
def test_the_library_itself_where_it_is_installed(name: str, architecture: str, tmp_path: Path) -> None:
    target = targets.load(name)
    pytest.importorskip(target.library)
    delivery = delivered(architecture)
    target.write(delivery, tmp_path)
    findings = verify(target, delivery, tmp_path)
    assert len(findings) == 1 + (name == "transformers")
    for finding in findings:
        assert finding.matched == finding.total and finding.difference == 0
