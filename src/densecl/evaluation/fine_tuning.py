"""Training on labels: the optimizer and schedule that every fine-tuned model has, and fine-tuned segmentation."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from rich.console import Console
from torch import Tensor, nn

from densecl.borrowed import copy_to_train, seeded
from densecl.errors import UserError
from densecl.evaluation.dense import (
    Labeled,
    Segmentation,
    device_of,
    labeled_batch,
    normalize,
    score_test,
    upsample,
)
from densecl.evaluation.labeled import VOID
from densecl.model.backbone import Backbone
from densecl.progress import Display

#: AdamW's rate at its highest, and its weight decay. SGD at the usual 0.01 hardly moves random weights in a few
#: hundred steps, and a comparison in which they cannot learn would prove nothing.
LEARNING_RATE = 5e-4
WEIGHT_DECAY = 0.05

#: Of the steps, the share in which the rate rises; then it falls to 0 by (1 - progress)^0.9.
WARMUP = 0.1

#: Channels of the head's hidden layer.
HIDDEN = 256

#: Area of a training crop, as a share of the image.
CROP_SCALE = (0.4, 1.0)


def descend(
    parameters: Iterable[nn.Parameter],
    steps: int,
    loss_at: Callable[[int], Tensor],
    *,
    learning_rate: float = LEARNING_RATE,
    title: str | None = None,
) -> None:
    """AdamW over `steps` losses with warm-up, polynomial decay, and gradients clipped to length 10.

    Args:
        parameters: those that need no gradient stay as they are.
        steps: number of updates.
        loss_at: the loss of a step, counted from 0.
        learning_rate: at its highest.
        title: of the progress that is shown on stderr; None: nothing is shown.

    Raises:
        UserError: a loss is not finite.
    """
    parameters = [parameter for parameter in parameters if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=learning_rate, weight_decay=WEIGHT_DECAY)
    warmup = max(1, round(WARMUP * steps))
    with _showing(title, steps) as show:
        for step in range(steps):
            share = (step + 1) / warmup if step < warmup else (1 - (step - warmup) / max(1, steps - warmup)) ** 0.9
            optimizer.param_groups[0]["lr"] = learning_rate * share
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
    """What to call with the number of steps done and the last one's loss."""
    if title is None:
        yield lambda done, loss: None
        return
    display = Display(Console(stderr=True), steps, title=title)
    started = time.monotonic()

    def show(done: int, loss: Tensor) -> None:
        left = (time.monotonic() - started) / done * (steps - done)
        display.report(done, f"loss {loss.item():.3f}", left)
        display.step(done, left)

    try:
        yield show
    finally:
        display.close()


def draw_batches(count: int, batch_size: int, steps: int, generator: torch.Generator) -> list[list[int]]:
    """Indices of each step, without repetition within an epoch; an epoch's last images begin the next one's batch."""
    order: list[int] = []
    while len(order) < steps * batch_size:
        order += torch.randperm(count, generator=generator).tolist()
    return [order[step * batch_size : (step + 1) * batch_size] for step in range(steps)]


def fine_tuned_segmentation(
    backbone: Backbone,
    train: Sequence[Labeled],
    test: Sequence[Labeled],
    *,
    classes: int,
    mean: Sequence[float],
    std: Sequence[float],
    ignore: Collection[int] = (),
    subsets: Mapping[str, Collection[int]] | None = None,
    steps: int = 300,
    batch_size: int = 16,
    learning_rate: float = LEARNING_RATE,
    seed: int = 0,
    title: str | None = None,
) -> dict[str, Segmentation]:
    """Train a copy of the backbone and a head of two convolutions on `train`, all of it, and score it on `test`.

    Training images are cropped, flipped and, at the size they have, kept in memory. Batch norm trains.

    Args:
        backbone: left as it was.
        train: images and label maps, all of one size.
        test: the same, of any one size.
        classes: number of classes; labels are 0 to classes - 1.
        mean: of each channel, on the 0-1 scale, as the backbone was trained with.
        std: of each channel, on the 0-1 scale.
        ignore: labels of pixels that count neither in training nor in the score; 255 is always one.
        subsets: names and indices of parts of `test` that are scored on their own, too.
        steps: of training.
        batch_size: images of a step.
        learning_rate: at its highest.
        seed: of the head, the order of the images, crops and flips.
        title: of the progress that is shown on stderr; None: nothing is shown.

    Returns:
        The scores on "all" of `test` and on each of the subsets.

    Raises:
        UserError: an empty set, images of different sizes, a label that is neither a class nor ignored.
    """
    if len(train) == 0 or len(test) == 0:
        raise UserError("There are no labeled images to learn from or none to score on.")
    device = device_of(backbone)
    with seeded(seed, device):  # the head, and whatever the backbone drops at random
        model = nn.Sequential(copy_to_train(backbone), _head(backbone.channels, classes)).to(device)
        images, labels = labeled_batch(train, range(len(train)), classes, ignore)
        if (labels == VOID).all():
            raise UserError("The training set has no labeled pixel to learn from.")
        generator = torch.Generator().manual_seed(seed)
        batches = draw_batches(len(images), batch_size, steps, generator)

        def loss_at(step: int) -> Tensor:
            pixels = normalize([images[index] for index in batches[step]], mean, std, device)
            pixels, target = crop_and_flip(pixels, labels[batches[step]].to(device), generator)
            logits = upsample(model(pixels), *target.shape[1:])
            loss = F.cross_entropy(logits, target.long(), ignore_index=VOID, reduction="sum")
            return loss / (target != VOID).sum().clamp(min=1)  # a batch may have no label

        descend(model.parameters(), steps, loss_at, learning_rate=learning_rate, title=title)
    judged = score_test(
        model,
        test,
        {"fine-tuned": lambda logits: logits},
        classes=classes,
        mean=mean,
        std=std,
        ignore=ignore,
        subsets=subsets,
        batch_size=batch_size,
    )
    return judged["fine-tuned"]


def _head(channels: int, classes: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels, HIDDEN, 3, padding=1, bias=False),
        nn.BatchNorm2d(HIDDEN),
        nn.ReLU(),
        nn.Conv2d(HIDDEN, classes, 1),
    )


def crop_and_flip(
    pixels: Float[Tensor, "batch channels height width"],
    labels: UInt8[Tensor, "batch height width"],
    generator: torch.Generator,
) -> tuple[Float[Tensor, "batch channels height width"], UInt8[Tensor, "batch height width"]]:
    """A random part of each image, of its shape, enlarged to its size and mirrored or not; the label map alike."""
    height, width = labels.shape[1:]
    cropped, cropped_labels = [], []
    for image, label in zip(pixels, labels, strict=True):
        area, left, top, mirrored = torch.rand(4, generator=generator).tolist()
        side = (CROP_SCALE[0] + area * (CROP_SCALE[1] - CROP_SCALE[0])) ** 0.5
        rows, cols = round(side * height), round(side * width)
        row, col = round(top * (height - rows)), round(left * (width - cols))
        image = image[None, :, row : row + rows, col : col + cols]
        label = label[None, None, row : row + rows, col : col + cols]
        image = F.interpolate(image, size=(height, width), mode="bilinear", align_corners=False)
        label = F.interpolate(label, size=(height, width), mode="nearest-exact")
        if mirrored < 0.5:
            image, label = image.flip(3), label.flip(3)
        cropped.append(image[0])
        cropped_labels.append(label[0, 0])
    return torch.stack(cropped), torch.stack(cropped_labels)
