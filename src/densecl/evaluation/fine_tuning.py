"""Training on labels: the optimizer, the schedule and the batches. Every task that trains in steps uses them."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from rich.console import Console
from torch import Tensor, nn

from densecl.errors import UserError
from densecl.progress import Display

#: AdamW's highest learning rate, and its weight decay. SGD at the usual 0.01 hardly moves random weights in a few
#: hundred steps, and a comparison in which they cannot learn proves nothing.
LEARNING_RATE = 5e-4
WEIGHT_DECAY = 0.05

#: Fraction of the steps in which the learning rate rises. Then it falls to 0 as (1 - progress)^0.9.
WARMUP = 0.1


class Learning(NamedTuple):
    """A network, and how it learns."""

    model: nn.Module
    loss_at: Callable[[int], Tensor]  # the loss of a step, counted from 0
    generator: torch.Generator  # draws the batches first, then in each step what happens to its images


class Descent:
    """AdamW with warm-up, polynomial decay, and gradients clipped to length 10, one step at a time.

    Args:
        parameters: those that need no gradient stay as they are.
        steps: number of updates.
        loss_at: gives the loss of a step. Steps are counted from 0.
        learning_rate: the highest one of the schedule.

    Attributes:
        optimizer: with its averages, which must be kept to go on later.
        done: number of updates so far. Set it to go on later.
    """

    def __init__(
        self,
        parameters: Iterable[nn.Parameter],
        steps: int,
        loss_at: Callable[[int], Tensor],
        *,
        learning_rate: float = LEARNING_RATE,
    ) -> None:
        self.parameters = [parameter for parameter in parameters if parameter.requires_grad]
        self.optimizer = torch.optim.AdamW(self.parameters, lr=learning_rate, weight_decay=WEIGHT_DECAY)
        self.steps = steps
        self.loss_at = loss_at
        self.learning_rate = learning_rate
        self.done = 0

    def rate(self, step: int) -> float:
        """The learning rate of a step, counted from 0."""
        warmup = max(1, round(WARMUP * self.steps))
        if step < warmup:
            return self.learning_rate * ((step + 1) / warmup)
        return self.learning_rate * (1 - (step - warmup) / max(1, self.steps - warmup)) ** 0.9

    def step(self) -> Tensor:
        """One update.

        Returns:
            The loss before it.

        Raises:
            UserError: the loss is not finite.
        """
        self.optimizer.param_groups[0]["lr"] = self.rate(self.done)
        loss = self.loss_at(self.done)
        if not loss.isfinite():
            raise UserError(
                f"Fine-tuning diverged at step {self.done + 1} of {self.steps}. Try a lower --learning-rate."
            )
        self.optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.parameters, 10.0)
        self.optimizer.step()
        self.done += 1
        return loss.detach()


def descend(descent: Descent, *, title: str | None = None) -> None:
    """All steps of a descent.

    Args:
        descent: at its beginning.
        title: shown with the progress on stderr. None: no progress is shown.

    Raises:
        UserError: a loss is not finite.
    """
    with _showing(title, descent.steps) as show:
        while descent.done < descent.steps:
            loss = descent.step()
            show(descent.done, loss)


@contextmanager
def _showing(title: str | None, steps: int) -> Iterator[Callable[[int, Tensor], None]]:
    """Gives a function to call after each step, with the number of steps done and the last loss."""
    if title is None:
        yield lambda done, loss: None
        return
    display = Display(Console(stderr=True), steps, title=title)
    started = time.monotonic()

    def show(done: int, loss: Tensor) -> None:
        left = (time.monotonic() - started) / done * (steps - done)
        display.report(done, (f"loss {loss.item():.3f}",), left)
        display.step(done, done / steps, left)

    try:
        yield show
    finally:
        display.close()


def draw_batches(count: int, batch_size: int, steps: int, generator: torch.Generator) -> list[list[int]]:
    """Indices of the images of each step. An epoch has each image once; what it leaves over begins the next batch."""
    order: list[int] = []
    while len(order) < steps * batch_size:
        order += torch.randperm(count, generator=generator).tolist()
    return [order[step * batch_size : (step + 1) * batch_size] for step in range(steps)]
