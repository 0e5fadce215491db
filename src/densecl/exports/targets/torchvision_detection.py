"""torchvision's Faster R-CNN, RetinaNet and Mask R-CNN: the body under their feature pyramid."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import nn
from torchvision.models.detection import FasterRCNN, MaskRCNN, RetinaNet
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
from torchvision.ops import FrozenBatchNorm2d
from torchvision.ops.feature_pyramid_network import LastLevelP6P7

from densecl.exports.delivery import Delivery
from densecl.exports.load_page import numbers
from densecl.exports.target import Loaded, Target
from densecl.exports.targets.torchvision import resnet_refusal
from densecl.exports.verify import failed
from densecl.model.backbone import Backbone
from densecl.model.weights import save_backbone

#: The detectors whose body is checked.
DETECTORS = (FasterRCNN, MaskRCNN, RetinaNet)


class TorchvisionDetectionTarget(Target):
    library = package = "torchvision"
    tried = "0.29.1"

    def refusal(self, network: Backbone) -> str | None:
        return resnet_refusal(network, "Take --to timm, and its features_only model as the body.")

    def keeps_output_stride(self, network: Backbone) -> bool:
        return False  # a pyramid needs strides from 4 to 32

    def write(self, delivery: Delivery, folder: Path) -> None:
        save_backbone(delivery.network, folder / self.weights, delivery.normalization, delivery.provenance)

    def instructions(self, delivery: Delivery) -> str:
        pixels = delivery.normalization
        return f"""
```python
import torch
from safetensors.torch import load_file
from torchvision.models.detection import FasterRCNN, MaskRCNN, RetinaNet
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
from torchvision.ops.feature_pyramid_network import LastLevelP6P7

backbone = resnet_fpn_backbone(
    backbone_name="{delivery.architecture}", weights=None, norm_layer=torch.nn.BatchNorm2d, trainable_layers=5
)
backbone.body.load_state_dict(load_file("FOLDER/{self.weights}"))  # strict
model = FasterRCNN(  # or MaskRCNN
    backbone, num_classes=1 + CLASSES, image_mean={numbers(pixels.mean)}, image_std={numbers(pixels.std)}
)
```

For `RetinaNet`, give `resnet_fpn_backbone` also `returned_layers=[2, 3, 4], extra_blocks=LastLevelP6P7(256, 256)`.
The model takes pixels from 0 to 1 and normalizes them itself. Pyramid and heads are new.
"""

    def mistakes(self, delivery: Delivery) -> list[str]:
        return [
            "`resnet_fpn_backbone` without `norm_layer`: its batch norm is frozen then. `trainable_layers` is 3 by"
            " default, which freezes the stem and the first layer.",
            "`fasterrcnn_resnet50_fpn(weights_backbone=...)`: takes torchvision's own weights, and none of yours.",
        ]

    def load(self, delivery: Delivery, folder: Path) -> Iterator[Loaded]:
        network = delivery.network
        for kind in DETECTORS:
            pyramid: dict[str, Any] = {}
            if kind is RetinaNet:
                pyramid = {"returned_layers": [2, 3, 4], "extra_blocks": LastLevelP6P7(256, 256)}
            backbone = resnet_fpn_backbone(
                backbone_name=delivery.architecture,
                weights=None,
                norm_layer=nn.BatchNorm2d,
                trainable_layers=5,
                **pyramid,
            )
            backbone.body.load_state_dict(load_file(folder / self.weights))
            body: Any = kind(backbone, num_classes=2).eval().backbone.body
            if any(isinstance(module, FrozenBatchNorm2d) for module in body.modules()):
                raise failed(self, f"the batch norm of {kind.__name__} is frozen.")
            if not all(parameter.requires_grad for parameter in body.parameters()):
                raise failed(self, f"a part of {kind.__name__} is frozen.")
            count = len(body.return_layers)
            yield Loaded(
                kind.__name__,
                body.state_dict(),
                lambda pixels, body=body: list(body(pixels).values()),
                lambda pixels, count=count: network.maps(pixels)[-count:],
            )
