"""Detection: a Faster R-CNN on the backbone is trained, and scored by COCO's average precision."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from densecl.borrowed import copy_to_train, evaluating, seeded
from densecl.errors import UserError
from densecl.evaluation.average_precision import AveragePrecision, Detections, average_precision
from densecl.evaluation.boxed import Boxed, open_boxed, share_classes
from densecl.evaluation.dense import device_of
from densecl.evaluation.detector import build_detector
from densecl.evaluation.fine_tuning import LEARNING_RATE, descend, draw_batches
from densecl.evaluation.results import ALL, Result
from densecl.evaluation.splits import draw_labeled
from densecl.evaluation.tasks.task import Context, Task, some_of
from densecl.evaluation.weights import Weights
from densecl.images.crops import flip
from densecl.model.backbone import Backbone
from densecl.normalization import Normalization


class DetectionTask(Task):
    columns: ClassVar = {"ap": "AP", "ap50": "AP50", "ap75": "AP75"}
    usual_stride = None
    always_trained = True
    fine_tunes = True
    takes_label_fraction = True

    def open(self, context: Context) -> None:
        self.train, self.test = share_classes(
            open_boxed(context.data, self.settings.train_split, channels=context.channels),
            open_boxed(context.data, self.settings.test_split, channels=context.channels),
        )
        if unlearnable := self.test.occurring() - self.train.occurring():
            missing = f"no training image has a {some_of(unlearnable)}"
            context.note(f"{self.name}: {missing}, so nothing can find it: it scores 0")

    @property
    def class_names(self) -> Mapping[str, str]:
        return {f"ap_{label}": name for label, name in enumerate(self.train.names, start=1)}

    def judge(self, weights: Weights, backbone: Backbone, seeds: Sequence[int]) -> Iterator[Result]:
        settings = self.settings
        given = settings.training() | ({"longer_side": max(settings.image_size)} if settings.image_size else {})
        for seed, fraction in itertools.product(seeds, settings.label_fractions):
            scores = detection(
                backbone,
                self.train.take(draw_labeled(len(self.train), fraction, seed)),
                self.test,
                classes=len(self.train.names),
                normalization=weights.normalization,
                fine_tune=settings.fine_tune,
                seed=seed,
                title=f"{weights.name}, seed {seed}: {self.name}{settings.of_labels(fraction)}",
                **given,
            )
            yield Result(self.name, weights.name, seed, ALL, scores.scores(), label_fraction=fraction)


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
