"""How a segmenter learns from images and their label maps."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from densecl.borrowed import copy_to_train, evaluating
from densecl.errors import UserError
from densecl.evaluation.dense import Labeled, Segmentation, device_of, labeled_batch, normalize, score_test, upsample
from densecl.evaluation.fine_tuning import Learning, draw_batches
from densecl.evaluation.labeled import VOID
from densecl.model.backbone import Backbone
from densecl.normalization import Normalization

#: Channels of the hidden layer of the head.
HIDDEN = 256

#: Area of a crop to learn from, as a fraction of the image.
CROP_SCALE = (0.4, 1.0)

#: Bytes of images and label maps that are kept in memory. More are read again in each step.
MOST_KEPT = 4 * 1024**3

#: Scores that are upsampled at a time.
MOST_SCORES = 2**24

#: Steps, and images of a step.
STEPS, BATCH_SIZE = 300, 16


class Segmenter(nn.Module):
    """A backbone and a head of two convolutions. Gives the scores of the classes in each cell."""

    def __init__(self, backbone: Backbone, classes: int) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = nn.Sequential(
            nn.Conv2d(backbone.channels, HIDDEN, 3, padding=1, bias=False),
            nn.BatchNorm2d(HIDDEN),
            nn.ReLU(),
            nn.Conv2d(HIDDEN, classes, 1),
        )

    def forward(self, pixels: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch classes rows cols"]:
        return self.head(self.backbone(pixels))


def learn_pixels(
    backbone: Backbone,
    train: Sequence[Labeled],
    *,
    classes: int,
    normalization: Normalization,
    ignore: Collection[int] = (),
    steps: int = STEPS,
    batch_size: int = BATCH_SIZE,
    seed: int = 0,
) -> Learning:
    """A segmenter on a copy of the backbone, and how both learn from `train`. Batch norm trains.

    The head is drawn from torch's global generators, as is the backbone's dropout in each step. Images are kept in
    memory as long as there is room (`MOST_KEPT`), and cropped and flipped anew in each step.

    Args:
        backbone: it is left as it was.
        train: images and label maps, all of one size.
        classes: number of classes; labels are 0 to classes - 1.
        normalization: the one that the backbone was trained with.
        ignore: labels of pixels that do not count. 255 is always one of them.
        steps: number of training steps.
        batch_size: images of a step.
        seed: fixes the order of the images, crops and flips.

    Raises:
        UserError: images of different sizes, a label that is neither a class nor ignored, no labeled pixel.
    """
    device = device_of(backbone)
    model = Segmenter(copy_to_train(backbone), classes).to(device)
    kept = None
    if len(train) * sum(part.nbytes for part in train[0]) <= MOST_KEPT:
        kept = labeled_batch(train, range(len(train)), classes, ignore)
        if (kept[1] == VOID).all():
            raise UserError("The training set has no labeled pixel to learn from.")
    generator = torch.Generator().manual_seed(seed)
    batches = draw_batches(len(train), batch_size, steps, generator)

    def loss_at(step: int) -> Tensor:
        if kept is None:
            images, labels = labeled_batch(train, batches[step], classes, ignore)
        else:
            images, labels = [kept[0][index] for index in batches[step]], kept[1][batches[step]]
        pixels, target = crop_and_flip(normalize(images, normalization, device), labels.to(device), generator)
        logits = upsample(model(pixels), *target.shape[1:])
        loss = F.cross_entropy(logits, target.long(), ignore_index=VOID, reduction="sum")
        return loss / (target != VOID).sum().clamp(min=1)  # at least 1, because a batch may have no labeled pixel

    return Learning(model, loss_at, generator)


def score_segmenter(
    model: nn.Module,
    test: Sequence[Labeled],
    *,
    classes: int,
    normalization: Normalization,
    ignore: Collection[int] = (),
    subsets: Mapping[str, Collection[int]] | None = None,
    batch_size: int = BATCH_SIZE,
) -> dict[str, Segmentation]:
    """The scores of a segmenter on "all" of `test` and on each of the subsets. The arguments are those of `judge`."""
    judged = score_test(
        model,
        test,
        {"fine-tuned": lambda logits: logits},
        classes=classes,
        normalization=normalization,
        ignore=ignore,
        subsets=subsets,
        batch_size=batch_size,
    )
    return judged["fine-tuned"]


def segment(
    model: nn.Module,
    images: Sequence[Tensor],
    normalization: Normalization,
    sizes: Sequence[tuple[int, int]] | None = None,
) -> list[UInt8[Tensor, "_ _"]]:
    """The label of each pixel.

    Args:
        model: of `learn_pixels`.
        images: eight- or sixteen-bit, of one size.
        normalization: the one that the backbone was trained with.
        sizes: (height, width) of the label map of each image. Not given: the images' own.
    """
    sizes = sizes or [(image.shape[1], image.shape[2]) for image in images]
    with evaluating(model):
        scores = model(normalize(images, normalization, device_of(model))).float()
        return [label_pixels(each, *size).cpu() for each, size in zip(scores, sizes, strict=True)]


def label_pixels(
    scores: Float[Tensor, "classes rows cols"], height: int, width: int
) -> UInt8[Tensor, "{height} {width}"]:
    """The class with the highest of the scores, which are upsampled bilinearly as `upsample` does it.

    That is done in strips, because all scores of a large image would need gigabytes.
    """
    classes, rows, _ = scores.shape
    tall = max(1, MOST_SCORES // (classes * width))
    places = ((torch.arange(height, device=scores.device) + 0.5) * rows / height - 0.5).clamp(min=0)
    above = places.floor().long().clamp(max=rows - 1)
    below = (above + 1).clamp(max=rows - 1)
    strips = []
    for start in range(0, height, tall):
        part = slice(start, start + tall)
        strip = torch.lerp(scores[:, above[part]], scores[:, below[part]], (places - above)[part][None, :, None])
        strips.append(upsample(strip[None], strip.shape[1], width)[0].argmax(dim=0).to(torch.uint8))
    return torch.cat(strips)


def crop_and_flip(
    pixels: Float[Tensor, "batch channels height width"],
    labels: UInt8[Tensor, "batch height width"],
    generator: torch.Generator,
) -> tuple[Float[Tensor, "batch channels height width"], UInt8[Tensor, "batch height width"]]:
    """Random crops, enlarged to the size of the image, some of them mirrored. Label maps are cropped alike."""
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
