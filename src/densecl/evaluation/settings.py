"""Every setting of an evaluation, and its default. Loads nothing heavy: the command line shows them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from densecl.errors import UserError, nearest

TASKS = ("correspondence", "retrieval", "segmentation", "clustering", "neighbors", "detection")

#: Tasks for which the backbone can be trained on the labels, too.
FINE_TUNED = ("segmentation", "detection")


#: The longest side of an image that is judged: a few times that of a photograph, and what a typing error goes beyond.
LONGEST_SIDE = 8192


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How weights are judged; the same for all of them.

    Raises:
        UserError: a value out of its range.
    """

    seeds: int = 3  # three show whether a difference is larger than the chance in it
    first_seed: int = 0  # the others follow it; to add some to those of an earlier evaluation
    image_size: tuple[int, int] | None = None  # (width, height)
    output_stride: int | None = None  # None: 16, where the backbone can; its own for detection
    train_split: str = "train"
    test_split: str | None = None  # None: "test", "val" or "valid", the first that there is
    classes: int | None = None  # None: as many as occur
    ignore: Sequence[int] = ()  # 255 always is
    also: Sequence[str] = ()
    label_fraction: float = 1.0
    images: int | None = None  # of those without labels for each pixel; None: 256 pairs, 2000 with classes
    batch_size: int | None = None  # None: 32 images where nothing is trained; else 16, of detection 8
    fine_tune: bool = False
    steps: int | None = None  # of training; None: 300, of detection 500
    learning_rate: float | None = None

    def __post_init__(self) -> None:
        for name, least in (
            ("seeds", 1),
            ("first_seed", 0),
            ("output_stride", 1),
            ("classes", 2),
            ("images", 1),
            ("batch_size", 1),
            ("steps", 1),
        ):
            value = getattr(self, name)
            if value is not None and value < least:
                raise UserError(f"--{name.replace('_', '-')} must be at least {least}, not {value}.")
        if self.classes is not None and self.classes > 255:
            raise UserError(f"--classes {self.classes}: labels are eight-bit, and 255 is for pixels without one.")
        if self.image_size is not None and min(self.image_size) < 1:
            raise UserError(f"--image-size {self.image_size[0]}x{self.image_size[1]} has no pixels.")
        if self.image_size is not None and max(self.image_size) > LONGEST_SIDE:
            raise UserError(f"--image-size {max(self.image_size)} is too large: at most {LONGEST_SIDE}.")
        if not 0 < self.label_fraction <= 1:
            raise UserError(f"--label-fraction must lie above 0 and not above 1, not {self.label_fraction:g}.")
        if self.learning_rate is not None and not 0 < self.learning_rate < math.inf:
            raise UserError(f"--learning-rate must be a number above 0, not {self.learning_rate:g}.")
        for label in self.ignore:
            if not 0 <= label <= 255:
                raise UserError(f"--ignore {label}: labels lie in 0..255.")


def check_tasks(tasks: tuple[str, ...], settings: Settings) -> None:
    """
    Raises:
        UserError: one of them is none, there are none, none of them can be fine-tuned and should be, or nothing is
            trained step by step and a setting of that is given.
    """
    if not tasks:
        raise UserError(f"Give a task: --task {', '.join(TASKS[:-1])} or {TASKS[-1]}.")
    for task in tasks:
        if task not in TASKS:
            raise UserError(f"--task takes {', '.join(TASKS[:-1])} or {TASKS[-1]}, not '{task}'.{nearest(task, TASKS)}")
    if settings.fine_tune and not set(tasks) & set(FINE_TUNED):
        raise UserError(f"--fine-tune is for {' and '.join(FINE_TUNED)}.")
    for name in ("steps", "learning_rate"):
        if getattr(settings, name) is not None and not settings.fine_tune and "detection" not in tasks:
            raise UserError(f"--{name.replace('_', '-')} is for detection and with --fine-tune.")
