from __future__ import annotations

import contextlib
import io
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from torch import Tensor, nn
from torchvision.ops import box_iou

import densecl.evaluation.tasks.detection
from densecl.errors import UserError
from densecl.evaluation.boxed import Boxed
from densecl.evaluation.compare import evaluate
from densecl.evaluation.tasks.detection import Detections, Pyramid, average_precision, detection
from densecl.model.backbone import Backbone, create_backbone
from densecl.normalization import Normalization
from tests.evaluation.squares import squares, write_coco
from tests.frozen import WatchedNorm, frozen_norm, modes

STANDARD = {"normalization": Normalization((0.5, 0.5, 0.5), (0.25, 0.25, 0.25))}


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
    assert average_precision([detected(item) for item in items], items, 3) == pytest.approx((100, 100, 100))
    assert average_precision([detected(item, slice(0)) for item in items], items, 3) == (0, 0, 0)
    elsewhere = [detected(item)._replace(boxes=item.boxes + 200) for item in items]
    assert average_precision(elsewhere, items, 3) == pytest.approx((0, 0, 0))


def test_half_found_scores_what_was_planted() -> None:
    # Of two objects an image one is found, precisely: precision 1 at the recalls 0, 0.01, ... 0.5, and 0 beyond.
    items = truth(6, 2)
    found = average_precision([detected(item, slice(1)) for item in items], items, 1)
    assert found == pytest.approx((100 * 51 / 101,) * 3)


def test_boxes_that_are_a_little_off() -> None:
    # Three quarters of each box: an overlap of 0.75, right at 0.5 to 0.75 (six of the ten) and wrong above.
    items = [item._replace(boxes=torch.tensor([[8.0, 8, 48, 40]])) for item in truth(3, 1)]
    shorter = [detected(item)._replace(boxes=torch.tensor([[8.0, 8, 38, 40]])) for item in items]
    assert average_precision(shorter, items, 1) == pytest.approx((60, 100, 100))


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
            for (x0, y0, x1, y1), label, confidence in zip(*map(torch.Tensor.tolist, found[-1]), strict=True)
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
    assert average_precision(found, items, 3) == pytest.approx(tuple(100 * judged.stats[:3]), abs=1e-3)


@pytest.fixture
def small_head(monkeypatch: pytest.MonkeyPatch) -> None:
    """A tenth of the time."""
    for name, value in {"PYRAMID_CHANNELS": 32, "HEAD_CHANNELS": 64, "SAMPLED_PROPOSALS": 32, "PROPOSALS": 50}.items():
        monkeypatch.setattr(densecl.evaluation.tasks.detection, name, value)


@pytest.mark.usefixtures("small_head")
def test_squares_are_learned() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        backbone = create_backbone("resnet10t")
    before = {name: tensor.clone() for name, tensor in backbone.state_dict().items()}
    common: dict[str, Any] = {"classes": 2, "longer_side": 64, "batch_size": 4, "learning_rate": 3e-3, **STANDARD}
    tuned = detection(backbone, squares(24, 0), squares(8, 1), fine_tune=True, steps=40, **common)
    assert tuned.ap50 > 40
    frozen = detection(backbone, squares(24, 0), squares(8, 1), steps=40, **common)
    assert frozen.ap50 > 20
    one, same, other = (
        detection(backbone, squares(6, 0), squares(2, 1), steps=1, seed=seed, **common) for seed in (0, 0, 1)
    )
    assert one == same and other.ap50 < 20
    assert all(torch.equal(tensor, before[name]) for name, tensor in backbone.state_dict().items())


@pytest.mark.parametrize(
    ("name", "strides"),
    [("resnet10t", [4, 8, 16, 32]), ("vit_tiny_patch16_224", [16]), ("convnext_atto", [4, 8, 16, 32])],
)
def test_the_pyramid_of_any_backbone(name: str, strides: list[int]) -> None:
    frozen = Pyramid(create_backbone(name), fine_tune=False).train()
    assert frozen.strides == strides
    assert frozen.training and not frozen.backbone.training
    assert not any(parameter.requires_grad for parameter in frozen.backbone.parameters())
    maps = frozen(torch.zeros(2, 3, 64, 96))
    assert [tuple(some.shape[2:]) for some in maps.values()][:-1] == [(64 // s, 96 // s) for s in strides]
    assert Pyramid(create_backbone(name), fine_tune=True).train().backbone.training


@pytest.mark.usefixtures("small_head")
def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_coco(tmp_path)
    path = tmp_path / "annotations/instances_val.json"  # has a class that training lacks, and lacks one that it has
    path.write_text(path.read_text().replace("green", "blue"))
    settings = {"image_size": (64, 64), "steps": 1, "batch_size": 2, "seeds": 1, "backbone": "resnet10t", "json": None}
    before = torch.get_rng_state()
    (found,) = evaluate(["random"], "detection", tmp_path, **settings)
    assert torch.equal(torch.get_rng_state(), before)
    assert set(found.scores) == {"ap", "ap50", "ap75"} and 0 <= found.scores["ap"] <= found.scores["ap50"] <= 100
    assert "no training image has a blue, so nothing can find it" in capsys.readouterr().err


@pytest.mark.usefixtures("small_head")
def test_a_backbone_of_one_size_alone() -> None:
    class OneSize(nn.Conv2d):
        def forward(self, pixels: Tensor) -> Tensor:
            assert pixels.shape[2:] == (128, 128)
            return super().forward(pixels)

    common: dict[str, Any] = {"classes": 2, "steps": 1, "batch_size": 2, **STANDARD}
    backbone = Backbone(OneSize(3, 8, 8, stride=8))
    detection(backbone, squares(2, 0), squares(1, 1), longer_side=128, **common)
    with pytest.raises(UserError, match="OneSize does not take images of 64x64 px, but of 128x128 px"):
        detection(backbone, squares(2, 0), squares(1, 1), longer_side=64, **common)


def test_nothing_to_learn_from() -> None:
    empty = [item._replace(boxes=item.boxes[:0], labels=item.labels[:0]) for item in squares(2, 0)]
    with pytest.raises(UserError, match="no object to learn from"):
        detection(create_backbone("resnet10t"), empty, squares(2, 0), classes=2, **STANDARD)


@pytest.mark.usefixtures("small_head")
@pytest.mark.parametrize("fine_tune", [True, False])
def test_batch_norm_that_its_owner_froze_stays_frozen(fine_tune: bool) -> None:
    backbone = Backbone(frozen_norm())
    before = modes(backbone)
    detection(
        backbone, squares(2, 0), squares(1, 1), classes=2, steps=1, batch_size=2, fine_tune=fine_tune, longer_side=64,
        **STANDARD,
    )  # fmt: skip
    assert modes(backbone) == before and not WatchedNorm.trained
