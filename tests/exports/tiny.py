"""Weights of tiny networks, as a run leaves them."""

from __future__ import annotations

from pathlib import Path

import torch

from densecl.model.backbone import create_backbone
from densecl.model.weights import save_backbone
from densecl.normalization import Normalization

ODD = Normalization((0.41, 0.43, 0.39), (0.21, 0.2, 0.19))

ORIGIN = {
    "method": "vicreg",
    "steps": "12",
    "images": "345",
    "data_fingerprint": "ab12",
    "teacher": "vit_tiny",
    "teacher_license": "cc-by-nc-4.0",
    "densecl_version": "0.1.0",
}


def weights(path: Path, name: str = "test_resnet", *, channels: int = 3, output_stride: int | None = None) -> Path:
    """Writes random weights. Batch norm has means and variances of its own."""
    torch.manual_seed(0)
    backbone = create_backbone(name, channels=channels, output_stride=output_stride)
    for name, buffer in backbone.named_buffers():
        if name.endswith("running_mean"):
            buffer.normal_(0, 0.2)
        elif name.endswith("running_var"):
            buffer.uniform_(0.5, 1.5)
    save_backbone(backbone, path, ODD, ORIGIN)
    return path
