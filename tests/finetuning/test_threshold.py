from __future__ import annotations

import pytest
import torch
from torchvision.ops import box_iou

from densecl.evaluation.average_precision import Detections
from densecl.evaluation.boxed import Boxed
from densecl.finetuning.threshold import best_threshold


def plain_f1(found: list[Detections], truth: list[Boxed], threshold: float) -> tuple[float, float, float]:
    """F1, precision and recall with a loop over everything."""
    right = count = 0
    objects = sum(len(item.boxes) for item in truth)
    for each, item in zip(found, truth, strict=True):
        taken: set[int] = set()
        for index in sorted(range(len(each.scores)), key=lambda index: -float(each.scores[index])):
            if each.scores[index] < threshold:
                continue
            count += 1
            best, which = 0.5, None
            for place, box in enumerate(item.boxes):
                overlap = float(box_iou(each.boxes[index : index + 1], box[None]))
                if item.labels[place] == each.labels[index] and place not in taken and overlap >= best:
                    best, which = overlap, place
            if which is not None:
                taken.add(which)
                right += 1
    return 2 * right / (count + objects), right / max(1, count), right / objects


def drawn(seed: int) -> tuple[list[Detections], list[Boxed]]:
    generator = torch.Generator().manual_seed(seed)
    found, truth = [], []
    for _ in range(4):
        corners = 60 * torch.rand(5, 2, generator=generator)
        boxes = torch.cat([corners, corners + 20], dim=1)
        labels = torch.randint(1, 3, (5,), generator=generator)
        truth.append(Boxed(torch.zeros(3, 90, 90, dtype=torch.uint8), boxes, labels))
        moved = (boxes + 5 * torch.randn(5, 4, generator=generator)).repeat(2, 1)
        moved[:, 2:] = torch.maximum(moved[:, 2:], moved[:, :2] + 1)
        scores = (torch.rand(10, generator=generator) * 8).round() / 8  # some are equal
        found.append(Detections(moved, labels.repeat(2), scores))
    return found, truth


@pytest.mark.parametrize("seed", range(8))
def test_no_threshold_is_better(seed: int) -> None:
    found, truth = drawn(seed)
    chosen = best_threshold(found, truth)
    expected = plain_f1(found, truth, chosen.threshold)
    assert (chosen.f1, chosen.precision, chosen.recall) == pytest.approx(tuple(100 * value for value in expected))
    assert expected[0] == pytest.approx(max(plain_f1(found, truth, step / 16)[0] for step in range(17)))


def test_nothing_found_or_nothing_right() -> None:
    found, truth = drawn(0)
    nothing = [each._replace(boxes=each.boxes[:0], labels=each.labels[:0], scores=each.scores[:0]) for each in found]
    assert best_threshold(nothing, truth) == (0.5, 0, 0, 0)
    wrong = [each._replace(labels=each.labels + 2) for each in found]
    assert best_threshold(wrong, truth) == (0.5, 0, 0, 0)
