"""Fine-tuning a segmenter."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

from PIL import Image
from torch import nn

from densecl.errors import UserError
from densecl.evaluation.fine_tuning import Learning
from densecl.evaluation.label_map import read_label_map
from densecl.evaluation.learn_pixels import BATCH_SIZE, STEPS, learn_pixels, score_segmenter, segment
from densecl.evaluation.splits import open_splits
from densecl.evaluation.tasks.task import Context
from densecl.evaluation.weights import USUAL_STRIDE, Weights
from densecl.finetuning.tuned import Tuned
from densecl.finetuning.tuning import Tuning, Validation, spread
from densecl.model.backbone import Backbone
from densecl.pictures.predictions import CELL, draw_beside, draw_labels


class Pixels(Tuning):
    usual_stride = USUAL_STRIDE
    steps = STEPS
    batch_size = BATCH_SIZE

    def open(self, context: Context) -> None:
        self.splits = open_splits(context)
        self.counts = len(self.splits.train), len(self.splits.test)
        names = self.settings.class_names or named(self.splits.names, self.splits.classes)
        if len(names) != self.splits.classes:
            raise UserError(f"--class-names gives {len(names)} names, but there are {self.splits.classes} classes.")
        self.classes = tuple(names)
        self.columns = ("miou", "pixel_accuracy")

    def fingerprint(self) -> str:
        digest = hashlib.sha256(repr(self.splits.size).encode())
        for files in (self.splits.train, self.splits.test):
            for image, label in files.pairs:
                digest.update(repr((image.name, label.name)).encode())
                digest.update(hashlib.sha256(label.read_bytes()).digest())
        return digest.hexdigest()

    def learning(self, backbone: Backbone, weights: Weights) -> Learning:
        self.splits.check_size(backbone)
        return learn_pixels(
            backbone,
            self.splits.train,
            classes=len(self.classes),
            normalization=weights.normalization,
            ignore=self.settings.ignore,
            steps=self.steps,
            batch_size=self.batch_size,
            seed=self.settings.seed,
        )

    def describe(self, weights: Weights) -> Tuned:
        stride = weights.backbone(self.settings.output_stride, usual=self.usual_stride).output_stride
        return Tuned(
            task="segmentation",
            network=self.network,
            classes=self.classes,
            backbone=weights.architecture,
            in_channels=weights.in_channels,
            output_stride=stride,
            mean=weights.normalization.mean,
            std=weights.normalization.std,
            image_size=self.splits.size,
        )

    def validate(self, model: nn.Module, tuned: Tuned) -> Validation:
        judged = score_segmenter(
            model,
            self.splits.test,
            classes=len(self.classes),
            normalization=tuned.normalization,
            ignore=self.settings.ignore,
            batch_size=self.batch_size,
        )
        return Validation(judged["all"].scores())

    def picture(self, model: nn.Module, tuned: Tuned) -> Image.Image:
        pairs = []
        test = self.splits.test
        for index in spread(len(test)):
            image, _ = test[index]
            (predicted,) = segment(model, [image], tuned.normalization)
            own = test.pairs[index][1]
            truth = read_label_map(own)
            pairs.append((draw_labels(image, truth, 2 * CELL), draw_labels(image, predicted, 2 * CELL)))
        caption = f"validation images after step {tuned.step}; {self.classes[0]} is dark"
        return draw_beside(pairs, ("truth", "predicted"), caption, self.classes[1:])


def named(names: Mapping[int, str], classes: int) -> tuple[str, ...]:
    """The name of each label from 0 on: what a file says, or the label. If names are equal, they are all the labels."""
    labels = tuple(map(str, range(classes)))
    said = tuple(names.get(label, labels[label]) for label in range(classes))
    return said if len(set(said)) == classes else labels
