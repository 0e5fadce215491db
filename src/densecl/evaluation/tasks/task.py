"""What a task is, and what it is given to open its data. docs/architecture.md says how to add one."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from densecl.evaluation.results import Result
from densecl.evaluation.settings import Settings
from densecl.evaluation.weights import USUAL_STRIDE, Weights
from densecl.model.backbone import Backbone
from densecl.names import shown

Made = TypeVar("Made")

#: Class names that a message lists; more of them are counted.
NAMED = 5


@dataclass(frozen=True)
class Context:
    """What the tasks of one call of `evaluate` have in common."""

    data: Path
    settings: Settings
    weights: Sequence[Weights]  # all of them take the same number of channels
    note: Callable[[str], None]  # tells the user something about the data
    _made: dict[Callable[[Context], Any], Any] = field(default_factory=dict)

    @property
    def channels(self) -> int:
        """Channels of the images."""
        return self.weights[0].in_channels

    def stride(self) -> int:
        """Pixels per cell of the feature maps that are judged."""
        return self.weights[0].backbone(self.settings.output_stride).stride

    def once(self, make: Callable[[Context], Made]) -> Made:
        """What `make` returns for this context. It is called once, however many tasks ask for it."""
        if make not in self._made:
            self._made[make] = make(self)
        return self._made[make]


class Pass(ABC):
    """One way through the data. It scores one task, or several that share the features."""

    #: The stride of the feature maps when the user asks for none. None: the backbone's own.
    usual_stride: ClassVar[int | None] = USUAL_STRIDE

    @property
    def trained(self) -> bool:
        """Whether something is trained step by step. Seeds then share nothing, and each is reported when it is done."""
        return False

    @abstractmethod
    def judge(self, weights: Weights, backbone: Backbone, seeds: Sequence[int]) -> Iterator[Result]:
        """The scores of one backbone, which has these weights, for each of the seeds."""


class Task(Pass):
    """A question to a backbone. Making one opens its data, so that a mistake there is told before any work is done.

    Attributes:
        name: how the user calls it; the key of its row in the table.
        settings: of this evaluation.
    """

    #: The scores that the printed table shows, and their titles. The first is the one shown for parts of the test set.
    columns: ClassVar[Mapping[str, str]]

    #: What the task is like, and for what: it is said where verdicts of tasks contradict each other.
    use: str = ""

    #: Whether something is always trained step by step, so that --steps and --learning-rate mean something.
    always_trained: ClassVar[bool] = False

    #: Whether --fine-tune trains the backbone for this task.
    fine_tunes: ClassVar[bool] = False

    #: Whether it learns from labels, of which --label-fraction takes a part.
    takes_label_fraction: ClassVar[bool] = False

    def __init__(self, name: str, context: Context) -> None:
        self.name = name
        self.settings = context.settings
        self.open(context)

    @abstractmethod
    def open(self, context: Context) -> None:
        """Opens the data and checks it.

        Raises:
            UserError: it cannot be used, or a setting does not fit.
        """

    @property
    def fine_tuned(self) -> bool:
        """Whether the backbone is trained for this task, this time."""
        return self.fine_tunes and self.settings.fine_tune

    @property
    def trained(self) -> bool:
        return self.always_trained or self.fine_tuned

    @property
    def scored_by(self) -> Pass:
        """The pass that judges this task: the task itself, unless it shares one with others."""
        return self

    @property
    def class_names(self) -> Mapping[str, str]:
        """The scores of single classes, and the names of the classes; empty if it has none."""
        return {}

    @property
    def title(self) -> str:
        """What stands above the printed table."""
        return f"{self.name}, fine-tuned" if self.fine_tuned else self.name


def some_of(names: Collection[object]) -> str:
    """The first few of these, for a message."""
    first = [shown(name) for name in sorted(names, key=lambda name: (len(str(name)), str(name)))[:NAMED]]
    return " or ".join(first) + (f" (or {len(names) - NAMED} others)" if len(names) > NAMED else "")
