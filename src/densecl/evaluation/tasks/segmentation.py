"""Segmentation: a linear classifier of cells on the frozen backbone, or with --fine-tune a head and the backbone."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterator, Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from densecl.borrowed import seeded
from densecl.errors import UserError
from densecl.evaluation.dense import (
    Classify,
    Labeled,
    LabeledMaps,
    Segmentation,
    device_of,
    upsample,
)
from densecl.evaluation.fine_tuning import LEARNING_RATE, Descent, descend
from densecl.evaluation.labeled import VOID
from densecl.evaluation.learn_pixels import BATCH_SIZE, STEPS, learn_pixels, score_segmenter
from densecl.evaluation.results import Result
from densecl.evaluation.splits import draw_labeled, open_splits
from densecl.evaluation.tasks.probe import ProbeTask
from densecl.evaluation.tasks.task import Context, Pass
from densecl.evaluation.weights import Weights
from densecl.model.backbone import Backbone
from densecl.normalization import Normalization

#: The linear classifier is fitted to this many rows and columns of pixels in each cell, because upsampled logits hardly
#: change between them. Twice as many gave the same mIoU to 0.3 on CamVid and to 0.1 on drawn scenes.
PIXELS_PER_CELL = 2

#: Weight of the squared weights, on standardized features: enough to make the optimum unique.
RIDGE = 1e-4


class SegmentationTask(ProbeTask):
    fine_tunes = True

    @property
    def use(self) -> str:  # pyright: ignore[reportIncompatibleVariableOverride]
        if self.fine_tuned:
            return "the backbone is trained further with a head, as for a segmenter of your own"
        return "a classifier is trained on top, as for a segmenter"

    def open(self, context: Context) -> None:
        if self.fine_tuned:  # a pass of its own, because every step needs other features
            self.splits = context.once(open_splits)
        else:
            super().open(context)

    @property
    def scored_by(self) -> Pass:
        return self if self.fine_tuned else super().scored_by

    def fit(self, train: LabeledMaps, classes: int, seed: int) -> Classify:
        return fit_linear(train, classes)

    def judge(self, weights: Weights, backbone: Backbone, seeds: Sequence[int]) -> Iterator[Result]:
        splits = self.splits
        splits.check_size(backbone)
        for seed, fraction in itertools.product(seeds, self.settings.label_fractions):
            found = fine_tuned_segmentation(
                backbone,
                splits.train.take(draw_labeled(len(splits.train), fraction, seed)),
                splits.test,
                classes=splits.classes,
                normalization=weights.normalization,
                ignore=self.settings.ignore,
                subsets=splits.subsets,
                seed=seed,
                title=f"{weights.name}, seed {seed}: {self.name}{self.settings.of_labels(fraction)}",
                **self.settings.training(),
            )
            for subset, segmentation in found.items():
                yield Result(
                    self.name,
                    weights.name,
                    seed,
                    subset,
                    segmentation.scores(),
                    label_fraction=fraction,
                    floor=segmentation.floor,
                )


# --- on the frozen backbone -----------------------------------------------------------------------------------------


def fit_linear(train: LabeledMaps, classes: int, iterations: int = 40) -> Classify:
    """The 1x1 convolution whose upsampled logits have the least cross-entropy.

    Features are standardized by the training set's statistics. The convolution is fitted by L-BFGS from zero, with at
    most so many `iterations`. The problem is convex, so nothing is random and there is no learning rate to tune. L-BFGS
    sees whitened features, because it then needs far fewer steps to the same optimum: on CamVid 30 iterations with
    whitening are ahead of 300 without.
    """
    rows, cols = train.features.shape[2:]
    step = max(1, train.labels.shape[1] // (rows * PIXELS_PER_CELL))
    labels = train.labels[:, step // 2 :: step, step // 2 :: step].long()
    if (labels == VOID).all():
        raise UserError("The training set has no labeled pixel to learn from.")
    cells = train.features.permute(0, 2, 3, 1).flatten(0, 2)
    location = cells.mean(dim=0)
    deviation = cells.std(dim=0, correction=0)
    # A channel that is constant over the training set says nothing. It becomes 0 instead of 0/0.
    precision = torch.where(deviation > 1e-6, 1 / deviation, 0)
    cells = (cells - location) * precision
    variance, axes = torch.linalg.eigh((cells.T @ cells / len(cells)).double())
    whiten = (axes * (variance.clamp(min=0) + RIDGE).rsqrt()).float()  # channels x axes
    cells = cells @ whiten

    weight = torch.zeros(classes, len(location), device=cells.device, requires_grad=True)
    bias = torch.zeros(classes, device=cells.device, requires_grad=True)
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=iterations, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        logits = F.linear(cells, weight, bias).reshape(-1, rows, cols, classes).permute(0, 3, 1, 2)
        logits = upsample(logits, labels.shape[1], labels.shape[2])
        ridge = RIDGE * (weight @ whiten.T).square().sum()
        loss = F.cross_entropy(logits, labels, ignore_index=VOID) + ridge
        loss.backward()
        return loss

    with torch.enable_grad():
        optimizer.step(closure)
    final = (weight.detach() @ whiten.T * precision)[:, :, None, None]
    return lambda features: F.conv2d(features - location[:, None, None], final, bias.detach())


# --- with the backbone trained, too ----------------------------------------------------------------------------------


def fine_tuned_segmentation(
    backbone: Backbone,
    train: Sequence[Labeled],
    test: Sequence[Labeled],
    *,
    classes: int,
    normalization: Normalization,
    ignore: Collection[int] = (),
    subsets: Mapping[str, Collection[int]] | None = None,
    steps: int = STEPS,
    batch_size: int = BATCH_SIZE,
    learning_rate: float = LEARNING_RATE,
    seed: int = 0,
    title: str | None = None,
) -> dict[str, Segmentation]:
    """Train a copy of the backbone and a head of two convolutions together on `train`, and score them on `test`.

    Training images are kept in memory, and cropped and flipped anew in each step. Batch norm trains.

    Args:
        backbone: it is left as it was.
        train: images and label maps, all of one size.
        test: the same, of any one size.
        classes: number of classes; labels are 0 to classes - 1.
        normalization: the one that the backbone was trained with.
        ignore: labels of pixels that count neither in training nor in the score. 255 is always one of them.
        subsets: names and indices of parts of `test` that also get a score of their own.
        steps: number of training steps.
        batch_size: images of a step.
        learning_rate: the highest one of the schedule.
        seed: fixes the head, the order of the images, crops and flips.
        title: shown with the progress on stderr. None: no progress is shown.

    Returns:
        The scores on "all" of `test` and on each of the subsets.

    Raises:
        UserError: an empty set, images of different sizes, a label that is neither a class nor ignored.
    """
    if len(train) == 0 or len(test) == 0:
        raise UserError("There are no labeled images to learn from or none to score on.")
    with seeded(seed, device_of(backbone)):  # fixes the new head and the backbone's dropout
        learning = learn_pixels(
            backbone,
            train,
            classes=classes,
            normalization=normalization,
            ignore=ignore,
            steps=steps,
            batch_size=batch_size,
            seed=seed,
        )
        descent = Descent(learning.model.parameters(), steps, learning.loss_at, learning_rate=learning_rate)
        descend(descent, title=title)
    return score_segmenter(
        learning.model,
        test,
        classes=classes,
        normalization=normalization,
        ignore=ignore,
        subsets=subsets,
        batch_size=batch_size,
    )
