"""The numbers behind what a run chooses itself, each with where it comes from."""

from __future__ import annotations

import math

from densecl.config.facts import Traits

#: The batch size that `Recipe.base_learning_rate` is meant for.
REFERENCE_BATCH = 256

#: The most that a run takes by itself on a CPU, which has neither the memory nor the time for more.
CPU_BATCH = 64

#: The fewest, however short the run is.
SMALLEST_BATCH = 32

#: A run that would have fewer steps takes fewer images a step.
ENOUGH_STEPS = 1000

#: Images a device and step in which simclr was seen to learn more than moco does with its queue.
ENOUGH_NEGATIVES = 4

#: Mean of an image in its own standard deviations above which jitter of brightness by a factor drowns the picture: with
#: the paper's, factors deviate by 0.23 from 1, so that at 8 brightness varies 1.8 times as much as the picture does.
NARROW_BAND = 8.0

#: Jitter of brightness, contrast, saturation and hue, and the fraction of gray views: the paper's. They teach a network
#: to look at shapes instead of light and color.
JITTER = (0.4, 0.4, 0.4, 0.1)
GRAYSCALE = 0.2

#: The fraction of what tells cells apart that starting weights may lose in gray, or in another light, before views keep
#: their colors, or their light. Seen in gray: nuclei 0.10, street frames 0.18, photographs 0.23 and 0.32, aerial tiles
#: 0.43, blood cells 0.59. In another light: photographs 0.19 and 0.24, street frames 0.19, aerial tiles 0.31, nuclei
#: 0.53, blood cells 0.60. What pays was measured on three of these: docs/benchmarks/continued.md.
TELLS = 0.35

#: With --use-size: how many times larger than in use views may show things.
OFF_SCALE = 1.5

#: How many views wide a receptive field may be. The paper's is 1.9, that of a ResNet-18 at 64 px 6.8. A guess.
WIDE_FIELD = 4.0

#: Cells a side below which the dense loss means little.
SMALL_GRID = 4

#: Steps in which the heads learn alone. 20 of 100 cost 1.6 mIoU on nuclei: docs/benchmarks/hypotheses.md.
FREEZE_BACKBONE_STEPS = 0

#: Key momentum when nobody knows how many steps a time limit will hold.
TIMED_MOMENTUM = 0.99


def batch_size(images: int, epochs: int | None, *, parts: int = 1, least: int = 1, on_gpu: bool) -> int:
    """256 images a step, or 64 on a CPU, and not more than there are.

    Where `epochs` would then make fewer than `ENOUGH_STEPS` steps it is less, down to 32. In a short run more steps are
    worth more than more images a step: docs/benchmarks.md.

    Args:
        images: of the data set.
        epochs: None where the length is given in steps, which cost less the fewer images they have, or in time.
        parts: that a batch is divided into, over devices and in turn, all of one size.
        least: images of a part that the method should have, where there are as many.
        on_gpu: where the training runs.
    """
    size = REFERENCE_BATCH if on_gpu else CPU_BATCH
    if epochs is not None:
        size = min(size, max(SMALLEST_BATCH, images * epochs // ENOUGH_STEPS))
    size = power_below(min(size, images))
    return parts * max(1, size // parts, min(least, images // parts))


def power_below(number: int) -> int:
    """The largest power of two up to `number`."""
    return 1 << (number.bit_length() - 1)


def method(images: int, *, keys_given: bool) -> str:
    """simclr; moco where a device has too few `images` a step to find negatives in, or settings of its keys are given.

    In runs of some hundred steps keys of a queue are told by their age, while negatives from the batch are all of the
    present network: docs/automatic-settings.md.
    """
    return "moco" if keys_given or images < ENOUGH_NEGATIVES else "simclr"


def base_learning_rate(optimizer: str, batch_norm: bool, method: Traits) -> float:
    """At batch size 256. SGD: MoCo's for ImageNet; LARS: SimCLR's; or of the method whose paper takes that optimizer.

    AdamW: measured on the drawn scenes. Without batch norm (ConvNeXt, ViT) it takes less, as those networks' own
    recipes do, and DINO's.
    """
    if optimizer == "adamw":
        return 3e-3 if batch_norm else 5e-4
    if optimizer == method.optimizer:
        return method.learning_rate
    return {"sgd": 0.03, "lars": 0.3}[optimizer]


def scaled_learning_rate(base: float, batch_size: int, optimizer: str) -> float:
    """Linear in the batch size [Goyal et al. 2017]; for AdamW in its square root [Malladi et al. 2022]."""
    share = batch_size / REFERENCE_BATCH
    return base * (math.sqrt(share) if optimizer == "adamw" else share)


def weight_decay(optimizer: str, method: Traits) -> float:
    """SGD: the paper's; LARS: BYOL's; or of the method whose paper takes that optimizer. AdamW: measured on the scenes.

    LARS and AdamW spare biases and norms.
    """
    if optimizer == method.optimizer != "adamw":
        return method.weight_decay
    return {"sgd": 1e-4, "lars": 1.5e-6, "adamw": 0.02}[optimizer]


def warmup_epochs(epochs: float | None) -> float:
    """A tenth of the run and at most 10 epochs; 1 where a time limit leaves open how many there will be.

    (Such a run ends its warm-up after a tenth of its time at the latest: it may not see an epoch.)
    """
    return 1.0 if epochs is None else min(10.0, epochs / 10)


def key_momentum(steps: int | None, highest: float = 0.999) -> float:
    """Such that the key encoder's memory of 1 / (1 - momentum) steps is a tenth of the run, within 0.9 to `highest`.

    `highest` is the method's own. With MoCo's 0.999 the key encoder has hardly left its random start after a few
    hundred steps.
    """
    if steps is None:
        return TIMED_MOMENTUM
    return min(highest, max(0.9, 1 - 10 / steps))


def local_crop_size(image_size: int, stride: int, grid: int | None = None) -> int:
    """3/7 of a large view, as DINO's 96 of 224, in whole cells of the feature map.

    That is at least `SMALL_GRID` cells a side, or as many as the map is pooled to.
    """
    return stride * max(SMALL_GRID, grid or 0, round(image_size * 3 / 7 / stride))


def teacher_size(image_size: int, stride: int, grid: tuple[int, int]) -> int:
    """The smallest size in whole cells of a teacher's map that is no smaller than a view, and has enough cells.

    Fewer cells than the student has were seen to make it worse than no teacher: docs/distillation.md. Whole cells,
    because a ViT takes no others.

    Args:
        image_size: of a view.
        stride: of the teacher's map, in pixels per cell.
        grid: rows and columns of the student's map.
    """
    return stride * max(math.ceil(image_size / stride), *grid)


def queue_length(images: int, batch_size: int, momentum: float) -> int:
    """By the number of images and never above it, but no longer than the keys in it stay comparable.

    A key is as old as the queue is long. On short runs, where the key encoder moves fast, old keys are
    recognized by their age instead of their content, and the loss climbs to that of guessing: a quarter
    of the key encoder's memory, and no less than four batches.
    """
    memory = 1 / (1 - momentum) if momentum < 1 else math.inf
    return min(images, longest_queue(images), batch_size * max(4, round(min(memory / 4, 1e6))))


def workers(cores: int, devices: int, *, on_gpu: bool) -> int:
    """Processes that read images for each device: a GPU leaves it its share of the cores, of which 16 are enough.

    On a CPU the training wants the cores. Beside two that train a ResNet-50 at 224 px, reading keeps a fiftieth of one
    busy (small images) to a half (photos of 24 megapixels), so a quarter of the cores is enough; and two rather than
    one, which alone is late whenever it meets some large images in a row.
    """
    share = cores if on_gpu else min(cores, max(2, cores // 4))
    return min(16, max(1, share // devices))


def longest_queue(images: int) -> int:
    """The length of the queue for this many images, whatever the momentum.

    A longer queue holds old keys of the query's own image as negatives. Training is then unstable, or the loss only
    rises (rule of thumb from reported runs).
    """
    for most, length in ((1_000, 256), (10_000, 2048), (40_000, 8192), (200_000, 32768)):
        if images <= most:
            return length
    return 65536
