"""Every setting of an evaluation: its default, its range and its help. The command line is made from this class.

Loads nothing heavy.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from densecl.errors import UserError, flag

#: Images that go through a frozen backbone at a time, unless --batch-size is given.
BATCH_SIZE = 32

#: The longest side of an image that is judged. Photographs are smaller; whoever asks for more has mistyped.
LONGEST_SIDE = 8192


class Meaning(NamedTuple):
    """What is known of a setting beside its type and default."""

    group: str  # the heading in --help
    metavar: str | None
    help: str
    least: int | None  # of a whole number


def setting(default: Any, group: str, metavar: str | None, help: str, least: int | None = None) -> Any:
    """A field of a class of settings."""
    return dataclasses.field(default=default, metadata={"meaning": Meaning(group, metavar, help, least)})


_PROTOCOL, _LABELS, _TRAINING = "the protocol", "labeled data", "training on the labels"


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How weights are judged; the same for all of them.

    Raises:
        UserError: a value out of its range.
    """

    # Three show whether a difference is larger than chance.
    seeds: int = setting(3, _PROTOCOL, "N", "How many; scores are means over them (default: 3).", least=1)
    # To add seeds to those of an earlier evaluation.
    first_seed: int = setting(0, _PROTOCOL, "N", "The first of these; the others follow it (default: 0).", least=0)
    image_size: tuple[int, int] | None = setting(
        None,
        _PROTOCOL,
        "SIZE",
        "WIDTHxHEIGHT, or N for a square (default: the task's, or the images' own size, in whole cells).",
    )
    output_stride: int | None = setting(
        None,
        _PROTOCOL,
        "N",
        "Pixels per cell of the feature map (default: 16, or the backbone's own where it cannot be changed or the task"
        " says so).",
        least=1,
    )
    batch_size: int | None = setting(
        None,
        _PROTOCOL,
        "N",
        f"Images at a time (default: the task's, or {BATCH_SIZE}).",
        least=1,
    )
    images: int | None = setting(
        None, _PROTOCOL, "N", "How many are used, by the tasks that have a default for it.", least=1
    )
    train_split: str = setting(
        "train", _LABELS, "NAME", "Name, or a list file, of what is learned from (default: train)."
    )
    test_split: str | None = setting(
        None, _LABELS, "NAME", "... and of what is scored on (default: test, or else val or valid)."
    )
    classes: int | None = setting(None, _LABELS, "N", "Labels are 0 to N-1 (default: as many as occur).", least=2)
    ignore: Sequence[int] = setting((), _LABELS, "LABEL", "Labels of pixels that do not count; 255 never does.")
    also: Sequence[str] = setting(
        (),
        _LABELS,
        "PATTERN",
        "Score the test images whose file names match apart as well, such as 'Seq05V*'.",
    )
    label_fraction: float | Sequence[float] = setting(
        1.0,
        _LABELS,
        "X",
        "Use this fraction of the training images, drawn by the seed (default: 1). Several give a curve.",
    )
    fine_tune: bool = setting(
        False, _TRAINING, None, "Train the backbone, too, for the tasks that say so. It is frozen otherwise."
    )
    steps: int | None = setting(None, _TRAINING, "N", "Training steps (default: the task's).", least=1)
    learning_rate: float | None = setting(None, _TRAINING, "X", "AdamW's highest learning rate (default: 0.0005).")

    def __post_init__(self) -> None:
        check_least(self)
        if self.classes is not None and self.classes > 255:
            raise UserError(f"--classes {self.classes}: labels are eight-bit, and 255 is for pixels without one.")
        if self.image_size is not None and min(self.image_size) < 1:
            raise UserError(f"--image-size {self.image_size[0]}x{self.image_size[1]} has no pixels.")
        if self.image_size is not None and max(self.image_size) > LONGEST_SIDE:
            raise UserError(f"--image-size {max(self.image_size)} is too large: at most {LONGEST_SIDE}.")
        for fraction in self.label_fractions:
            if not 0 < fraction <= 1:
                raise UserError(f"--label-fraction must lie above 0 and not above 1, not {fraction:g}.")
        if not self.label_fractions:
            raise UserError("--label-fraction takes at least one number.")
        if len(self.label_fractions) == 1:  # one form for one fraction, in the file of results, too
            object.__setattr__(self, "label_fraction", self.label_fractions[0])
        if self.learning_rate is not None and not 0 < self.learning_rate < math.inf:
            raise UserError(f"--learning-rate must be a number above 0, not {self.learning_rate:g}.")
        for label in self.ignore:
            if not 0 <= label <= 255:
                raise UserError(f"--ignore {label}: labels lie in 0..255.")

    @property
    def all_seeds(self) -> range:
        return range(self.first_seed, self.first_seed + self.seeds)

    @property
    def label_fractions(self) -> tuple[float, ...]:
        given = self.label_fraction
        return tuple(dict.fromkeys(given)) if isinstance(given, Sequence) else (given,)

    def of_labels(self, fraction: float) -> str:
        """Which part of the labels is learned from, for a line of progress; nothing if there is only one."""
        return f" with {100 * fraction:g} % of the labels" if len(self.label_fractions) > 1 else ""

    def square(self, usual: int) -> int:
        """The side of the images, for a task that takes squares; `usual` unless a size was given.

        Raises:
            UserError: the given size is no square.
        """
        width, height = self.image_size or (usual, usual)
        if width != height:
            raise UserError(f"--image-size {width}x{height}: this task takes squares.")
        return width

    def training(self) -> dict[str, Any]:
        """The settings of training that were given. For the others each task has its own default."""
        given = {name: getattr(self, name) for name in ("steps", "batch_size", "learning_rate")}
        return {name: value for name, value in given.items() if value is not None}


def meaning_of(field: dataclasses.Field[Any]) -> Meaning:
    return field.metadata["meaning"]


def check_least(settings: Any) -> None:
    """
    Raises:
        UserError: a whole number of a class of settings below its least value.
    """
    for each in dataclasses.fields(settings):
        value, least = getattr(settings, each.name), meaning_of(each).least
        if least is not None and value is not None and value < least:
            raise UserError(f"{flag(each.name)} must be at least {least}, not {value}.")
