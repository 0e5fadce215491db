"""How a detector learns from images with boxes, and how it finds objects."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from densecl.borrowed import copy_to_train, evaluating
from densecl.choices import Architecture
from densecl.errors import UserError
from densecl.evaluation.average_precision import Detections
from densecl.evaluation.boxed import Boxed
from densecl.evaluation.boxes.outlines import drawn, packed
from densecl.evaluation.dense import device_of
from densecl.evaluation.detector import build_detector
from densecl.evaluation.fine_tuning import Learning, draw_batches
from densecl.images.crops import flip
from densecl.model.backbone import Backbone
from densecl.normalization import Normalization

#: Images are resized until their longer side has so many pixels, unless another number is asked for.
LONGER_SIDE = 320

#: Steps, and images of a step.
STEPS, BATCH_SIZE = 500, 8


def learn_boxes(
    backbone: Backbone,
    train: Sequence[Boxed],
    *,
    classes: int,
    normalization: Normalization,
    fine_tune: bool,
    longer_side: int = LONGER_SIDE,
    steps: int = STEPS,
    batch_size: int = BATCH_SIZE,
    seed: int = 0,
    architecture: Architecture = "faster-rcnn",
) -> Learning:
    """A detector on a copy of the backbone, and how it learns from `train`.

    Its new layers are drawn from torch's global generators, as is torchvision's sampling of proposals in each step.

    Args:
        backbone: it is left as it was. Its maps of different strides make the pyramid.
        train: images and their objects; with their outlines for a mask-rcnn.
        classes: number of classes; labels are 1 to classes.
        normalization: the one that the backbone was trained with.
        fine_tune: train the backbone, too, with its batch norm. Otherwise it is frozen.
        longer_side: images are resized until their longer side has so many pixels.
        steps: number of training steps.
        batch_size: images of a step.
        seed: fixes the order of the images, and flips.
        architecture: of the detector.

    Raises:
        UserError: there is no object.
    """
    if not any(len(item.boxes) for item in train):
        raise UserError("There is no object to learn from.")
    device = device_of(backbone)
    copied = copy_to_train(backbone)
    model = build_detector(copied, classes, normalization, longer_side, fine_tune, architecture).to(device)
    generator = torch.Generator().manual_seed(seed)
    batches = draw_batches(len(train), batch_size, steps, generator)

    def loss_at(step: int) -> Tensor:
        images, targets = [], []
        for index in batches[step]:
            item = train[index]
            mirrored = torch.rand((), generator=generator).item() < 0.5
            image, boxes = _flipped(item) if mirrored else (item.image, item.boxes)
            images.append(resized(image, longer_side).to(device))
            boxes = boxes * _scale(image, images[-1])
            targets.append({"boxes": boxes.to(device), "labels": item.labels.to(device)})
            if architecture == "mask-rcnn":
                height, width = images[-1].shape[1:]
                masks = drawn(item.outlines, width, height)
                targets[-1]["masks"] = (masks.flip(2) if mirrored else masks).to(device)
        losses: dict[str, Tensor] = model(images, targets)
        return torch.stack(list(losses.values())).sum()

    return Learning(model, loss_at, generator)


def _flipped(item: Boxed) -> tuple[Tensor, Tensor]:
    x0, y0, x1, y1 = item.boxes.unbind(dim=1)
    width = item.image.shape[2]
    return flip(item.image, 2), torch.stack([width - x1, y0, width - x0, y1], dim=1)


def resized(image: Tensor, longer_side: int) -> Float[Tensor, "channels height width"]:
    """The image on the 0-1 scale, resized to the longer side."""
    ratio = longer_side / max(image.shape[1:])
    size = [max(1, round(side * ratio)) for side in image.shape[1:]]
    pixels = image[None].float() / torch.iinfo(image.dtype).max
    return F.interpolate(pixels, size=size, mode="bilinear", antialias=True, align_corners=False)[0]


def _scale(before: Tensor, after: Tensor) -> Float[Tensor, "4"]:
    """By what boxes are multiplied when an image was resized. Both sides were rounded to pixels, each by itself."""
    (old_height, old_width), (height, width) = before.shape[1:], after.shape[1:]
    return torch.tensor([width / old_width, height / old_height]).repeat(2)


def detect_all(model: nn.Module, test: Sequence[Boxed], longer_side: int, batch_size: int) -> list[Detections]:
    """What a detector finds in each of the images."""
    found = []
    for start in range(0, len(test), batch_size):
        images = [test[index].image for index in range(start, min(start + batch_size, len(test)))]
        found += detect(model, images, longer_side)
    return found


def detect(
    model: nn.Module, images: Sequence[Tensor], longer_side: int, *, least_score: float = 0.0
) -> list[Detections]:
    """What a detector finds in each image of a batch, in the coordinates of the image itself.

    Args:
        model: of `learn_boxes`.
        images: eight- or sixteen-bit.
        longer_side: that it has learned with.
        least_score: detections with a lower score are left out.
    """
    device = device_of(model)
    found = []
    with evaluating(model):
        small = [resized(image, longer_side).to(device) for image in images]
        for image, seen, output in zip(images, small, model(small), strict=True):
            kept = (output["scores"] >= least_score) & (output["labels"] > 0)  # a RetinaNet has a class 0, too
            boxes = output["boxes"][kept].cpu() * _scale(seen, image)
            masks = None
            if "masks" in output:
                masks = tuple(packed(_enlarged(mask, image.shape[1:])) for mask in output["masks"][kept].cpu())
            found.append(Detections(boxes, output["labels"][kept].cpu(), output["scores"][kept].cpu(), masks))
    return found


def _enlarged(mask: Float[Tensor, "1 _ _"], size: Sequence[int]) -> Tensor:
    """A mask of probabilities as one of 0 and 1, of the size (height, width)."""
    return (F.interpolate(mask[None], size=tuple(size), mode="bilinear")[0, 0] >= 0.5).to(torch.uint8)
