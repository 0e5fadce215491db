"""mmdetection 3: a configuration of Faster R-CNN with this ResNet, and its checkpoint."""

from __future__ import annotations

from densecl.exports.delivery import Delivery
from densecl.exports.targets.openmmlab import OpenMMLabTarget, backbone_lines, preprocessor_lines
from densecl.exports.targets.resnets import channels_of
from densecl.model.backbone import Backbone


class MMDetectionTarget(OpenMMLabTarget):
    library = package = "mmdet"
    tried = "3.3.0"

    def keeps_output_stride(self, network: Backbone) -> bool:
        return False  # the pyramid needs strides from 4 to 32

    def configuration(self, delivery: Delivery) -> str:
        return f"""\
# {delivery.architecture} from densecl in a Faster R-CNN of mmdetection 3.
# Any other detector that stands on a ResNet takes the same data_preprocessor, backbone and in_channels.
_base_ = "mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py"

model = dict(
    {preprocessor_lines(delivery)}
    backbone=dict(
{backbone_lines(delivery)}
    ),
    neck=dict(in_channels={channels_of(delivery.network)}),
)
"""

    def instructions(self, delivery: Delivery) -> str:
        return """
```
python tools/train.py FOLDER/config.py --cfg-options model.roi_head.bbox_head.num_classes=10
```

Its `_base_` is a configuration that comes with mmdetection; put your dataset beside it as usual. The folder may be
moved: the checkpoint is looked for beside `config.py`.
"""
