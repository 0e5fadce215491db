"""What is fine-tuned for one task: its data, its network, and how it is validated. A task is a subclass."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import ClassVar, NamedTuple

from PIL import Image
from torch import nn

from densecl.evaluation.fine_tuning import Learning
from densecl.evaluation.tasks.task import Context
from densecl.evaluation.weights import Weights
from densecl.finetuning.settings import TuningSettings
from densecl.finetuning.tuned import Tuned
from densecl.model.backbone import Backbone

#: Validation images that are drawn.
DRAWN = 6


class Validation(NamedTuple):
    """How good a network is."""

    scores: Mapping[str, float]  # percent
    threshold: float | None = None  # of detections


class Tuning(ABC):
    """Opens the data when it is made, so that a mistake there is told before any work is done.

    Attributes:
        classes: names of all classes.
        counts: images to learn from and to validate on.
        columns: the scores of a validation that metrics.csv has. The first decides which weights are best.

    Raises:
        UserError: the data cannot be used, or a setting does not fit.
    """

    classes: tuple[str, ...]
    counts: tuple[int, int]
    columns: tuple[str, ...]

    #: The stride of the feature map when the user asks for none. None: the backbone's own.
    usual_stride: ClassVar[int | None]

    #: Steps, and images of a step.
    steps: int
    batch_size: int

    def __init__(self, context: Context, settings: TuningSettings, network: str) -> None:
        self.settings = settings
        self.network = network
        self.steps = settings.steps or self.steps
        self.batch_size = settings.batch_size or self.batch_size
        self.open(context)

    @abstractmethod
    def open(self, context: Context) -> None:
        """Open the data."""

    @abstractmethod
    def fingerprint(self) -> str:
        """Equal for the same names and labels of images in the same order, wherever their folder lies."""

    @abstractmethod
    def learning(self, backbone: Backbone, weights: Weights) -> Learning:
        """The network on a copy of the backbone, and how it learns."""

    @abstractmethod
    def describe(self, weights: Weights) -> Tuned:
        """What the network is, before it has learned."""

    @abstractmethod
    def validate(self, model: nn.Module, tuned: Tuned) -> Validation:
        """How good the network is on the validation images."""

    @abstractmethod
    def picture(self, model: nn.Module, tuned: Tuned) -> Image.Image:
        """Predictions on some validation images beside the truth."""


def spread(count: int, most: int = DRAWN) -> list[int]:
    """Indices of at most so many of `count` things, evenly spread."""
    number = min(count, most)
    return [place * count // number for place in range(number)]
