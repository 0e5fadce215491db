"""COCO's average precision of detections."""

from __future__ import annotations

import contextlib
import io
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from densecl.evaluation.boxed import Boxed
from densecl.evaluation.boxes.outlines import packed


class AveragePrecision(NamedTuple):
    """COCO's scores, in percent."""

    ap: float  # mean over the overlaps 0.5, 0.55, ... 0.95 from which on a detection counts as right
    ap50: float  # at the overlap 0.5
    ap75: float  # at the overlap 0.75
    per_class: tuple[float, ...] = ()  # AP of each class; nan for one that has no object

    def scores(self) -> dict[str, float]:
        """The numbers as they stand in the file of results, with the AP of each class."""
        each = {f"ap_{label}": ap for label, ap in enumerate(self.per_class, start=1)}
        return {"ap": self.ap, "ap50": self.ap50, "ap75": self.ap75, **each}


class Detections(NamedTuple):
    """What was detected in an image."""

    boxes: Float[Tensor, "objects 4"]
    labels: Int64[Tensor, "objects"]
    scores: Float[Tensor, "objects"]
    masks: tuple[dict[str, Any], ...] | None = None  # `packed`, from a mask-rcnn


def average_precision(
    found: Sequence[Detections], truth: Sequence[Boxed], classes: int, *, by_mask: bool = False
) -> AveragePrecision:
    """COCO's average precision. Of each image, at most 100 detections count.

    Args:
        found: the detections in each image.
        truth: the objects in each image.
        classes: number of classes; labels are 1 to classes.
        by_mask: detections overlap with objects as far as their masks do, not their boxes.
    """
    from faster_coco_eval import COCO, COCOeval_faster

    images, annotations, detections = [], [], []
    for image, (item, detected) in enumerate(zip(truth, found, strict=True), 1):
        images.append({"id": image, "height": item.image.shape[1], "width": item.image.shape[2]})
        for place, (box, label) in enumerate(zip(with_sides(item.boxes), item.labels.tolist(), strict=True)):
            annotation = {"id": len(annotations) + 1, "image_id": image, "category_id": label, "iscrowd": 0}
            annotation |= {"bbox": box, "area": box[2] * box[3]}
            if by_mask:
                mask = item.outlines[place].draw(item.image.shape[2], item.image.shape[1])
                annotation |= {"segmentation": packed(mask), "area": int(mask.sum())}
            annotations.append(annotation)
        labels, scores = detected.labels.tolist(), detected.scores.tolist()
        masks = detected.masks if by_mask and detected.masks is not None else ()
        for box, label, confidence in zip(with_sides(detected.boxes), labels, scores, strict=True):
            detections.append({"image_id": image, "category_id": label, "bbox": box, "score": confidence})
        for detection, mask in zip(detections[len(detections) - len(masks) :], masks, strict=True):
            del detection["bbox"]  # by which detections would otherwise be compared
            detection["segmentation"] = mask
    if not detections:
        there = {label for item in truth for label in item.labels.tolist()}
        each = tuple(0.0 if label in there else math.nan for label in range(1, classes + 1))
        return AveragePrecision(0.0, 0.0, 0.0, each)
    categories = [{"id": label, "name": str(label)} for label in range(1, classes + 1)]
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO({"images": images, "annotations": annotations, "categories": categories})
        judged = COCOeval_faster(
            coco, coco.loadRes(detections), iouType="segm" if by_mask else "bbox", print_function=lambda *_: None
        )
        judged.evaluate()
        judged.accumulate()
        judged.summarize()
    ap, ap50, ap75 = (100 * float(np.asarray(judged.stats)[place]) for place in range(3))
    # By overlap, recall, class, area (the first: all), most detections (the last: 100); -1 where there is no object.
    precision = np.asarray(judged.eval["precision"])[:, :, :, 0, -1]
    each = [100 * float(of[of > -1].mean()) if (of > -1).any() else math.nan for of in np.moveaxis(precision, 2, 0)]
    return AveragePrecision(ap, ap50, ap75, tuple(each))


def with_sides(boxes: Float[Tensor, "objects 4"]) -> list[list[float]]:
    """Boxes as COCO has them: x, y, width, height."""
    return torch.cat([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], dim=1).tolist()
