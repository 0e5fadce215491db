"""Programs without our code: torch.export's, and ONNX where it is installed."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from timm.layers import Conv2dSame, padding

import densecl
from densecl.errors import UserError
from densecl.exports.program import Pyramid, trace
from densecl.model.backbone import Backbone, create_backbone
from tests.exports.tiny import weights


def test_torch_export(tmp_path: Path) -> None:
    source = weights(tmp_path / "a.safetensors")
    done = densecl.export(source, "torch-export", tmp_path / "out")
    (found,) = done.findings
    assert "any batch and size" in found.how and found.matched == found.total and found.difference is not None
    said = {"densecl.json": ""}
    opened = torch.export.load(tmp_path / "out/backbone.pt2", extra_files=said)
    assert json.loads(said["densecl.json"])["method"] == "vicreg"
    ours, _ = densecl.load_backbone(source)
    pixels = torch.randn(3, 3, 64, 128)
    with torch.inference_mode():
        torch.testing.assert_close(opened.module()(pixels)[-1], ours.eval()(pixels))
    assert "network(pixels)" in (tmp_path / "out/LOAD.md").read_text()


def test_onnx(tmp_path: Path) -> None:
    onnx, onnxruntime = pytest.importorskip("onnx"), pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    source = weights(tmp_path / "a.safetensors", "test_vit")
    densecl.export(source, "onnx", tmp_path / "out")
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"backbone.onnx", "LOAD.md"}  # weights inside
    proto = onnx.load(tmp_path / "out/backbone.onnx")
    assert {one.key: one.value for one in proto.metadata_props}["method"] == "vicreg"
    session = onnxruntime.InferenceSession(tmp_path / "out/backbone.onnx", providers=["CPUExecutionProvider"])
    ours, _ = densecl.load_backbone(source)
    pixels = torch.randn(3, 3, 64, 128)
    with torch.inference_mode():
        torch.testing.assert_close(
            torch.from_numpy(session.run(None, {"pixels": pixels.numpy()})[-1]), ours.eval()(pixels), rtol=0, atol=1e-4
        )


def test_a_network_for_one_size_alone() -> None:
    class OneSize(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.convolution = torch.nn.Conv2d(3, 4, 3, stride=2, padding=1)

        def forward(self, pixels: torch.Tensor) -> torch.Tensor:
            assert pixels.shape[2:] == (96, 96)
            return self.convolution(pixels)

    program = trace(Backbone(OneSize()).eval())
    assert program.size == (96, 96) and program.images == "any batch, 96x96 px"
    assert program.traced.module()(torch.zeros(5, 3, 96, 96))[0].shape == (5, 4, 48, 48)


class Same(torch.nn.Module):
    """TensorFlow's padding, as all of timm's tf_ networks have it: it rounds the size up."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = Conv2dSame(3, 4, 3, stride=2), Conv2dSame(4, 4, 5, stride=2)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return self.second(self.first(pixels))


def test_tf_padding_is_traced_and_saved_for_any_size(tmp_path: Path) -> None:
    network = Backbone(Same()).eval()
    before = padding.get_same_padding
    program = trace(network, lambda traced: torch.export.save(traced, tmp_path / "same.pt2"))
    assert program.size is None and padding.get_same_padding is before
    loaded = torch.export.load(tmp_path / "same.pt2").module()
    for height, width in ((97, 131), (64, 96), (95, 46)):
        pixels = torch.randn(2, 3, height, width)
        assert torch.equal(loaded(pixels)[0], network(pixels))


def test_what_can_be_traced_for_any_size_but_saved_for_one_alone(tmp_path: Path) -> None:
    class Rounded(Same):
        def forward(self, pixels: torch.Tensor) -> torch.Tensor:
            more = math.ceil(pixels.shape[-1] / 4) * 4 - pixels.shape[-1]  # torch cannot save the quotient
            return super().forward(torch.nn.functional.pad(pixels, (0, more)))

    network = Backbone(Rounded()).eval()
    assert trace(network).size is None
    path = tmp_path / "same.pt2"
    program = trace(network, lambda traced: torch.export.save(traced, path))
    assert program.size == (224, 224)
    assert torch.export.load(path).module()(torch.zeros(5, 3, 224, 224))[0].shape == (5, 4, 56, 56)


def test_what_cannot_be_traced() -> None:
    class Untraceable(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.convolution = torch.nn.Conv2d(3, 4, 4, stride=4)

        def forward(self, pixels: torch.Tensor) -> torch.Tensor:
            return self.convolution(pixels) * (2 if float(pixels.sum()) > 0 else 1)

    with pytest.raises(UserError, match="Untraceable cannot be traced: .* Take to timm|Take --to timm"):
        trace(Backbone(Untraceable()).eval())


def test_the_last_map_of_each_stride() -> None:
    resnet, vit = (Pyramid(create_backbone(name)) for name in ("test_resnet", "test_vit"))
    assert resnet.strides == [4, 8, 16, 32] and vit.strides == [16]
