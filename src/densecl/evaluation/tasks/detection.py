"""Detection: torchvision's Faster R-CNN with a feature pyramid on the backbone, scored by COCO's average precision."""

from __future__ import annotations

import contextlib
import io
import math
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from typing import ClassVar, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.ops import FeaturePyramidNetwork, MultiScaleRoIAlign
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

from densecl.borrowed import copy_to_train, evaluating, seeded
from densecl.errors import UserError
from densecl.evaluation.boxed import Boxed, open_boxed, share_classes
from densecl.evaluation.dense import device_of
from densecl.evaluation.fine_tuning import LEARNING_RATE, descend, draw_batches
from densecl.evaluation.results import ALL, Result
from densecl.evaluation.splits import draw_labeled
from densecl.evaluation.tasks.task import Context, Task, some_of
from densecl.evaluation.weights import Weights
from densecl.images.crops import flip
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


class AveragePrecision(NamedTuple):
    """COCO's scores, in percent."""

    ap: float  # mean over the overlaps 0.5, 0.55, ... 0.95 from which on a detection counts as right
    ap50: float  # at the overlap 0.5
    ap75: float  # at the overlap 0.75


class Detections(NamedTuple):
    """What was detected in an image."""

    boxes: Float[Tensor, "objects 4"]
    labels: Int64[Tensor, "objects"]
    scores: Float[Tensor, "objects"]


class DetectionTask(Task):
    columns: ClassVar = {"ap": "AP", "ap50": "AP50", "ap75": "AP75"}
    usual_stride = None
    always_trained = True
    fine_tunes = True

    def open(self, context: Context) -> None:
        self.train, self.test = share_classes(
            open_boxed(context.data, self.settings.train_split, channels=context.channels),
            open_boxed(context.data, self.settings.test_split, channels=context.channels),
        )
        if unlearnable := self.test.occurring() - self.train.occurring():
            missing = f"no training image has a {some_of(unlearnable)}"
            context.note(f"{self.name}: {missing}, so nothing can find it: it scores 0")

    def judge(self, weights: Weights, backbone: Backbone, seeds: Sequence[int]) -> Iterator[Result]:
        settings = self.settings
        given = settings.training() | ({"longer_side": max(settings.image_size)} if settings.image_size else {})
        for seed in seeds:
            scores = detection(
                backbone,
                self.train.take(draw_labeled(len(self.train), settings.label_fraction, seed)),
                self.test,
                classes=len(self.train.names),
                normalization=weights.normalization,
                fine_tune=settings.fine_tune,
                seed=seed,
                title=f"{weights.name}, seed {seed}: {self.name}",
                **given,
            )
            yield Result(self.name, weights.name, seed, ALL, scores._asdict())


def detection(
    backbone: Backbone,
    train: Sequence[Boxed],
    test: Sequence[Boxed],
    *,
    classes: int,
    normalization: Normalization,
    fine_tune: bool = False,
    longer_side: int = 320,
    steps: int = 500,
    batch_size: int = 8,
    learning_rate: float = LEARNING_RATE,
    seed: int = 0,
    title: str | None = None,
) -> AveragePrecision:
    """Train a Faster R-CNN on `train` and score it on `test`.

    Args:
        backbone: it is left as it was. Its maps of different strides make the pyramid.
        train: images and their objects.
        test: the same.
        classes: number of classes; labels are 1 to classes.
        normalization: the one that the backbone was trained with.
        fine_tune: train the backbone, too, with its batch norm. Otherwise it is frozen.
        longer_side: images are resized until their longer side has so many pixels.
        steps: number of training steps.
        batch_size: images of a step.
        learning_rate: AdamW's highest one.
        seed: fixes the new layers, the order of the images, flips, and torchvision's sampling of proposals.
        title: shown with the progress on stderr. None: no progress is shown.

    Raises:
        UserError: an empty set, no object to learn from or to find.
    """
    if not any(len(item.boxes) for item in train) or not any(len(item.boxes) for item in test):
        raise UserError("There is no object to learn from, or none to find.")
    device = device_of(backbone)
    with seeded(seed, device):
        model = build_detector(copy_to_train(backbone), classes, normalization, longer_side, fine_tune).to(device)
        generator = torch.Generator().manual_seed(seed)
        batches = draw_batches(len(train), batch_size, steps, generator)

        def loss_at(step: int) -> Tensor:
            images, targets = [], []
            for index in batches[step]:
                item = train[index]
                flip = torch.rand((), generator=generator).item() < 0.5
                image, boxes = _flipped(item) if flip else (item.image, item.boxes)
                images.append(_unit(image, longer_side).to(device))
                ratio = images[-1].shape[2] / image.shape[2]
                targets.append({"boxes": (boxes * ratio).to(device), "labels": item.labels.to(device)})
            losses: dict[str, Tensor] = model(images, targets)
            return torch.stack(list(losses.values())).sum()

        descend(model.parameters(), steps, loss_at, learning_rate=learning_rate, title=title)
    return average_precision(_detect(model, test, longer_side, batch_size), test, classes)


def _flipped(item: Boxed) -> tuple[Tensor, Tensor]:
    x0, y0, x1, y1 = item.boxes.unbind(dim=1)
    width = item.image.shape[2]
    return flip(item.image, 2), torch.stack([width - x1, y0, width - x0, y1], dim=1)


def _unit(image: Tensor, longer_side: int) -> Float[Tensor, "channels height width"]:
    """The image on the 0-1 scale, resized to the longer side."""
    ratio = longer_side / max(image.shape[1:])
    size = [max(1, round(side * ratio)) for side in image.shape[1:]]
    pixels = image[None].float() / torch.iinfo(image.dtype).max
    return F.interpolate(pixels, size=size, mode="bilinear", antialias=True, align_corners=False)[0]


@torch.no_grad()
def _detect(model: nn.Module, test: Sequence[Boxed], longer_side: int, batch_size: int) -> list[Detections]:
    device = device_of(model)
    found = []
    with evaluating(model):
        for start in range(0, len(test), batch_size):
            items = [test[index].image for index in range(start, min(start + batch_size, len(test)))]
            images = [_unit(image, longer_side).to(device) for image in items]
            for image, small, output in zip(items, images, model(images), strict=True):
                boxes = output["boxes"].cpu() * (image.shape[2] / small.shape[2])
                found.append(Detections(boxes, output["labels"].cpu(), output["scores"].cpu()))
    return found


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


def average_precision(found: Sequence[Detections], truth: Sequence[Boxed], classes: int) -> AveragePrecision:
    """COCO's average precision. Of each image, at most 100 detections count."""
    from faster_coco_eval import COCO, COCOeval_faster

    images, annotations, detections = [], [], []
    for image, (item, detected) in enumerate(zip(truth, found, strict=True), 1):
        images.append({"id": image, "height": item.image.shape[1], "width": item.image.shape[2]})
        for box, label in zip(_with_sides(item.boxes), item.labels.tolist(), strict=True):
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image,
                    "category_id": label,
                    "bbox": box,
                    "area": box[2] * box[3],
                    "iscrowd": 0,
                }
            )
        labels, scores = detected.labels.tolist(), detected.scores.tolist()
        for box, label, confidence in zip(_with_sides(detected.boxes), labels, scores, strict=True):
            detections.append({"image_id": image, "category_id": label, "bbox": box, "score": confidence})
    if not detections:
        return AveragePrecision(0.0, 0.0, 0.0)
    categories = [{"id": label, "name": str(label)} for label in range(1, classes + 1)]
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO({"images": images, "annotations": annotations, "categories": categories})
        judged = COCOeval_faster(coco, coco.loadRes(detections), iouType="bbox", print_function=lambda *_: None)
        judged.evaluate()
        judged.accumulate()
        judged.summarize()
    ap, ap50, ap75 = (100 * float(np.asarray(judged.stats)[place]) for place in range(3))
    return AveragePrecision(ap, ap50, ap75)


def _with_sides(boxes: Float[Tensor, "objects 4"]) -> list[list[float]]:
    """Boxes as COCO has them: x, y, width, height."""
    return torch.cat([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], dim=1).tolist()
