"""Fine-tuning a detector."""

from __future__ import annotations

import functools
import hashlib
import itertools
from pathlib import Path
from typing import cast

import torch
from PIL import Image
from torch import nn

from densecl.choices import Architecture
from densecl.errors import UserError, flag
from densecl.evaluation.average_precision import Detections, average_precision
from densecl.evaluation.boxed import Boxed
from densecl.evaluation.boxes.outlines import unpacked
from densecl.evaluation.fine_tuning import Learning
from densecl.evaluation.learn_boxes import BATCH_SIZE, LONGER_SIDE, STEPS, detect, detect_all, learn_boxes
from densecl.evaluation.tasks.detection import open_boxes
from densecl.evaluation.tasks.task import Context
from densecl.evaluation.weights import Weights
from densecl.finetuning.threshold import best_threshold
from densecl.finetuning.tuned import Tuned
from densecl.finetuning.tuning import Tuning, Validation, spread
from densecl.model.backbone import Backbone
from densecl.pictures.predictions import CELL, Marked, draw_beside, draw_objects

#: Average precision by the overlap of boxes, and of masks.
OF_BOXES = ("ap", "ap50", "ap75")
OF_MASKS = ("mask_ap", "mask_ap50", "mask_ap75")

#: What the chosen threshold comes to.
DECIDED = ("f1", "precision", "recall")


class Boxes(Tuning):
    usual_stride = None
    steps = STEPS
    batch_size = BATCH_SIZE

    def open(self, context: Context) -> None:
        for name in ("classes", "class_names", "ignore"):
            if getattr(self.settings, name):
                raise UserError(f"{flag(name)} is for label maps. Boxes come with the names of their classes.")
        self.train, self.test = open_boxes(context, outlines=self.network == "mask-rcnn")
        self.classes = self.train.names
        overlaps = (OF_BOXES, OF_MASKS) if self.network == "mask-rcnn" else (OF_BOXES,)
        self.columns = (*itertools.chain(*overlaps), *DECIDED, "threshold")
        self.counts = len(self.train), len(self.test)
        self.longer_side = max(self.settings.image_size) if self.settings.image_size else LONGER_SIDE

    def fingerprint(self) -> str:
        digest = hashlib.sha256()
        for files in (self.train, self.test):
            for item in files.items:
                digest.update(repr((Path(item.path).name, [(each.box, each.name) for each in item.objects])).encode())
        return digest.hexdigest()

    def learning(self, backbone: Backbone, weights: Weights) -> Learning:
        return learn_boxes(
            backbone,
            self.train,
            classes=len(self.classes),
            normalization=weights.normalization,
            fine_tune=True,
            longer_side=self.longer_side,
            steps=self.steps,
            batch_size=self.batch_size,
            seed=self.settings.seed,
            architecture=cast(Architecture, self.network),
        )

    def describe(self, weights: Weights) -> Tuned:
        return Tuned(
            task="detection",
            network=self.network,
            classes=self.classes,
            backbone=weights.architecture,
            in_channels=weights.in_channels,
            output_stride=self.settings.output_stride,
            mean=weights.normalization.mean,
            std=weights.normalization.std,
            image_size=(self.longer_side, self.longer_side),
        )

    def validate(self, model: nn.Module, tuned: Tuned) -> Validation:
        found = detect_all(model, self.test, self.longer_side, self.batch_size)
        by_box = average_precision(found, self._truth, len(self.classes))
        scores: dict[str, float] = dict(zip(OF_BOXES, (by_box.ap, by_box.ap50, by_box.ap75), strict=True))
        if self.network == "mask-rcnn":
            by_mask = average_precision(found, self._truth, len(self.classes), by_mask=True)
            scores |= dict(zip(OF_MASKS, (by_mask.ap, by_mask.ap50, by_mask.ap75), strict=True))
        threshold, *decided = best_threshold(found, self._truth)
        return Validation(scores | dict(zip(DECIDED, decided, strict=True)), threshold)

    @functools.cached_property
    def _truth(self) -> list[Boxed]:
        """The objects of the validation images, which have their size and take no memory."""
        empty = torch.zeros(1, 1, 1, dtype=torch.uint8)
        items = (self.test[index] for index in range(len(self.test)))
        return [item._replace(image=empty.expand(item.image.shape)) for item in items]

    def picture(self, model: nn.Module, tuned: Tuned) -> Image.Image:
        pairs = []
        threshold = tuned.threshold or 0.0
        for index in spread(len(self.test)):
            item = self.test[index]
            (found,) = detect(model, [item.image], self.longer_side, least_score=threshold)
            true = [
                Marked(tuple(box), label, self.classes[label - 1])
                for box, label in zip(item.boxes.tolist(), item.labels.tolist(), strict=True)
            ]
            predicted = marked(found, self.classes)
            pairs.append((draw_objects(item.image, true, 2 * CELL), draw_objects(item.image, predicted, 2 * CELL)))
        caption = f"validation images after step {tuned.step}; detections with a score of at least {threshold:.2f}"
        return draw_beside(pairs, ("truth", "predicted"), caption, self.classes)


def marked(found: Detections, classes: tuple[str, ...]) -> list[Marked]:
    """Detections, ready to be drawn; the best ones lie on top."""
    masks = [None] * len(found.scores) if found.masks is None else [unpacked(mask) for mask in found.masks]
    objects = [
        Marked(tuple(box), label, f"{classes[label - 1]} {score:.2f}", mask)
        for box, label, score, mask in zip(
            found.boxes.tolist(), found.labels.tolist(), found.scores.tolist(), masks, strict=True
        )
    ]
    return objects[::-1]
