"""The networks for detection: torchvision's Faster R-CNN and others, with a feature pyramid on a backbone."""

from __future__ import annotations

import functools
import math
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN, MaskRCNN, RetinaNet
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.models.detection.retinanet import RetinaNetHead
from torchvision.ops import FeaturePyramidNetwork, MultiScaleRoIAlign
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

from densecl.choices import Architecture
from densecl.model.backbone import Backbone
from densecl.normalization import Normalization

#: Maps of a smaller stride are left out of the pyramid, as in the paper on feature pyramids.
LEAST_STRIDE = 4

#: Half of the usual sizes of pyramid and head, and a quarter of the usual proposals. The usual ones are made for COCO
#: at 800 px. At the sizes used here they would cost several times as much as a small backbone.
PYRAMID_CHANNELS = 128
HEAD_CHANNELS = 512
PROPOSALS = 250
SAMPLED_PROPOSALS = 128

#: Sides of the anchors, in cells of their level. 8 is usual, but images are smaller here, and so are their objects.
ANCHOR_CELLS = 4

#: Heights of the anchors, as multiples of their widths.
RATIOS = (0.5, 1.0, 2.0)

#: Objects that are found in an image at most: as many as COCO's score counts.
DETECTIONS = 100


class Pyramid(nn.Module):
    """Torchvision's feature pyramid over the backbone's maps. Of several maps of one stride, the last is taken."""

    def __init__(self, backbone: Backbone, fine_tune: bool) -> None:
        super().__init__()
        self.backbone = backbone
        self.fine_tune = fine_tune
        backbone.requires_grad_(fine_tune)
        if not fine_tune:
            backbone.eval()
        kinds = backbone.map_kinds()
        strides = [kind.stride for kind in kinds]
        self.levels = [
            level
            for level, stride in enumerate(strides)
            if stride >= LEAST_STRIDE and stride not in strides[level + 1 :]
        ]
        self.strides = [strides[level] for level in self.levels]
        channels = [kinds[level].channels for level in self.levels]
        self.fpn = FeaturePyramidNetwork(channels, PYRAMID_CHANNELS, extra_blocks=LastLevelMaxPool())
        self.out_channels = PYRAMID_CHANNELS  # torchvision reads this attribute

    def train(self, mode: bool = True) -> Pyramid:
        """Keeps a frozen backbone in evaluation mode."""
        super().train(mode)
        self.backbone.train(mode and self.fine_tune)
        return self

    def forward(self, pixels: Float[Tensor, "batch channels height width"]) -> Mapping[str, Tensor]:
        with torch.set_grad_enabled(self.fine_tune and torch.is_grad_enabled()):
            try:
                maps = self.backbone.maps(pixels)
            except Exception:
                self.backbone.grid_at(*pixels.shape[2:])  # raises with a better message if the size is to blame
                raise
        return self.fpn(OrderedDict((str(level), maps[level]) for level in self.levels))


def build_detector(
    backbone: Backbone,
    classes: int,
    normalization: Normalization,
    longer_side: int,
    fine_tune: bool,
    architecture: Architecture = "faster-rcnn",
) -> nn.Module:
    """A detector on the backbone. Its new layers are drawn from torch's global generator.

    Args:
        backbone: becomes a part of it.
        classes: number of classes, without the background.
        normalization: of the pixels, which it takes on the 0-1 scale.
        longer_side: images come with this longer side, in pixels.
        fine_tune: the backbone is trained, too.
        architecture: which detector.
    """
    pyramid = Pyramid(backbone, fine_tune)
    strides = [*pyramid.strides, 2 * pyramid.strides[-1]]  # the pooled level
    common: dict[str, Any] = {
        "min_size": longer_side,
        "max_size": longer_side,
        "image_mean": list(normalization.mean),
        "image_std": list(normalization.std),
        "size_divisible": math.lcm(32, *pyramid.strides),
    }
    if architecture == "retinanet":
        return _retinanet(pyramid, strides, classes, common)
    names = [str(level) for level in pyramid.levels]
    common |= {
        "rpn_anchor_generator": AnchorGenerator(
            sizes=tuple((ANCHOR_CELLS * stride,) for stride in strides), aspect_ratios=(RATIOS,) * len(strides)
        ),
        "box_roi_pool": MultiScaleRoIAlign(names, output_size=7, sampling_ratio=2),
        "box_head": TwoMLPHead(PYRAMID_CHANNELS * 49, HEAD_CHANNELS),
        "box_predictor": FastRCNNPredictor(HEAD_CHANNELS, classes + 1),
        "rpn_pre_nms_top_n_train": 2 * PROPOSALS,
        "rpn_pre_nms_top_n_test": 2 * PROPOSALS,
        "rpn_post_nms_top_n_train": PROPOSALS,
        "rpn_post_nms_top_n_test": PROPOSALS,
        "box_batch_size_per_image": SAMPLED_PROPOSALS,
    }
    if architecture == "faster-rcnn":
        return FasterRCNN(pyramid, **common)
    return MaskRCNN(
        pyramid,
        mask_roi_pool=MultiScaleRoIAlign(names, output_size=14, sampling_ratio=2),
        mask_head=MaskRCNNHeads(PYRAMID_CHANNELS, (PYRAMID_CHANNELS,) * 4, dilation=1),
        mask_predictor=MaskRCNNPredictor(PYRAMID_CHANNELS, PYRAMID_CHANNELS, classes + 1),
        **common,
    )


def _retinanet(pyramid: Pyramid, strides: Sequence[int], classes: int, common: Mapping[str, Any]) -> RetinaNet:
    """Torchvision's RetinaNet, with the group norm in the heads that its second version has.

    Without it the heads, which are drawn anew, hardly learn within some hundreds of steps.
    """
    sizes = tuple(tuple(round(ANCHOR_CELLS * stride * 2 ** (third / 3)) for third in range(3)) for stride in strides)
    anchors = AnchorGenerator(sizes=sizes, aspect_ratios=(RATIOS,) * len(strides))
    groups = math.gcd(32, PYRAMID_CHANNELS // 4)  # of one value, group norm would be undefined
    head = RetinaNetHead(
        PYRAMID_CHANNELS,
        anchors.num_anchors_per_location()[0],
        classes + 1,  # labels begin with 1, so that they are the same for every detector
        norm_layer=functools.partial(nn.GroupNorm, groups),
    )
    return RetinaNet(pyramid, classes + 1, anchor_generator=anchors, head=head, detections_per_img=DETECTIONS, **common)
