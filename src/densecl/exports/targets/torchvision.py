"""torchvision: the state dict of one of its ResNets, under its own names, which timm shares."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torchvision
from safetensors.torch import load_file
from torch import Tensor, nn

from densecl.exports.delivery import Delivery
from densecl.exports.target import Loaded, Target
from densecl.model.backbone import Backbone
from densecl.model.weights import save_backbone

#: Networks that are the same in timm and in torchvision, tensor by tensor and step by step.
RESNETS = (
    "resnet18",
    "resnet34",
    "resnet50",
    "resnet101",
    "resnet152",
    "resnext50_32x4d",
    "resnext101_32x8d",
    "resnext101_64x4d",
    "wide_resnet50_2",
    "wide_resnet101_2",
)

#: The maps that torchvision calls layer1 to layer4, and their number.
LAYERS = ("layer1", "layer2", "layer3", "layer4")


def resnet_refusal(network: Backbone, instead: str) -> str | None:
    """Why a network is none of torchvision's ResNets; None if it is one."""
    name = network.name.split(".")[0]
    if name not in RESNETS:
        alike = "Its ResNets have another stem or other blocks. " if name.startswith(("resne", "wide_resne")) else ""
        return f"it takes ResNets such as resnet18 and resnet50. {alike}{instead}"
    if network.in_channels != 3:
        return f"its ResNets take images of 3 channels, these weights {network.in_channels}. Take --to timm."
    return None


class TorchvisionTarget(Target):
    library = package = "torchvision"
    tried = "0.29.1"

    def refusal(self, network: Backbone) -> str | None:
        return resnet_refusal(network, "Take --to timm, which takes all.")

    def keeps_output_stride(self, network: Backbone) -> bool:
        return _has_bottlenecks(network)  # torchvision dilates no others

    def write(self, delivery: Delivery, folder: Path) -> None:
        save_backbone(delivery.network, folder / self.weights, delivery.normalization, delivery.provenance)

    def instructions(self, delivery: Delivery) -> str:
        dilated = _dilation(delivery.network.stride)
        arguments = f"replace_stride_with_dilation={dilated}" if any(dilated) else ""
        return f"""
```python
import torch, torchvision
from safetensors.torch import load_file

model = torchvision.models.{delivery.architecture}({arguments})
model.fc = torch.nn.Identity()
model.load_state_dict(load_file("FOLDER/{self.weights}"))  # strict: every tensor has its place
model.fc = torch.nn.Linear({delivery.network.channels}, 10)
```
"""

    def load(self, delivery: Delivery, folder: Path) -> Iterator[Loaded]:
        network = delivery.network
        make = getattr(torchvision.models, delivery.architecture)
        model = make(replace_stride_with_dilation=_dilation(network.stride))
        model.fc = nn.Identity()
        model.load_state_dict(load_file(folder / self.weights))
        model.eval()
        yield Loaded(
            delivery.architecture,
            model.state_dict(),
            lambda pixels: _layers(model, pixels),
            lambda pixels: network.maps(pixels)[-len(LAYERS) :],
        )


def _layers(model: Any, pixels: Tensor) -> list[Tensor]:
    """The maps of the four layers of torchvision's ResNet."""
    features, found = model.maxpool(model.relu(model.bn1(model.conv1(pixels)))), []
    for name in LAYERS:
        features = getattr(model, name)(features)
        found.append(features)
    return found


def _has_bottlenecks(network: Backbone) -> bool:
    return "layer1.0.conv3.weight" in network.model.state_dict()


def _dilation(trained: int) -> list[bool]:
    """For each of the layers 2 to 4, whether it is dilated instead of having a stride."""
    return [trained < stride for stride in (8, 16, 32)]
