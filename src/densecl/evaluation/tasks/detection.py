"""Detection: a Faster R-CNN on the backbone is trained, and scored by COCO's average precision."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import ClassVar

from densecl.borrowed import seeded
from densecl.errors import UserError
from densecl.evaluation.average_precision import AveragePrecision, average_precision
from densecl.evaluation.boxed import Boxed, BoxedFiles, open_boxed, share_classes
from densecl.evaluation.dense import device_of
from densecl.evaluation.fine_tuning import LEARNING_RATE, Descent, descend
from densecl.evaluation.learn_boxes import BATCH_SIZE, LONGER_SIDE, STEPS, detect_all, learn_boxes
from densecl.evaluation.results import ALL, Result
from densecl.evaluation.splits import draw_labeled
from densecl.evaluation.tasks.task import Context, Task, some_of
from densecl.evaluation.weights import Weights
from densecl.model.backbone import Backbone
from densecl.normalization import Normalization


class DetectionTask(Task):
    use = "a detector is trained on top"
    columns: ClassVar = {"ap": "AP", "ap50": "AP50", "ap75": "AP75"}
    usual_stride = None
    always_trained = True
    fine_tunes = True
    takes_label_fraction = True

    def open(self, context: Context) -> None:
        self.train, self.test = open_boxes(context)

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


def open_boxes(context: Context, *, outlines: bool = False) -> tuple[BoxedFiles, BoxedFiles]:
    """Open the split to learn from and the one to score on, with the same classes.

    Raises:
        UserError: one of them cannot be used (`open_boxed`).
    """
    splits = context.settings.train_split, context.settings.test_split
    train, test = share_classes(
        *(open_boxed(context.data, split, channels=context.channels, outlines=outlines) for split in splits)
    )
    if unlearnable := test.occurring() - train.occurring():
        context.note(f"no training image has a {some_of(unlearnable)}, so nothing can find it: it scores 0")
    return train, test


def detection(
    backbone: Backbone,
    train: Sequence[Boxed],
    test: Sequence[Boxed],
    *,
    classes: int,
    normalization: Normalization,
    fine_tune: bool = False,
    longer_side: int = LONGER_SIDE,
    steps: int = STEPS,
    batch_size: int = BATCH_SIZE,
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
    if not any(len(item.boxes) for item in test):
        raise UserError("There is no object to find.")
    with seeded(seed, device_of(backbone)):
        learning = learn_boxes(
            backbone,
            train,
            classes=classes,
            normalization=normalization,
            fine_tune=fine_tune,
            longer_side=longer_side,
            steps=steps,
            batch_size=batch_size,
            seed=seed,
        )
        descent = Descent(learning.model.parameters(), steps, learning.loss_at, learning_rate=learning_rate)
        descend(descent, title=title)
    return average_precision(detect_all(learning.model, test, longer_side, batch_size), test, classes)
