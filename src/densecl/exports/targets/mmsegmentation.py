"""mmsegmentation 1: a configuration of DeepLabV3+ with this ResNet, and its checkpoint."""

from __future__ import annotations

from densecl.exports.delivery import Delivery
from densecl.exports.targets.openmmlab import OpenMMLabTarget, backbone_lines, preprocessor_lines
from densecl.exports.targets.resnets import channels_of
from densecl.model.backbone import Backbone

#: Output stride -> strides and dilations of the four layers.
SHAPES = {
    8: ((1, 2, 1, 1), (1, 1, 2, 4)),
    16: ((1, 2, 2, 1), (1, 1, 1, 2)),
    32: ((1, 2, 2, 2), (1, 1, 1, 1)),
}


class MMSegmentationTarget(OpenMMLabTarget):
    library, package = "mmseg", "mmsegmentation"
    tried = "1.2.2"

    def keeps_output_stride(self, network: Backbone) -> bool:
        return True

    def configuration(self, delivery: Delivery) -> str:
        first, _, third, last = channels_of(delivery.network)
        strides, dilations = SHAPES[delivery.network.stride]
        shape = (
            f"strides={strides},",
            f"dilations={dilations},",
            "contract_dilation=True,  # the first block of a layer has the dilation of the layer before, as in timm",
        )
        return f"""\
# {delivery.architecture} from densecl in a DeepLabV3+ of mmsegmentation 1.
# Any other segmenter that stands on a ResNet takes the same data_preprocessor, backbone and in_channels.
_base_ = "mmseg::deeplabv3plus/deeplabv3plus_r50-d8_4xb4-80k_ade20k-512x512.py"

model = dict(
    pretrained=None,
    {preprocessor_lines(delivery)}
    backbone=dict(
{backbone_lines(delivery, *shape)}
    ),
    decode_head=dict(in_channels={last}, c1_in_channels={first}),
    auxiliary_head=dict(in_channels={third}),
)
"""

    def instructions(self, delivery: Delivery) -> str:
        return """
```
python tools/train.py FOLDER/config.py \\
    --cfg-options model.decode_head.num_classes=10 model.auxiliary_head.num_classes=10
```

Its `_base_` is a configuration that comes with mmsegmentation; put your dataset beside it as usual. The folder may be
moved: the checkpoint is looked for beside `config.py`.
"""

    def mistakes(self, delivery: Delivery) -> list[str]:
        return [
            '`type="ResNetV1c"`, the backbone of most of its configurations: its stem is another one, and draws its'
            ' weights. `config.py` says `type="ResNet"`.',
            *super().mistakes(delivery),
        ]
