"""The network for detection: torchvision's Faster R-CNN with a feature pyramid on a backbone."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.ops import FeaturePyramidNetwork, MultiScaleRoIAlign
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

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
    backbone: Backbone, classes: int, normalization: Normalization, longer_side: int, fine_tune: bool
) -> FasterRCNN:
    """A Faster R-CNN on the backbone. Its new layers are drawn from torch's global generator."""
    pyramid = Pyramid(backbone, fine_tune)
    strides = [*pyramid.strides, 2 * pyramid.strides[-1]]  # the pooled level
    names = [str(level) for level in pyramid.levels]
    divisor = math.lcm(32, *pyramid.strides)
    return FasterRCNN(
        pyramid,
        rpn_anchor_generator=AnchorGenerator(
            sizes=tuple((ANCHOR_CELLS * stride,) for stride in strides), aspect_ratios=((0.5, 1.0, 2.0),) * len(strides)
        ),
        box_roi_pool=MultiScaleRoIAlign(names, output_size=7, sampling_ratio=2),
        box_head=TwoMLPHead(PYRAMID_CHANNELS * 49, HEAD_CHANNELS),
        box_predictor=FastRCNNPredictor(HEAD_CHANNELS, classes + 1),
        min_size=longer_side,
        max_size=longer_side,
        image_mean=list(normalization.mean),
        image_std=list(normalization.std),
        size_divisible=divisor,
        rpn_pre_nms_top_n_train=2 * PROPOSALS,
        rpn_pre_nms_top_n_test=2 * PROPOSALS,
        rpn_post_nms_top_n_train=PROPOSALS,
        rpn_post_nms_top_n_test=PROPOSALS,
        box_batch_size_per_image=SAMPLED_PROPOSALS,
    )
