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
        "one file that gives the feature maps without torch, for any batch and size; needs densecl[onnx]",
    ),
    "torch-export": Row(
        "densecl.exports.targets.torch_export:TorchExportTarget",
        "one .pt2 file that gives the feature maps without our code or timm's, for any batch and size",
    ),
}

#: Libraries that people ask for and that cannot take our weights, with the reason and what to take instead.
IMPOSSIBLE = {
    "rf-detr": "RF-DETR takes only DINOv2 with its own windowed attention, which timm has not. For another detector of"
    " this kind take --to d-fine.",
}


def load(name: str) -> Target:
    """A target of the table.

    Raises:
        UserError: there is none of that name.
    """
    if name in IMPOSSIBLE:
        raise UserError(f"--to {name} is not possible: {IMPOSSIBLE[name]}")
    if name not in TARGETS:
        raise UserError(f"--to takes {listing(TARGETS)}, not '{name}'.{nearest(name, TARGETS)}")
    module, _, kind = TARGETS[name].home.partition(":")
    return getattr(importlib.import_module(module), kind)(name)
