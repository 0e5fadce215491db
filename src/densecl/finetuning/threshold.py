"""From which score on a detection should count: the threshold with the best F1 in validation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torchvision.ops import box_iou

from densecl.evaluation.average_precision import Detections
from densecl.evaluation.boxed import Boxed

#: A detection is right if it overlaps an object of its class this much (intersection over union).
OVERLAP = 0.5

#: Where nothing is right at any threshold.
USUAL = 0.5


class Decision(NamedTuple):
    """A threshold and what it comes to."""

    threshold: float  # detections with at least this score count
    f1: float  # percent: the harmonic mean of the next two
    precision: float  # percent of the detections that are right
    recall: float  # percent of the objects that are found


def best_threshold(found: Sequence[Detections], truth: Sequence[Boxed]) -> Decision:
    """The threshold with the best F1 = 2 right / (detections + objects), over all classes and images at once.

    Of several equal ones it is the highest. It lies midway between the last score that counts and the next lower one.
    """
    objects = sum(len(item.boxes) for item in truth)
    scores = torch.cat([torch.zeros(0), *(each.scores for each in found)])
    right = torch.cat([torch.zeros(0, dtype=torch.bool), *map(_right, found, truth)])
    scores, order = scores.double().sort(descending=True, stable=True)
    hits = right[order].cumsum(0)
    # A threshold cannot part equal scores, so only the last of them may end what counts.
    ends = (torch.cat([scores[1:], scores.new_full((1,), -1.0)]) < scores).nonzero().flatten() if len(scores) else hits
    if len(ends) == 0 or int(hits[-1]) == 0:
        return Decision(USUAL, 0.0, 0.0, 0.0)
    f1 = 2 * hits[ends].double() / (ends + 1 + objects)
    best = int(ends[int(f1.argmax())])
    following = float(scores[best + 1]) if best + 1 < len(scores) else 0.0
    count, hit = best + 1, int(hits[best])
    return Decision(
        (float(scores[best]) + following) / 2, 100 * float(f1.max()), 100 * hit / count, 100 * hit / objects
    )


def _right(found: Detections, item: Boxed) -> Bool[Tensor, "objects"]:
    """Whether each detection is right. The best scores choose first, and an object is found once."""
    right = torch.zeros(len(found.scores), dtype=torch.bool)
    for label in found.labels.unique().tolist():
        mine = (found.labels == label).nonzero().flatten()
        mine = mine[found.scores[mine].argsort(descending=True, stable=True)]
        overlaps: Float[Tensor, "objects _"] = box_iou(found.boxes[mine], item.boxes[item.labels == label])
        if overlaps.shape[1] == 0:
            continue
        for place, index in enumerate(mine.tolist()):
            overlap, which = overlaps[place].max(dim=0)
            if overlap >= OVERLAP:
                right[index] = True
                overlaps[:, which] = -1.0
    return right
