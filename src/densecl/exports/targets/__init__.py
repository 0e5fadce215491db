"""The table of targets. It loads nothing heavy, so that `densecl export --help` can show it.

docs/architecture.md says how to add a target: one file and one row here.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, NamedTuple

from densecl.errors import UserError, nearest
from densecl.names import listing

if TYPE_CHECKING:
    from densecl.exports.target import Target


class Row(NamedTuple):
    """What the command line knows of a target before anything of it is loaded."""

    home: str  # "module:class"
    makes: str  # what it is for, in a line or two of help
    slow: bool = False  # minutes rather than seconds


TARGETS = {
    "timm": Row(
        "densecl.exports.targets.timm:TimmTarget",
        "for timm.create_model, with features_only too; transformers' TimmWrapper reads the same folder",
    ),
    "huggingface": Row(
        "densecl.exports.targets.huggingface:HuggingFaceTarget",
        "the same with a model card, ready for 'hf upload'",
    ),
    "torchvision": Row(
        "densecl.exports.targets.torchvision:TorchvisionTarget",
        "the state dict of a ResNet of torchvision's",
    ),
    "torchvision-detection": Row(
        "densecl.exports.targets.torchvision_detection:TorchvisionDetectionTarget",
        "a ResNet as the body of torchvision's Faster R-CNN, Mask R-CNN and RetinaNet, with a feature pyramid",
    ),
    "onnx": Row(
        "densecl.exports.targets.onnx:OnnxTarget",
        "one file that gives the feature maps without torch, for any batch, and any size that the network takes;"
        " needs onnx, onnxscript and onnxruntime",
        slow=True,
    ),
    "torch-export": Row(
        "densecl.exports.targets.torch_export:TorchExportTarget",
        "one .pt2 file that gives the feature maps without our code or timm's, for any batch, and any size that the"
        " network takes",
        slow=True,
    ),
    "smp": Row(
        "densecl.exports.targets.smp:SmpTarget",
        "the encoder of segmentation-models-pytorch: Unet, FPN, DeepLabV3+; of a ViT that of DPT",
    ),
    "transformers": Row(
        "densecl.exports.targets.transformers:TransformersTarget",
        "for AutoBackbone in its detectors and segmenters, and for AutoModel",
    ),
    "ultralytics": Row(
        "densecl.exports.targets.ultralytics:UltralyticsTarget",
        "a YAML, and a .pt that YOLO(...).train() starts from (ResNets)",
    ),
    "d-fine": Row("densecl.exports.targets.d_fine:DFineTarget", "the backbone of D-FINE and DEIM (ResNets)"),
    "detectron2": Row(
        "densecl.exports.targets.detectron2:Detectron2Target", "its names, with the configuration (ResNets)"
    ),
    "mmdetection": Row(
        "densecl.exports.targets.mmdetection:MMDetectionTarget", "a checkpoint, with the configuration (ResNets)"
    ),
    "mmsegmentation": Row(
        "densecl.exports.targets.mmsegmentation:MMSegmentationTarget", "a checkpoint, with the configuration (ResNets)"
    ),
}

#: Libraries that people ask for and that cannot take our weights, with the reason and what to take instead.
IMPOSSIBLE = {
    "rf-detr": "RF-DETR takes only DINOv2 with its own windowed attention, which timm has not. For another detector of"
    " this kind take --to d-fine.",
}


def check_target(name: str) -> None:
    """
    Raises:
        UserError: there is no target of that name.
    """
    if name in IMPOSSIBLE:
        raise UserError(f"--to {name} is not possible: {IMPOSSIBLE[name]}")
    if name not in TARGETS:
        raise UserError(f"--to takes {listing(TARGETS)}, not '{name}'.{nearest(name, TARGETS)}")


def load(name: str) -> Target:
    """A target of the table.

    Raises:
        UserError: there is none of that name.
    """
    check_target(name)
    module, _, kind = TARGETS[name].home.partition(":")
    return getattr(importlib.import_module(module), kind)(name)
