"""detectron2: its ResNet under its own names, and a configuration that keeps what timm's ResNet does."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from densecl.exports.delivery import Delivery
from densecl.exports.load_page import numbers
from densecl.exports.target import Loaded, Target
from densecl.exports.targets.resnets import DEPTHS, channels_of, in_bytes, layers_of, resnet_refusal
from densecl.files import replacing
from densecl.model.backbone import Backbone
from densecl.model.weights.tensor_files import read_tensors

#: From a name of timm's to detectron2's, one after the other.
NAMES = (
    (r"^(conv1|bn1)\b", r"stem.\1"),
    (r"\bbn(\d)\b", r"conv\1.norm"),
    (r"\bdownsample\.0\b", "shortcut"),
    (r"\bdownsample\.1\b", "shortcut.norm"),
    (r"^layer([1-4])\b", lambda found: f"res{int(found[1]) + 1}"),
)


class Detectron2Target(Target):
    library = package = "detectron2"
    tried = "0.6"
    weights = "model.pth"
    others = ("config.yaml",)

    def refusal(self, network: Backbone) -> str | None:
        return resnet_refusal(
            network,
            "Its ViT (ViTDet) attends in windows and has relative positions, which timm's has not. Take a resnet50, or"
            " --to transformers.",
        )

    def keeps_output_stride(self, network: Backbone) -> bool:
        return False  # the pyramid needs strides from 4 to 32

    def tensors(self, delivery: Delivery) -> dict[str, Tensor]:
        return {detectron2_name(name): tensor for name, tensor in delivery.state.items()}

    def write(self, delivery: Delivery, folder: Path) -> None:
        # Tensors, not arrays: numpy 2 writes arrays that numpy 1 cannot read. With "matching_heuristics" detectron2
        # finds the place of the names, whatever the detector puts before them.
        with replacing(folder / self.weights) as file:
            content = {"model": self.tensors(delivery), "__author__": "densecl", "matching_heuristics": True}
            torch.save(content, file)
        with replacing(folder / "config.yaml") as file:
            file.write(_configuration(delivery).encode())

    def stored(self, delivery: Delivery, folder: Path) -> dict[str, Tensor]:
        return {
            name.removeprefix("model."): one.read() for name, one in read_tensors(folder / self.weights).tensors.items()
        }

    def instructions(self, delivery: Delivery) -> str:
        return """
```
python tools/train_net.py --config-file FOLDER/config.yaml MODEL.WEIGHTS FOLDER/model.pth \\
    DATASETS.TRAIN "('yours_train',)" DATASETS.TEST "('yours_test',)" MODEL.ROI_HEADS.NUM_CLASSES 10
```

`config.yaml` is a Faster R-CNN with a feature pyramid. For another detector keep its sections `PIXEL_MEAN`,
`PIXEL_STD`, `BACKBONE`, `RESNETS` and `INPUT`.
"""

    def mistakes(self, delivery: Delivery) -> list[str]:
        return [
            "`STRIDE_IN_1X1: True`, the default: the stride is then in another convolution, and the features are wrong"
            " though every tensor loads. `config.yaml` says False.",
            "`INPUT.FORMAT: BGR` and the mean and deviation of Caffe, which are the defaults too.",
            "`FREEZE_AT: 2` and `NORM: FrozenBN`, the defaults: the first layers and all batch norms stay as they are.",
            "A plain `.pth` with timm's names: detectron2 warns, and trains from random weights.",
        ]

    def load(self, delivery: Delivery, folder: Path) -> Iterator[Loaded]:
        from detectron2.checkpoint import DetectionCheckpointer  # pyright: ignore
        from detectron2.config import get_cfg  # pyright: ignore
        from detectron2.modeling import build_model  # pyright: ignore

        settings: Any = get_cfg()
        settings.merge_from_file(str(folder / "config.yaml"))
        settings.MODEL.DEVICE = "cpu"
        detector = build_model(settings).eval()
        DetectionCheckpointer(detector).load(str(folder / self.weights))
        body: Any = detector.backbone.bottom_up
        yield Loaded(
            "DetectionCheckpointer",
            body.state_dict(),
            lambda pixels: [body(pixels)[f"res{number}"] for number in range(2, 6)],
            layers_of(delivery.network),
        )


def detectron2_name(name: str) -> str:
    """timm's name of a ResNet's tensor in detectron2's words."""
    for ours, theirs in NAMES:
        name = re.sub(ours, theirs, name)
    return name


def _configuration(delivery: Delivery) -> str:
    mean, std = in_bytes(delivery.normalization)
    first = channels_of(delivery.network)[0]
    return f"""\
# {delivery.architecture} from densecl in a Faster R-CNN with a feature pyramid.
VERSION: 2
MODEL:
  META_ARCHITECTURE: GeneralizedRCNN
  WEIGHTS: model.pth  # its path from where you start
  PIXEL_MEAN: {numbers(mean)}  # RGB
  PIXEL_STD: {numbers(std)}
  BACKBONE:
    NAME: build_resnet_fpn_backbone
    FREEZE_AT: 0
  RESNETS:
    DEPTH: {DEPTHS[delivery.architecture]}
    OUT_FEATURES: [res2, res3, res4, res5]
    RES2_OUT_CHANNELS: {first}
    STRIDE_IN_1X1: False
    NORM: SyncBN
  FPN:
    IN_FEATURES: [res2, res3, res4, res5]
    NORM: SyncBN
  ANCHOR_GENERATOR:
    SIZES: [[32], [64], [128], [256], [512]]
    ASPECT_RATIOS: [[0.5, 1.0, 2.0]]
  RPN:
    IN_FEATURES: [p2, p3, p4, p5, p6]
    PRE_NMS_TOPK_TRAIN: 2000
    PRE_NMS_TOPK_TEST: 1000
    POST_NMS_TOPK_TRAIN: 1000
    POST_NMS_TOPK_TEST: 1000
  ROI_HEADS:
    NAME: StandardROIHeads
    IN_FEATURES: [p2, p3, p4, p5]
  ROI_BOX_HEAD:
    NAME: FastRCNNConvFCHead
    NUM_FC: 2
    POOLER_RESOLUTION: 7
INPUT:
  FORMAT: RGB
"""
