"""The two splits of a data set with labels for every pixel: one to learn from, one to score on."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

import torch

from densecl.errors import UserError
from densecl.evaluation.class_names import names_of
from densecl.evaluation.labeled import VOID, LabeledFiles, check_classes, open_labeled
from densecl.evaluation.tasks.task import Context, some_of
from densecl.model.backbone import Backbone
from densecl.names import shown


class LabeledSplits(NamedTuple):
    """Labeled images to learn from and to score on, all resized to one size."""

    train: LabeledFiles
    test: LabeledFiles
    classes: int
    subsets: dict[str, frozenset[int]]  # of the test images
    size: tuple[int, int]  # (width, height)
    names: Mapping[int, str] = MappingProxyType({})  # of the labels, as far as they are known

    def check_size(self, backbone: Backbone) -> None:
        """
        Raises:
            UserError: the backbone does not take images of this size.
        """
        width, height = self.size
        try:
            backbone.grid_at(height, width)
        except UserError as error:
            raise UserError(f"{error} Give --image-size.") from error


def open_splits(context: Context) -> LabeledSplits:
    """Open both splits, and check every label map.

    Raises:
        UserError: they cannot be used, or no test image has a name that --also asks for.
    """
    settings = context.settings
    train = open_labeled(context.data, settings.train_split, channels=context.channels)
    test = open_labeled(context.data, settings.test_split, channels=context.channels)
    subsets = {}
    for pattern in settings.also:
        subsets[pattern] = frozenset(test.matching(pattern))
        if not subsets[pattern]:
            raise UserError(
                f"--also {pattern}: no test image is called so; the first is {shown(test.pairs[0][0].name)}."
            )
    size = settings.image_size
    if size is None:
        # Whole cells, because the upsampling would misplace a map whose last cells hang over the edge.
        width, height = LabeledFiles((*train.pairs, *test.pairs), channels=context.channels).common_size()
        stride = context.stride()
        size = max(stride, width // stride * stride), max(stride, height // stride * stride)
    surveys = train.survey(), test.survey()
    for survey, purpose in zip(surveys, ("to learn from", "to score on"), strict=True):
        check_classes(survey, purpose, ignore=settings.ignore, classes=settings.classes)
    learned, scored = (set(survey) - {VOID, *settings.ignore} for survey in surveys)
    if scored - learned:
        context.note(
            f"no training image has the label {some_of(scored - learned)}, so nothing can find it: it scores 0"
        )
    classes = settings.classes or 1 + max(learned | scored)
    return LabeledSplits(train.resized(size), test.resized(size), classes, subsets, size, names_of(context.data))


def draw_labeled(count: int, fraction: float, seed: int) -> list[int]:
    """Indices of the training images whose labels are used: a fraction of them, at least one."""
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    return sorted(order[: max(1, round(fraction * count))].tolist())
