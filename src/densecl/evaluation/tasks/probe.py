"""Tasks on the frozen feature maps of labeled images. However many are asked for, the images are gone over once."""

from __future__ import annotations

import functools
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import ClassVar

from densecl.evaluation.dense import Classify, Fit, LabeledMaps, judge
from densecl.evaluation.results import Result
from densecl.evaluation.settings import BATCH_SIZE
from densecl.evaluation.splits import LabeledSplits, draw_labeled, open_splits
from densecl.evaluation.tasks.task import Context, Pass, Task
from densecl.evaluation.weights import Weights
from densecl.model.backbone import Backbone


class ProbeTask(Task):
    """A task that learns from the feature maps of the training images to label the pixels of the test images."""

    columns: ClassVar = {"miou": "mIoU", "pixel_accuracy": "pixel\naccuracy"}
    takes_label_fraction = True

    @abstractmethod
    def fit(self, train: LabeledMaps, classes: int, seed: int) -> Classify:
        """Learn from feature maps and their labels.

        Returns:
            What scores each class in each cell of other feature maps.
        """

    def is_drawn(self, cells: int) -> bool:
        """Whether the scores depend on the seed when there are so many training cells and all of them are used."""
        return False

    def open(self, context: Context) -> None:
        self.splits = context.once(open_splits)
        self._shared = context.once(ProbePass)
        self._shared.probes.append(self)

    @property
    def scored_by(self) -> Pass:
        return self._shared

    @property
    def class_names(self) -> Mapping[str, str]:
        names = self.splits.names
        return {f"iou_{label}": names.get(label, str(label)) for label in range(self.splits.classes)}

    @property
    def title(self) -> str:
        return f"{super().title}, labels 0 to {self.splits.classes - 1}"

    def judge(self, weights: Weights, backbone: Backbone, seeds: Sequence[int]) -> Iterator[Result]:
        return self._shared.judge(weights, backbone, seeds)


class ProbePass(Pass):
    """One pass over the training images and one over the test images, for all probes together."""

    def __init__(self, context: Context) -> None:
        self.settings = context.settings
        self.splits: LabeledSplits = context.once(open_splits)
        self.probes: list[ProbeTask] = []

    def judge(self, weights: Weights, backbone: Backbone, seeds: Sequence[int]) -> Iterator[Result]:
        settings, splits = self.settings, self.splits
        splits.check_size(backbone)
        drawn = {
            (seed, fraction): draw_labeled(len(splits.train), fraction, seed)
            for seed in seeds
            for fraction in settings.label_fractions
        }
        used = sorted(set().union(*drawn.values()))
        place = {index: position for position, index in enumerate(used)}
        rows, cols = (-(-side // backbone.stride) for side in reversed(splits.size))
        fits: dict[tuple[str, int, float], Fit] = {}
        fixed = set()  # keys of those that no seed changes: their images say how sure a difference is
        for probe in self.probes:
            for (seed, fraction), chosen in drawn.items():
                by_seed = fraction < 1 or probe.is_drawn(len(chosen) * rows * cols)
                if seed == seeds[0] or by_seed:
                    images = [place[index] for index in chosen]
                    fits[probe.name, seed, fraction] = functools.partial(_fit, probe, images, seed)
                if not by_seed and not weights.random:
                    fixed.add((probe.name, seed, fraction))
        judged = judge(
            backbone,
            splits.train.take(used),
            splits.test,
            fits,
            classes=splits.classes,
            normalization=weights.normalization,
            ignore=settings.ignore,
            subsets=splits.subsets,
            by_image=fixed & fits.keys(),
            batch_size=settings.batch_size or BATCH_SIZE,
            title=f"{weights.name}: features of",
        )
        for (task, seed, fraction), by_subset in judged.items():
            for subset, found in by_subset.items():
                yield Result(
                    task,
                    weights.name,
                    seed,
                    subset,
                    found.scores(),
                    label_fraction=fraction,
                    by_image=found.by_image,
                    floor=found.floor,
                )


def _fit(probe: ProbeTask, images: Sequence[int], seed: int, train: LabeledMaps, classes: int) -> Classify:
    some = train if len(images) == len(train.labels) else train.take(images)
    return probe.fit(some, classes, seed)
