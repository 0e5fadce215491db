"""Ultralytics: a YAML with a ResNet of torchvision's under a detector's neck, and a .pt that its trainer starts from.

Three things of theirs would change the features though every tensor loads, and are mended here:

- its trainer gives pixels of 0 to 1 and does not normalize: a 1x1 convolution before the backbone does it.
- it gives every batch norm an eps of 0.001: the weights of each batch norm are scaled so that the output is the same.
- `YOLO.save` rounds to half precision: the .pt holds float32.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from densecl.exports.delivery import Delivery
from densecl.exports.target import Loaded, Target
from densecl.exports.targets.resnets import channels_of, layers_of, resnet_refusal
from densecl.files import replacing
from densecl.model.backbone import Backbone
from densecl.model.weights.tensor_files import read_tensors
from densecl.normalization import Normalization

#: Ultralytics gives it to every batch norm of a model that it makes.
EPS = 1e-3

#: The children of torchvision's ResNet by their number, as its TorchVision layer has them.
NUMBERS = {"conv1": 0, "bn1": 1, "layer1": 4, "layer2": 5, "layer3": 6, "layer4": 7}

#: Of the layers in the YAML: what normalizes, and the backbone.
NORMALIZES, BODY = "model.0.", "model.1.m."


class UltralyticsTarget(Target):
    library = package = "ultralytics"
    tried = "8.4.190"
    needs: ClassVar = {"ultralytics": "pip install ultralytics (its license is AGPL-3.0, or one that you buy)"}
    weights = "model.pt"
    others = ("model.yaml",)

    def refusal(self, network: Backbone) -> str | None:
        return resnet_refusal(
            network,
            "Its own YOLO backbones are pre-trained from inside: densecl.pretrain(backbone=torch.nn.Sequential("
            "*yolo.model.model[:10])).",
        )

    def keeps_output_stride(self, network: Backbone) -> bool:
        return False  # the neck needs strides of 8, 16 and 32

    def tensors(self, delivery: Delivery) -> dict[str, Tensor]:
        weight, bias = normalizing(delivery.normalization)
        scales = _scales(delivery.network)
        body = {
            BODY + _numbered(name): tensor * scales[name] if name in scales else tensor
            for name, tensor in delivery.state.items()
        }
        return {f"{NORMALIZES}weight": weight, f"{NORMALIZES}bias": bias, **body}

    def write(self, delivery: Delivery, folder: Path) -> None:
        from ultralytics import YOLO  # pyright: ignore

        with replacing(folder / "model.yaml") as file:
            file.write(_yaml(delivery).encode())
        network: Any = YOLO(str(folder / "model.yaml"), task="detect").model
        unexpected = network.load_state_dict(self.tensors(delivery), strict=False).unexpected_keys
        assert not unexpected, unexpected
        network.yaml["yaml_file"] = "model.yaml"  # not the path where it was made
        network.args = {}
        with replacing(folder / self.weights) as file:
            torch.save({"epoch": -1, "model": network, "ema": None, "train_args": {"task": "detect"}}, file)

    def stored(self, delivery: Delivery, folder: Path) -> dict[str, Tensor]:
        found = read_tensors(folder / self.weights).tensors
        named = {name.removeprefix("model."): one for name, one in found.items()}
        return {name: one.read() for name, one in named.items() if name.startswith((NORMALIZES, BODY))}

    def instructions(self, delivery: Delivery) -> str:
        return """
```python
from ultralytics import YOLO

YOLO("FOLDER/model.pt").train(data="yours.yaml", epochs=100)
```

It must be the `.pt`. `model.yaml` is for reading, and for changing the neck or the head: make a model of the changed
file, `YOLO("changed.yaml").load("FOLDER/model.pt")`, save it with `.save("changed.pt")`, and open and train that file.
The first layer of the model normalizes the pixels, so give it those of 0 to 1, as Ultralytics does. Neck and head are
new.
"""

    def mistakes(self, delivery: Delivery) -> list[str]:
        return [
            '`YOLO("model.yaml").train(...)`, also after loading weights into it by hand: the trainer makes a model of'
            " its own from the YAML, and the weights are lost without a word.",
            "`freeze=10`: 2 layers are ours here. To keep the backbone as it is, `freeze=2`.",
            "Its rtdetr-resnet50.yaml with these tensors: all of them load, but its activation is SiLU and not ReLU.",
            "A small learning rate is not its default: with few images try `optimizer='AdamW', lr0=0.0005`.",
        ]

    def load(self, delivery: Delivery, folder: Path) -> Iterator[Loaded]:
        from ultralytics import YOLO  # pyright: ignore
        from ultralytics.nn.tasks import DetectionModel  # pyright: ignore

        opened: Any = YOLO(str(folder / self.weights)).model.float().eval()
        trained: Any = DetectionModel(opened.yaml, nc=3, verbose=False)  # as its trainer does, for 3 classes
        trained.load(opened, verbose=False)
        raw = _raw(delivery.normalization)
        for way, network in (('YOLO("model.pt")', opened), ("as its trainer makes it", trained.eval())):
            tensors = {name: one for name, one in network.state_dict().items() if name.startswith((NORMALIZES, BODY))}
            yield Loaded(way, tensors, _maps_of(network, raw), layers_of(delivery.network))


def _maps_of(network: Any, raw: nn.Module):
    """The maps of the backbone's four layers, of pixels that we normalized, and that are given as the trainer does."""
    return lambda pixels: network.model[1](network.model[0](raw(pixels)))[-4:]


def _raw(normalization: Normalization) -> nn.Module:
    """From normalized pixels back to those of 0 to 1."""
    back = nn.Conv2d(3, 3, 1).requires_grad_(False)
    back.weight.copy_(torch.diag(torch.tensor(normalization.std))[:, :, None, None])
    back.bias.copy_(torch.tensor(normalization.mean))  # pyright: ignore[reportOptionalMemberAccess]
    return back


def normalizing(normalization: Normalization) -> tuple[Tensor, Tensor]:
    """Weight and bias of the 1x1 convolution that subtracts the mean and divides by the deviation."""
    mean, std = (torch.tensor(values, dtype=torch.float64) for values in normalization)
    return torch.diag(1 / std)[:, :, None, None].float(), (-mean / std).float()


def _scales(network: Backbone) -> dict[str, Tensor]:
    """For the weight of each batch norm the factor with which it gives the same with another eps.

    It is exact with the statistics that are stored, and nearly so with those of a batch.
    """
    return {
        f"{name}.weight": ((norm.running_var.double() + EPS) / (norm.running_var.double() + norm.eps)).sqrt().float()
        for name, norm in network.model.named_modules()
        if isinstance(norm, _BatchNorm) and norm.running_var is not None
    }


def _numbered(name: str) -> str:
    first, _, rest = name.partition(".")
    return f"{NUMBERS[first]}.{rest}"


def _yaml(delivery: Delivery) -> str:
    """The detector. The TorchVision layer gives a list of maps, from which an Index takes one."""
    third, fourth, last = channels_of(delivery.network)[1:]
    name = json.dumps(delivery.architecture)
    return f"""\
# {delivery.architecture} from densecl, with a neck and a head for detection.
nc: 80

backbone:
  - [-1, 1, nn.Conv2d, [3, 3, 1]] # 0: normalizes; Ultralytics itself does not
  - [-1, 1, TorchVision, [{last}, {name}, null, True, 2, True]] # 1: ours
  - [1, 1, Index, [{third}, 6]] # 2: stride 8
  - [1, 1, Index, [{fourth}, 7]] # 3: stride 16
  - [1, 1, Index, [{last}, 8]] # 4: stride 32
  - [-1, 1, SPPF, [512, 5]] # 5

head:
  - [-1, 1, nn.Upsample, [null, 2, nearest]]
  - [[-1, 3], 1, Concat, [1]]
  - [-1, 2, C3k2, [256, False]] # 8

  - [-1, 1, nn.Upsample, [null, 2, nearest]]
  - [[-1, 2], 1, Concat, [1]]
  - [-1, 2, C3k2, [128, False]] # 11: stride 8

  - [-1, 1, Conv, [128, 3, 2]]
  - [[-1, 8], 1, Concat, [1]]
  - [-1, 2, C3k2, [256, False]] # 14: stride 16

  - [-1, 1, Conv, [256, 3, 2]]
  - [[-1, 5], 1, Concat, [1]]
  - [-1, 2, C3k2, [512, True]] # 17: stride 32

  - [[11, 14, 17], 1, Detect, [nc]]
"""
