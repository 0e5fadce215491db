from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import densecl.evaluation.learn_boxes
from densecl.evaluation.average_precision import Detections, average_precision
from densecl.evaluation.boxed import Boxed
from densecl.evaluation.boxes.annotated import complaint
from densecl.evaluation.boxes.outlines import packed, read_outline
from densecl.evaluation.learn_boxes import learn_boxes
from densecl.model.backbone import Backbone
from densecl.normalization import Normalization


def item(box: tuple[int, int, int, int], width: int = 100, height: int = 37) -> Boxed:
    """A bright rectangle, its box and its outline."""
    x0, y0, x1, y1 = box
    image = torch.zeros(3, height, width, dtype=torch.uint8)
    image[:, y0:y1, x0:x1] = 255
    corners: Any = [[x0, y0, x1, y0, x1, y1, x0, y1]]
    outline = read_outline(corners, (width, height), functools.partial(complaint, "here"))
    assert outline is not None
    return Boxed(image, torch.tensor([box]).float(), torch.tensor([1]), (outline,))


class Watching(nn.Module):
    """Keeps what it is given to learn from."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))
        self.given: list[tuple[Tensor, dict[str, Tensor]]] = []

    def forward(self, images: list[Tensor], targets: list[dict[str, Tensor]]) -> dict[str, Tensor]:
        self.given += zip(images, targets, strict=True)
        return {"loss": self.weight * 1}


def test_boxes_and_masks_follow_the_image(monkeypatch: pytest.MonkeyPatch) -> None:
    watching = Watching()
    monkeypatch.setattr(densecl.evaluation.learn_boxes, "build_detector", lambda *_: watching)
    train = [item((8, 4, 40, 20)), item((50, 10, 90, 37))]
    learning = learn_boxes(
        Backbone(nn.Conv2d(3, 4, 4, 4)),
        train,
        classes=1,
        normalization=Normalization((0.5,) * 3, (0.5,) * 3),
        fine_tune=True,
        longer_side=50,
        steps=8,
        batch_size=2,
        architecture="mask-rcnn",
    )
    for step in range(8):
        learning.loss_at(step)
    lefts = set()
    for image, target in watching.given:
        bright = (image[0] > 0.5).nonzero()
        mask = target["masks"][0].nonzero()
        (y0, x0), (y1, x1) = bright.min(dim=0).values.tolist(), (bright.max(dim=0).values + 1).tolist()
        assert target["boxes"][0].tolist() == pytest.approx([x0, y0, x1, y1], abs=1)
        assert mask.min(dim=0).values.tolist() == pytest.approx([y0, x0], abs=1)
        assert (mask.max(dim=0).values + 1).tolist() == pytest.approx([y1, x1], abs=1)
        lefts.add(round(float(target["boxes"][0, 0])))
    assert lefts == {4, 30, 25, 5}  # each of them mirrored sometimes


def test_precision_by_masks() -> None:
    truth = [item((8, 4, 40, 20)), item((50, 10, 90, 37))]

    def found(by: int) -> list[Detections]:
        """The boxes as they are, with masks that are shifted."""
        masks = [each.outlines[0].draw(100, 37).roll(by, dims=1) for each in truth]
        return [
            Detections(each.boxes, each.labels, torch.ones(1), (packed(mask),))
            for each, mask in zip(truth, masks, strict=True)
        ]

    assert average_precision(found(0), truth, 1, by_mask=True)[:3] == pytest.approx((100, 100, 100))
    shifted = average_precision(found(7), truth, 1, by_mask=True)  # overlaps of 0.64 and 0.70
    assert shifted.ap50 == pytest.approx(100) and shifted.ap75 == pytest.approx(0)
    assert average_precision(found(7), truth, 1)[:3] == pytest.approx((100, 100, 100))
