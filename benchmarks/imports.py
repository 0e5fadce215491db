"""Files of other libraries as starting weights: made by the library itself, read by us, and both networks compared.

    python benchmarks/imports.py [--only torchvision transformers ...] [--networks ResNetModel ...]

Random weights. Each network is saved in the way that its library saves it, and read as `--init` reads it. Both run on
one image. Writes docs/benchmarks/imports.csv and prints it; rows of other libraries and networks stay. So run it where
each library is installed. Takes some minutes. Downloads nothing.
"""

from __future__ import annotations

import argparse
import csv
import importlib.util
import tempfile
from collections.abc import Callable, Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

import rows
import torch
from torch import Tensor, nn

from densecl.errors import UserError
from densecl.model.backbone import create_backbone
from densecl.model.weights import initialize_from

TABLE = Path(__file__).parents[1] / "docs" / "benchmarks" / "imports.csv"

IMAGE = (1, 3, 224, 224)


class Case(NamedTuple):
    """A network of another library, its file, and its last map (or tokens) of a batch of pixels."""

    network: str
    ours: str  # timm's name of it
    model: nn.Module
    save: Callable[[Path], object]
    last: Callable[[Tensor], Tensor]
    output_stride: int | None = None
    file: str = "model.pth"


class Line(NamedTuple):
    library: str
    network: str
    read_as: str
    report: str  # the line that `--init` prints, without the file's name
    largest_difference: str
    largest_value: str


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--only", nargs="+", default=list(LIBRARIES), choices=LIBRARIES)
    parser.add_argument("--networks", nargs="+")
    options = parser.parse_args()
    for library in options.only:
        if importlib.util.find_spec(library) is None:
            continue
        for case in LIBRARIES[library]():
            if options.networks and case.network not in options.networks:
                continue
            with tempfile.TemporaryDirectory() as folder:
                line = tried(library, case, Path(folder))
            print(*line, sep=", ", flush=True)
            keep(line)


def tried(library: str, case: Case, folder: Path) -> Line:
    randomize(case.model.eval())
    case.save(folder / case.file)
    backbone = create_backbone(case.ours, output_stride=case.output_stride).eval()
    try:
        named = f"{library} {version(library)}"
    except PackageNotFoundError:  # a copy that was not installed by pip
        named = library
    try:
        report = initialize_from(backbone, folder / case.file).report
    except UserError as error:
        return Line(
            named, case.network, case.ours, f"refused: {error.args[0]}".replace(f"{folder / case.file}: ", ""), "", ""
        )
    pixels = torch.randn(IMAGE)
    model: Any = backbone.model
    with torch.no_grad():
        theirs, ours = case.last(pixels), model.forward_features(pixels)
    report = report.replace(f" in {folder / case.file}", "")
    return Line(
        named, case.network, case.ours, report, f"{(ours - theirs).abs().max():.1e}", f"{theirs.abs().max():.3g}"
    )


def randomize(model: nn.Module) -> None:
    """No tensor is a default that two networks would share: norms, scales of layers, tokens, biases."""
    torch.manual_seed(0)
    with torch.no_grad():
        for tensor in model.state_dict().values():
            if tensor.is_floating_point() and (tensor.ndim == 1 or bool((tensor == tensor.flatten()[0]).all())):
                tensor.uniform_(0.5, 1)


def keep(line: Line) -> None:
    """Replaces the row of this network in the table."""

    def key(row: dict[str, str]) -> tuple[str, ...]:
        return row["library"].split()[0], row["network"], row["read_as"]

    kept = [row for row in rows.read(TABLE) if key(row) != key(line._asdict())] + [line._asdict()]
    order = list(LIBRARIES)
    kept.sort(key=lambda row: order.index(row["library"].split()[0]))
    with TABLE.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, Line._fields, lineterminator="\n")
        writer.writeheader()
        writer.writerows(kept)


def state_dict(model: nn.Module) -> Callable[[Path], object]:
    return lambda file: torch.save(model.state_dict(), file)


def folder_of(model: Any) -> Callable[[Path], object]:
    return lambda file: model.save_pretrained(file.parent)


def of_torchvision() -> Iterator[Case]:
    from torchvision import models

    detection, segmentation = models.detection, models.segmentation
    resnet: Any = models.resnet18()
    body = nn.Sequential(*list(resnet.children())[:-2])
    yield Case("resnet18", "resnet18", resnet, state_dict(resnet), body)
    convnext: Any = models.convnext_tiny()
    yield Case("convnext_tiny", "convnext_tiny", convnext, state_dict(convnext), convnext.features)
    transformer: Any = models.vit_b_16()

    def tokens(pixels: Tensor) -> Tensor:
        return transformer.encoder(torch.cat([transformer.class_token, transformer._process_input(pixels)], 1))

    yield Case("vit_b_16", "vit_base_patch16_224", transformer, state_dict(transformer), tokens)
    detector: Any = detection.fasterrcnn_resnet50_fpn(weights=None, weights_backbone=None, norm_layer=nn.BatchNorm2d)
    yield Case(
        "fasterrcnn_resnet50_fpn", "resnet50", detector, state_dict(detector),
        lambda pixels: detector.backbone.body(pixels)["3"],
    )  # fmt: skip
    segmenter: Any = segmentation.deeplabv3_resnet50(weights=None, weights_backbone=None)
    yield Case(
        "deeplabv3_resnet50", "resnet50", segmenter, state_dict(segmenter),
        lambda pixels: segmenter.backbone(pixels)["out"], 8,
    )  # fmt: skip


def of_transformers() -> Iterator[Case]:
    import timm
    import transformers  # pyright: ignore[reportMissingImports]

    def last(model: Any) -> Callable[[Tensor], Tensor]:
        return lambda pixels: model(pixels).last_hidden_state

    small = transformers.ResNetConfig(
        embedding_size=64, hidden_sizes=[64, 128, 256, 512], depths=[2, 2, 2, 2], layer_type="basic"
    )
    tiny = transformers.ConvNextV2Config(hidden_sizes=[40, 80, 160, 320], depths=[2, 2, 6, 2])
    for ours, model in (
        ("resnet18", transformers.ResNetModel(small)),
        ("resnet50", transformers.ResNetModel(transformers.ResNetConfig())),
        ("convnext_tiny", transformers.ConvNextModel(transformers.ConvNextConfig())),
        ("convnextv2_atto", transformers.ConvNextV2Model(tiny)),
        ("vit_base_patch16_224", transformers.ViTModel(transformers.ViTConfig())),
    ):
        yield Case(type(model).__name__, ours, model, folder_of(model), last(model), file="model.safetensors")
    config = transformers.TimmWrapperConfig(architecture="vit_tiny_patch16_224")
    wrapper: Any = transformers.TimmWrapperModel(config)
    yield Case(
        "TimmWrapperModel", "vit_tiny_patch16_224", wrapper, folder_of(wrapper), last(wrapper),
        file="model.safetensors",
    )  # fmt: skip
    for ours in ("resnet18", "convnext_nano"):
        count = len(timm.create_model(ours, features_only=True).feature_info)  # pyright: ignore
        kind = transformers.TimmBackboneConfig(backbone=ours, out_indices=[count - 1])
        backbone: Any = transformers.AutoBackbone.from_config(kind)
        yield Case(
            "TimmBackbone", ours, backbone, folder_of(backbone),
            lambda pixels, backbone=backbone: backbone(pixels).feature_maps[-1], file="model.safetensors",
        )  # fmt: skip


def of_smp() -> Iterator[Case]:
    import segmentation_models_pytorch as smp  # pyright: ignore[reportMissingImports]

    for theirs, ours in (("resnet18", "resnet18"), ("tu-convnext_nano", "convnext_nano")):
        model: Any = smp.Unet(theirs, encoder_weights=None, classes=3)
        yield Case(
            f"Unet of {theirs}", ours, model, state_dict(model),
            lambda pixels, model=model: model.encoder(pixels)[-1],
        )  # fmt: skip


def of_detectron2() -> Iterator[Case]:
    from detectron2.checkpoint import Checkpointer  # pyright: ignore[reportMissingImports]
    from detectron2.config import get_cfg  # pyright: ignore[reportMissingImports]
    from detectron2.modeling import build_model  # pyright: ignore[reportMissingImports]

    settings: Any = get_cfg()
    settings.MODEL.DEVICE = "cpu"
    settings.MODEL.BACKBONE.NAME = "build_resnet_fpn_backbone"
    settings.MODEL.RESNETS.OUT_FEATURES = ["res2", "res3", "res4", "res5"]
    settings.MODEL.RESNETS.STRIDE_IN_1X1 = False
    settings.MODEL.RESNETS.NORM = "BN"
    settings.MODEL.FPN.IN_FEATURES = ["res2", "res3", "res4", "res5"]
    settings.MODEL.RPN.IN_FEATURES = settings.MODEL.ROI_HEADS.IN_FEATURES = ["p2", "p3", "p4", "p5"]
    settings.MODEL.ANCHOR_GENERATOR.SIZES = [[32], [64], [128], [256]]
    settings.MODEL.ROI_HEADS.NAME = "StandardROIHeads"
    settings.MODEL.ROI_BOX_HEAD.NAME = "FastRCNNConvFCHead"
    settings.MODEL.ROI_BOX_HEAD.NUM_FC = 2
    detector: Any = build_model(settings)
    yield Case(
        "Faster R-CNN of a ResNet-50", "resnet50", detector,
        lambda file: Checkpointer(detector, str(file.parent)).save(file.stem),
        lambda pixels: detector.backbone.bottom_up(pixels)["res5"],
    )  # fmt: skip


def of_mmpretrain() -> Iterator[Case]:
    from mmengine.runner import save_checkpoint  # pyright: ignore[reportMissingImports]
    from mmpretrain.models import build_classifier  # pyright: ignore[reportMissingImports]

    for kind, ours in (
        ({"type": "ResNet", "depth": 18}, "resnet18"),
        ({"type": "ResNet", "depth": 50}, "resnet50"),
        ({"type": "VisionTransformer", "arch": "deit-small", "out_type": "raw"}, "vit_small_patch16_224"),
        ({"type": "ConvNeXt", "arch": "tiny", "gap_before_final_norm": False}, "convnext_tiny"),
    ):
        model: Any = build_classifier({"type": "ImageClassifier", "backbone": kind})
        yield Case(
            kind["type"], ours, model,
            lambda file, model=model: save_checkpoint({"meta": {}, "state_dict": model.state_dict()}, str(file)),
            lambda pixels, model=model: model.backbone(pixels)[-1],
        )  # fmt: skip


LIBRARIES: dict[str, Callable[[], Iterator[Case]]] = {
    "torchvision": of_torchvision,
    "transformers": of_transformers,
    "segmentation_models_pytorch": of_smp,
    "detectron2": of_detectron2,
    "mmpretrain": of_mmpretrain,
}

if __name__ == "__main__":
    main()
