"""Training on labels: the optimizer, the schedule and the batches. Every task that trains in steps uses them."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

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


def descend(
    parameters: Iterable[nn.Parameter],
    steps: int,
    loss_at: Callable[[int], Tensor],
    *,
    learning_rate: float = LEARNING_RATE,
    title: str | None = None,
) -> None:
    """AdamW with warm-up, polynomial decay, and gradients clipped to length 10.

    Args:
        parameters: those that need no gradient stay as they are.
        steps: number of updates.
        loss_at: gives the loss of a step. Steps are counted from 0.
        learning_rate: the highest one of the schedule.
        title: shown with the progress on stderr. None: no progress is shown.

    Raises:
        UserError: a loss is not finite.
    """
    parameters = [parameter for parameter in parameters if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=learning_rate, weight_decay=WEIGHT_DECAY)
    warmup = max(1, round(WARMUP * steps))
    with _showing(title, steps) as show:
        for step in range(steps):
            factor = (step + 1) / warmup if step < warmup else (1 - (step - warmup) / max(1, steps - warmup)) ** 0.9
            optimizer.param_groups[0]["lr"] = learning_rate * factor
            loss = loss_at(step)
            if not loss.isfinite():
                raise UserError(f"Fine-tuning diverged at step {step + 1} of {steps}. Try a lower --learning-rate.")
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(parameters, 10.0)
            optimizer.step()
            show(step + 1, loss)


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
