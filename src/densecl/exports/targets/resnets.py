"""The ResNets that every library has: the same tensors and the same arithmetic as timm's, under one name or another."""

from __future__ import annotations

from collections.abc import Sequence

from densecl.exports.target import Maps
from densecl.model.backbone import Backbone
from densecl.normalization import Normalization

#: timm's name -> layers, as the other libraries count them.
DEPTHS = {"resnet18": 18, "resnet34": 34, "resnet50": 50, "resnet101": 101, "resnet152": 152}

#: Images of other libraries' ResNets have these channels, red first.
RGB = 3


def resnet_refusal(network: Backbone, instead: str) -> str | None:
    """Why a network is none of these ResNets, and what to take instead; None if it is one."""
    name = network.name.split(".")[0]
    if name not in DEPTHS:
        alike = " This one has another stem or other blocks." if name.startswith(("resne", "wide_resne")) else ""
        return f"only resnet18, resnet34, resnet50, resnet101 and resnet152 go there.{alike} {instead}"
    if network.in_channels != RGB:
        return f"it reads images of 3 channels, and these weights take {network.in_channels}. {instead}"
    return None


def channels_of(network: Backbone) -> list[int]:
    """Of the maps of the four layers, whose strides are 4 to 32."""
    return [kind.channels for kind in network.map_kinds()[-4:]]


def layers_of(network: Backbone) -> Maps:
    """The maps of the four layers."""
    return lambda pixels: network.maps(pixels)[-4:]


def in_bytes(normalization: Normalization) -> tuple[list[float], list[float]]:
    """Mean and deviation for pixels of 0 to 255."""
    return _scaled(normalization.mean), _scaled(normalization.std)


def _scaled(values: Sequence[float]) -> list[float]:
    return [round(255 * value, 6) for value in values]
