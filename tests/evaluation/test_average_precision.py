from __future__ import annotations

import contextlib
import io
import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from torchvision.ops import box_iou

from densecl.evaluation.average_precision import Detections, average_precision
from densecl.evaluation.boxed import Boxed


def truth(images: int, objects: int, classes: int = 1, *, seed: int = 0) -> list[Boxed]:
    generator = torch.Generator().manual_seed(seed)
    items = []
    for _ in range(images):
        corner = 60 * torch.rand(objects, 2, generator=generator)
        boxes = torch.cat([corner, corner + 5 + 30 * torch.rand(objects, 2, generator=generator)], dim=1)
        labels = torch.randint(1, classes + 1, (objects,), generator=generator)
        items.append(Boxed(torch.zeros(3, 100, 100, dtype=torch.uint8), boxes, labels))
    return items


def detected(item: Boxed, keep: slice = slice(None), scores: torch.Tensor | None = None) -> Detections:
    boxes = item.boxes[keep]
    return Detections(boxes, item.labels[keep], torch.ones(len(boxes)) if scores is None else scores)


def test_everything_found_scores_100_and_nothing_0() -> None:
    items = truth(4, 3, classes=3)
    assert average_precision([detected(item) for item in items], items, 3)[:3] == pytest.approx((100, 100, 100))
    assert average_precision([detected(item, slice(0)) for item in items], items, 3)[:3] == (0, 0, 0)
    elsewhere = [detected(item)._replace(boxes=item.boxes + 200) for item in items]
    assert average_precision(elsewhere, items, 3)[:3] == pytest.approx((0, 0, 0))


def test_half_found_scores_what_was_planted() -> None:
    # Of two objects an image one is found, precisely: precision 1 at the recalls 0, 0.01, ... 0.5, and 0 beyond.
    items = truth(6, 2)
    found = average_precision([detected(item, slice(1)) for item in items], items, 1)
    assert found[:3] == pytest.approx((100 * 51 / 101,) * 3)
    assert found.per_class == pytest.approx((100 * 51 / 101,))


def test_each_class_has_its_own_score() -> None:
    box = torch.tensor([[10.0, 10, 50, 50], [60.0, 10, 90, 50]])
    item = Boxed(torch.zeros(3, 100, 100, dtype=torch.uint8), box, torch.tensor([1, 3]))
    found = average_precision([detected(item, slice(1))], [item], 3)  # class 2 does not occur, class 3 is not found
    assert found.per_class[::2] == pytest.approx((100, 0)) and math.isnan(found.per_class[1])
    assert found.ap == pytest.approx(50)
    assert list(found.scores()) == ["ap", "ap50", "ap75", "ap_1", "ap_2", "ap_3"]
    nothing = average_precision([detected(item, slice(0))], [item], 3)
    assert nothing.per_class[::2] == (0, 0) and math.isnan(nothing.per_class[1])


def test_boxes_that_are_a_little_off() -> None:
    # Three quarters of each box: an overlap of 0.75, right at 0.5 to 0.75 (six of the ten) and wrong above.
    items = [item._replace(boxes=torch.tensor([[8.0, 8, 48, 40]])) for item in truth(3, 1)]
    shorter = [detected(item)._replace(boxes=torch.tensor([[8.0, 8, 38, 40]])) for item in items]
    assert average_precision(shorter, items, 1)[:3] == pytest.approx((60, 100, 100))


def plain_ap50(found: list[Detections], items: list[Boxed]) -> float:
    """AP at an overlap of 0.5 of one class, by the definition."""
    ranked = sorted(
        (
            (score, image, box)
            for image, each in enumerate(found)
            for score, box in zip(each.scores.tolist(), each.boxes, strict=True)
        ),
        key=lambda entry: -entry[0],
    )
    taken: set[tuple[int, int]] = set()
    curve, right = [], 0
    total = sum(len(item.boxes) for item in items)
    for number, (_, image, box) in enumerate(ranked, 1):
        overlaps = box_iou(box[None], items[image].boxes)[0].tolist()
        free = [(overlap, place) for place, overlap in enumerate(overlaps) if (image, place) not in taken]
        best = max(free, default=(0, 0))
        if best[0] >= 0.5:
            taken.add((image, best[1]))
            right += 1
        curve.append((right / total, right / number))
    at = [max((precision for recall, precision in curve if recall >= level / 100), default=0) for level in range(101)]
    return 100 * sum(at) / 101


@settings(max_examples=10)
@given(st.integers(0, 10_000))
def test_agrees_with_the_definition(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    items = truth(7, 3, seed=seed)  # 21 objects: no recall lies on one of the 101 levels but for rounding
    found = []
    for item in items:
        moved = item.boxes + 4 * torch.randn(item.boxes.shape, generator=generator)
        boxes = torch.cat(
            [moved, 50 * torch.rand(2, 2, generator=generator).repeat(1, 2) + torch.tensor([0, 0, 20, 20])]
        )
        boxes[:, 2:] = torch.maximum(boxes[:, 2:], boxes[:, :2] + 1)
        labels = torch.ones(len(boxes), dtype=torch.int64)
        found.append(Detections(boxes, labels, torch.rand(len(boxes), generator=generator)))
    assert average_precision(found, items, 1).ap50 == pytest.approx(plain_ap50(found, items), abs=1e-3)


@settings(max_examples=10)
@given(st.integers(0, 10_000))
def test_agrees_with_pycocotools(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    items = truth(6, 4, classes=3, seed=seed)
    found, annotations, results = [], [], []
    for image, item in enumerate(items, 1):
        for (x0, y0, x1, y1), label in zip(item.boxes.tolist(), item.labels.tolist(), strict=True):
            box = {"bbox": [x0, y0, x1 - x0, y1 - y0], "area": (x1 - x0) * (y1 - y0), "iscrowd": 0}
            annotations.append({"id": len(annotations) + 1, "image_id": image, "category_id": label, **box})
        boxes = (item.boxes + 5 * torch.randn(item.boxes.shape, generator=generator)).repeat(3, 1)
        boxes[:, 2:] = torch.maximum(boxes[:, 2:], boxes[:, :2] + 1)
        found.append(Detections(boxes, item.labels.repeat(3), torch.rand(len(boxes), generator=generator)))
        results += [
            {"image_id": image, "category_id": label, "bbox": [x0, y0, x1 - x0, y1 - y0], "score": confidence}
            for (x0, y0, x1, y1), label, confidence in zip(*map(torch.Tensor.tolist, found[-1][:3]), strict=True)
        ]
    reference = COCO()
    images = [{"id": image, "height": 100, "width": 100} for image in range(1, 7)]
    categories = [{"id": label, "name": str(label)} for label in (1, 2, 3)]
    content: Any = {"images": images, "annotations": annotations, "categories": categories}
    reference.dataset = content
    with contextlib.redirect_stdout(io.StringIO()):
        reference.createIndex()
        judged = COCOeval(reference, reference.loadRes(results), "bbox")
        judged.evaluate()
        judged.accumulate()
        judged.summarize()
    assert average_precision(found, items, 3)[:3] == pytest.approx(tuple(100 * judged.stats[:3]), abs=1e-3)
