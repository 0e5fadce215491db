"""The table of tasks. It loads nothing heavy, so that `densecl evaluate --help` can show it.

docs/architecture.md says how to add a task: one file and one row here.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from densecl.errors import UserError, nearest
from densecl.names import listing

if TYPE_CHECKING:
    from densecl.evaluation.tasks.task import Task


class Row(NamedTuple):
    """What the command line knows of a task before anything of it is loaded."""

    home: str  # "module:class"
    measures: str  # what it measures, in a line or two of help
    defaults: str = ""  # the defaults that differ from task to task
    labels_pixels: bool = False  # whether it needs a label for every pixel


TASKS = {
    "correspondence": Row(
        "densecl.evaluation.tasks.correspondence:CorrespondenceTask",
        "how many cells find the same place in another view of the image; needs no labels",
        "--images 256 --image-size 128",
    ),
    "structure": Row(
        "densecl.evaluation.tasks.structure:StructureTask",
        "how the cells of all images lie in feature space, and in how many directions; needs no labels",
        "--images 256 --image-size 128",
    ),
    "retrieval": Row(
        "densecl.evaluation.tasks.retrieval:RetrievalTask",
        "mIoU when each cell takes the labels of the most similar training cells; nothing is trained",
        labels_pixels=True,
    ),
    "segmentation": Row(
        "densecl.evaluation.tasks.segmentation:SegmentationTask",
        "mIoU of a linear classifier of cells; with --fine-tune a head and the backbone are trained together",
        "with --fine-tune --steps 300 --batch-size 16",
        labels_pixels=True,
    ),
    "clustering": Row(
        "densecl.evaluation.tasks.clustering:ClusteringTask",
        "mIoU when cells are clustered without labels and each cluster takes its most common class",
        labels_pixels=True,
    ),
    "knn": Row(
        "densecl.evaluation.tasks.knn:KnnTask",
        "accuracy of whole images' classes, voted on by the k nearest neighbors; nothing is trained",
        "--images 2000 --image-size 128",
    ),
    "detection": Row(
        "densecl.evaluation.tasks.detection:DetectionTask",
        "average precision of a Faster R-CNN on the frozen backbone; with --fine-tune the backbone is trained, too",
        "--image-size 320, for the longer side; --steps 500 --batch-size 8; the backbone's own stride",
    ),
}

#: Other names of tasks.
ALSO_CALLED = {"neighbors": "knn", "neighbours": "knn"}


def load(name: str) -> type[Task]:
    """The class of a task in the table."""
    module, _, kind = TASKS[name].home.partition(":")
    return getattr(importlib.import_module(module), kind)


def check_names(names: Sequence[str]) -> None:
    """
    Raises:
        UserError: there is no name, or one that is not in the table.
    """
    known = listing(TASKS)
    if not names:
        raise UserError(f"Give a task: --task {known}.")
    for name in names:
        if name not in TASKS:
            raise UserError(f"--task takes {known}, not '{name}'.{nearest(name, TASKS)}")
