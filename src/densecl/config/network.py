"""Settings of the backbone: the network that is trained, and what it starts from."""

from __future__ import annotations

from typing import Generic

from densecl.config.setting import TEXT, Open, Range, setting, settings

_STRIDE = Range(lambda stride: stride in (8, 16, 32), "must be 8, 16 or 32")


@settings
class NetworkSettings(Generic[Open]):
    backbone: str = setting(
        "resnet50",
        "Any timm model that gives a feature map: resnet18, convnext_nano, vit_small_patch16_224, ... Not given:"
        " what the weights of --init say they are, if they do.",
    )
    output_stride: int | None = setting(
        None,
        "Pixels per cell of the feature map: 16 or 8 gives a finer map from the same weights (dilation). For small"
        " images. Not given: the model's own.",
        _STRIDE,
    )
    init: str | None = setting(
        None,
        "Start from these weights instead of random ones: a run, a file of weights, a checkpoint of any training, or"
        " 'imagenet' for timm's.",
    )
    init_license: str | Open | None = setting(
        "auto",
        "License of the starting weights, which is recorded with the result. auto: what the weights say of it.",
        TEXT,
        free=True,
        before=None,
    )
    freeze_norm_statistics: bool | Open = setting(
        "auto",
        "Batch norm keeps its means and variances; its weights and biases train. auto: on with --init, else off.",
        before=False,
    )
