"""Networks of timm as they are made here: without a classifier, and with what each kind needs to take other sizes."""

from __future__ import annotations

import re
from typing import Any

import timm
import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm


def create_model(name: str, *, channels: int, output_stride: int | None, pretrained: bool = False) -> nn.Module:
    return _create_model(name, channels, output_stride, pretrained)[0]


def model_settings(name: str, *, channels: int, output_stride: int | None) -> dict[str, Any]:
    """What `create_model` asks of timm besides the name: with it `timm.create_model` makes the same network."""
    with torch.random.fork_rng(devices=[]):
        return _create_model(name, channels, output_stride, pretrained=False)[1]


def _create_model(
    name: str, channels: int, output_stride: int | None, pretrained: bool
) -> tuple[nn.Module, dict[str, Any]]:
    settings: dict[str, Any] = {"num_classes": 0, "in_chans": channels}
    # Convolutional networks take an output stride, ViTs a dynamic image size, the Swin of older timm a size that is not
    # strict. Each refuses the settings of the others.
    attempts: list[dict[str, Any]] = [{"dynamic_img_size": True}, {"strict_img_size": False}]
    if output_stride:
        attempts.insert(0, {"output_stride": output_stride})
    for special in attempts:
        try:
            return timm.create_model(name, pretrained=pretrained, **settings, **special), settings | special
        except (TypeError, NotImplementedError, AssertionError):
            continue
    return timm.create_model(name, pretrained=pretrained, **settings), settings


def known_to_timm(name: str) -> bool:
    """Whether a name is that of a model in timm, with or without a tag; never one of a hub or a folder."""
    if not re.fullmatch(r"\w+(\.\w+)?", name, re.ASCII) or not timm.is_model(name.split(".")[0]):
        return False
    try:
        return "." not in name or timm.get_pretrained_cfg(name) is not None
    except RuntimeError:  # it has no such tag
        return False


@torch.no_grad()
def initialize(model: nn.Module) -> None:
    """The paper's initialization: convolutions kaiming normal (fan in), batch norm 1 and 0, none of them zero.

    timm's ResNets use fan out, and zero the last batch norm of each residual branch.
    """
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_in", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, _BatchNorm) and module.affine:
            nn.init.ones_(module.weight)
            nn.init.zeros_(module.bias)
