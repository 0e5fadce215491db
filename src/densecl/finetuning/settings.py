"""Every setting of `finetune` and of `predict`: its default, its range and its help.

Loads nothing heavy, because the command line is made from these classes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import get_args

from densecl.choices import Architecture
from densecl.errors import UserError, nearest
from densecl.evaluation.settings import Settings, check_least, setting
from densecl.names import listing

#: What is learned -> the networks for it. The first is the usual one.
ARCHITECTURES: dict[str, tuple[str, ...]] = {"detection": get_args(Architecture), "segmentation": ("fcn",)}

#: What is validated on, unless it is named: the first of these splits that there is.
VALIDATION_SPLITS = ("val", "valid", "test")

_NETWORK, _LABELS, _TRAINING, _KEPT = "the network", "labeled data", "training", "what is kept"


@dataclass(frozen=True, kw_only=True)
class TuningSettings:
    """How a network is fine-tuned. The defaults are those of `evaluate --fine-tune`.

    Raises:
        UserError: a value out of its range.
    """

    architecture: str | None = setting(
        None,
        _NETWORK,
        "NAME",
        "For detection: faster-rcnn (default), retinanet, or mask-rcnn, which needs outlines of the objects. For"
        " segmentation: fcn, two convolutions on the last feature map.",
    )
    image_size: tuple[int, int] | None = setting(
        None,
        _NETWORK,
        "SIZE",
        "N or WIDTHxHEIGHT. For detection the longer side (default: 320). For segmentation all images are resized to"
        " it (default: their own size, in whole cells).",
    )
    output_stride: int | None = setting(
        None,
        _NETWORK,
        "N",
        "Pixels per cell of the last feature map (default: 16 for segmentation where the backbone can, else its own).",
        least=1,
    )
    train_split: str = setting(
        "train", _LABELS, "NAME", "Name, or a list file, of what is learned from (default: train)."
    )
    val_split: str | None = setting(
        None, _LABELS, "NAME", "... and of what is validated on (default: val, or else valid or test)."
    )
    classes: int | None = setting(None, _LABELS, "N", "Labels are 0 to N-1 (default: as many as occur).", least=2)
    class_names: Sequence[str] = setting(
        (),
        _LABELS,
        "NAME",
        "Of the labels 0, 1, ... of label maps (default: those of classes.txt and the like). Boxes come with names.",
    )
    ignore: Sequence[int] = setting((), _LABELS, "LABEL", "Labels of pixels that do not count; 255 never does.")
    steps: int | None = setting(
        None, _TRAINING, "N", "Training steps (default: 500 for detection, 300 for segmentation).", least=1
    )
    batch_size: int | None = setting(
        None, _TRAINING, "N", "Images of a step (default: 8 for detection, 16 for segmentation).", least=1
    )
    learning_rate: float | None = setting(None, _TRAINING, "X", "AdamW's highest learning rate (default: 0.0005).")
    seed: int = setting(
        0, _TRAINING, "N", "Fixes the new layers, the order of the images, crops and flips (default: 0).", least=0
    )
    validate_every: int | None = setting(
        None, _KEPT, "N", "Steps between validations, of which the best weights are kept (default: a fifth of all).",
        least=1,
    )  # fmt: skip
    log_every: int = setting(10, _KEPT, "N", "Steps between rows of metrics.csv (default: 10).", least=1)
    checkpoint_every: int = setting(100, _KEPT, "N", "Steps between checkpoints (default: 100).", least=1)
    # In the time that a checkpoint takes, nothing is lost that took longer than this to compute.
    checkpoint_minutes: float = setting(10.0, _KEPT, "X", "... or minutes, whichever comes first (default: 10).")

    def __post_init__(self) -> None:
        check_least(self)
        if not 0 < self.checkpoint_minutes < math.inf:
            raise UserError(f"--checkpoint-minutes must be a number above 0, not {self.checkpoint_minutes:g}.")
        for name in ("class_names", "ignore"):  # one form, in the file of settings, too
            object.__setattr__(self, name, tuple(getattr(self, name)))
        if self.image_size is not None:
            object.__setattr__(self, "image_size", tuple(self.image_size))
        if len(set(self.class_names)) < len(self.class_names):
            raise UserError("--class-names has a name twice.")
        if self.class_names and self.classes not in (None, len(self.class_names)):
            raise UserError(f"--class-names gives {len(self.class_names)} names, but --classes is {self.classes}.")
        self.for_evaluation("val")  # checks what both have

    def for_evaluation(self, val_split: str) -> Settings:
        """The settings of `evaluate --fine-tune` that train and score the same."""
        return Settings(
            seeds=1,
            first_seed=self.seed,
            image_size=self.image_size,
            output_stride=self.output_stride,
            batch_size=self.batch_size,
            train_split=self.train_split,
            test_split=val_split,
            classes=self.classes or (len(self.class_names) or None),
            ignore=self.ignore,
            fine_tune=True,
            steps=self.steps,
            learning_rate=self.learning_rate,
        )


#: Settings that do not bear on what is learned. A resumed run may have others.
FREE = ("log_every", "checkpoint_every", "checkpoint_minutes")


@dataclass(frozen=True, kw_only=True)
class PredictSettings:
    """How a fine-tuned network is applied.

    Raises:
        UserError: a value out of its range.
    """

    threshold: float | None = setting(
        None,
        "what is found",
        "X",
        "Detections with a lower score are left out (default: the threshold of the best F1 in validation).",
    )
    image_size: tuple[int, int] | None = setting(
        None, "what is found", "SIZE", "N or WIDTHxHEIGHT that images are resized to (default: as in training)."
    )
    batch_size: int = setting(8, "the machine", "N", "Images at a time (default: 8).", least=1)
    pictures: int = setting(100, "what is written", "N", "Images that are drawn (default: the first 100).", least=0)

    def __post_init__(self) -> None:
        check_least(self)
        if self.threshold is not None and not 0 <= self.threshold <= 1:
            raise UserError(f"--threshold must lie in 0..1, not {self.threshold:g}.")
        Settings(image_size=self.image_size)  # checks its range


def settled_architecture(task: str, architecture: str | None) -> str:
    """The network for a task.

    Raises:
        UserError: there is no such task, or no such network for it.
    """
    if task not in ARCHITECTURES:
        raise UserError(f"--task takes {listing(ARCHITECTURES)}, not '{task}'.{nearest(task, ARCHITECTURES)}")
    known = ARCHITECTURES[task]
    if architecture is not None and architecture not in known:
        raise UserError(
            f"--architecture takes {listing(known)} for {task}, not '{architecture}'.{nearest(architecture, known)}"
        )
    return architecture or known[0]
