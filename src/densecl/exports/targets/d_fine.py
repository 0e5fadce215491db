"""D-FINE and DEIM: their TimmModel, which makes the network with timm."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import timm

from densecl.exports.delivery import Delivery
from densecl.exports.load_page import numbers
from densecl.exports.target import Loaded, Target
from densecl.exports.targets.resnets import channels_of, layers_of, resnet_refusal
from densecl.files import replacing
from densecl.model.backbone import Backbone
from densecl.model.weights import save_backbone

#: What its encoder takes, with strides of 8, 16 and 32.
LAYERS = ("layer2", "layer3", "layer4")


class DFineTarget(Target):
    library = package = "timm"  # the detector itself is a repository, not a package
    tried = "1.0.31"
    others = ("backbone.yml",)

    def refusal(self, network: Backbone) -> str | None:
        return resnet_refusal(
            network,
            "It runs a network child by child, which only a ResNet allows. Take --to transformers, whose D-FINE takes"
            " others too.",
        )

    def keeps_output_stride(self, network: Backbone) -> bool:
        return False

    def write(self, delivery: Delivery, folder: Path) -> None:
        save_backbone(delivery.network, folder / self.weights, delivery.normalization, delivery.provenance)
        channels = ", ".join(map(str, channels_of(delivery.network)[1:]))
        with replacing(folder / "backbone.yml") as file:
            file.write(
                f"""\
# {delivery.architecture} from densecl for D-FINE and DEIM.
# Name this file last in the __include__ of your configuration, and set the path of the weights.
# pretrained: True is what makes timm read them.
DFINE:
  backbone:
    type: TimmModel
    name: {delivery.architecture}
    return_layers: [{", ".join(LAYERS)}]
    pretrained: True
    pretrained_cfg_overlay: {{file: FOLDER/{self.weights}}}

HybridEncoder:
  in_channels: [{channels}]
  feat_strides: [8, 16, 32]
""".encode()
            )

    def instructions(self, delivery: Delivery) -> str:
        pixels = delivery.normalization
        return f"""
1. Set the path of `{self.weights}` in `backbone.yml`, and name that file last in the `__include__` of your
   configuration. In DEIM the section `DFINE` is called after its model.
2. D-FINE does not normalize. After each `ConvertPILImage` in the transforms, of training and of validation, add:

```yaml
- {{type: Normalize, mean: {numbers(pixels.mean)}, std: {numbers(pixels.std)}}}
```
"""

    def mistakes(self, delivery: Delivery) -> list[str]:
        return [
            "The pixels as D-FINE gives them, from 0 to 1 and not normalized: see the second step.",
            "`pretrained: False`: the file is then never opened.",
            "Encoder channels of another network: `in_channels` must be those in `backbone.yml`.",
        ]

    def load(self, delivery: Delivery, folder: Path) -> Iterator[Loaded]:
        model = timm.create_model(  # as its TimmModel does
            delivery.architecture,
            pretrained=True,
            exportable=True,
            features_only=True,
            pretrained_cfg_overlay={"file": str(folder / self.weights)},
        ).eval()
        yield Loaded(
            "as D-FINE's TimmModel makes it",
            model.state_dict(),
            lambda pixels: model(pixels)[-4:],
            layers_of(delivery.network),
        )
