"""Linear segmentation: a frozen backbone, one 1x1 convolution, bilinear upsampling, mean IoU."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, Int64, Integer
from torch import Tensor, nn

from densecl.errors import UserError
from densecl.evaluation.frozen import evaluating

#: An image (uint8 "channels height width") and its label map (integers "height width").
Labelled = tuple[Tensor, Tensor]

#: The classifier is fitted to every 4th pixel of every 4th row, a 16th of the cost: logits upsampled from a feature
#: map of stride 8 or more hardly change over 4 pixels. (Every 2nd pixel gave the same mIoU to 0.1 on drawn scenes.)
LABEL_STRIDE = 4

#: Of the squared weights, on standardised features: enough to make the optimum unique.
RIDGE = 1e-4


class Segmentation(NamedTuple):
    """How well label maps were predicted."""

    miou: float  # percent, mean over the classes that occur in the labels or the predictions
    per_class_iou: tuple[float, ...]  # percent; nan for a class that occurs in neither
    pixel_accuracy: float  # percent
    confusion: Int64[Tensor, "classes classes"]  # pixels by label (row) and prediction (column)


def linear_segmentation(
    backbone: nn.Module,
    train: Sequence[Labelled],
    test: Sequence[Labelled],
    *,
    classes: int,
    mean: Sequence[float],
    std: Sequence[float],
    ignore_index: int | None = None,
    batch_size: int = 32,
    iterations: int = 100,
) -> Segmentation:
    """Fit a linear classifier of cells on `train` and score it on `test`.

    The backbone runs once over each set, in evaluation mode and without gradient. Features are standardised
    by the training set's statistics, and the 1x1 convolution is fitted to the cross-entropy of the upsampled
    logits by L-BFGS from zero: a convex problem, so nothing is random and there is no rate to tune.

    Args:
        backbone: any module that returns a feature map "batch channels rows cols"; left as it was.
        train: images and label maps, all of one size; their features are kept in memory.
        test: the same, of any one size.
        classes: number of classes; labels are 0 to classes - 1.
        mean: of each channel, on the 0-1 scale, as the backbone was trained with.
        std: of each channel, on the 0-1 scale.
        ignore_index: label of pixels that count neither in training nor in the score.
        batch_size: images that go through the backbone at a time.
        iterations: of L-BFGS, at most.

    Raises:
        UserError: an empty set, images of different sizes, a label that is neither a class nor ignored.
    """
    if len(train) == 0 or len(test) == 0:
        raise UserError("There are no labelled images to learn from or none to score on.")
    with evaluating(backbone):
        features, labels = extract(backbone, train, mean, std, classes, ignore_index, batch_size)
        location = features.mean(dim=(0, 2, 3), keepdim=True)
        # A channel that is constant over the training set tells nothing: it stays 0 instead of becoming 0/0.
        scale = features.std(dim=(0, 2, 3), keepdim=True, correction=0).clamp(min=1e-6)
        classifier = fit_classifier((features - location) / scale, labels, classes, iterations)
        confusion = torch.zeros(classes, classes, dtype=torch.int64)
        for start in range(0, len(test), batch_size):
            some = [test[index] for index in range(start, min(start + batch_size, len(test)))]
            features, labels = extract(backbone, some, mean, std, classes, ignore_index, batch_size)
            logits = upsample(classifier((features - location) / scale), labels.shape[1], labels.shape[2])
            confusion += confusion_matrix(logits.argmax(dim=1), labels, classes).cpu()
    if not confusion.any():
        raise UserError("The test set has no labelled pixel to score.")
    return score(confusion)


def extract(
    backbone: nn.Module,
    labelled: Sequence[Labelled],
    mean: Sequence[float],
    std: Sequence[float],
    classes: int,
    ignore_index: int | None,
    batch_size: int,
) -> tuple[Float[Tensor, "images channels rows cols"], Int64[Tensor, "images height width"]]:
    """Feature maps and label maps (ignored pixels: -100) of all images, on the backbone's device."""
    device = next((parameter.device for parameter in backbone.parameters()), torch.device("cpu"))
    location = torch.tensor(mean, device=device)[:, None, None]
    scale = torch.tensor(std, device=device)[:, None, None]
    features, labels = [], []
    for start in range(0, len(labelled), batch_size):
        some = [labelled[index] for index in range(start, min(start + batch_size, len(labelled)))]
        shapes = {(tuple(image.shape), tuple(label.shape)) for image, label in some}
        if len(shapes) > 1 or (labels and some[0][1].shape != labels[0].shape[1:]):
            raise UserError(f"Labelled images must all have one size, but image {start} and those after it differ.")
        pixels = torch.stack([image for image, _ in some]).to(device).float() / 255
        features.append(backbone((pixels - location) / scale).float())
        labels.append(_checked(torch.stack([label for _, label in some]), classes, ignore_index).to(device))
    return torch.cat(features), torch.cat(labels)


def _checked(
    labels: Integer[Tensor, "images height width"], classes: int, ignore_index: int | None
) -> Int64[Tensor, "images height width"]:
    labels = labels.long()
    ignored = torch.zeros_like(labels, dtype=torch.bool) if ignore_index is None else labels == ignore_index
    wrong = labels[~ignored & ((labels < 0) | (labels >= classes))]
    if len(wrong):
        raise UserError(
            f"A label map holds {int(wrong[0])}, but there are {classes} classes (0 to {classes - 1})."
            " Is it the label to ignore?"
        )
    return labels.masked_fill(ignored, -100)


def fit_classifier(
    features: Float[Tensor, "images channels rows cols"],
    labels: Int64[Tensor, "images height width"],
    classes: int,
    iterations: int,
) -> nn.Conv2d:
    """The 1x1 convolution whose upsampled logits have the least cross-entropy; labels of -100 do not count."""
    classifier = nn.Conv2d(features.shape[1], classes, 1, device=features.device)
    for parameter in classifier.parameters():
        nn.init.zeros_(parameter)
    labels = labels[:, LABEL_STRIDE // 2 :: LABEL_STRIDE, LABEL_STRIDE // 2 :: LABEL_STRIDE]
    if not (labels >= 0).any():
        raise UserError("The training set has no labelled pixel to learn from.")
    optimizer = torch.optim.LBFGS(classifier.parameters(), max_iter=iterations, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        logits = upsample(classifier(features), labels.shape[1], labels.shape[2])
        loss = F.cross_entropy(logits, labels) + RIDGE * classifier.weight.square().sum()
        loss.backward()
        return loss

    with torch.enable_grad():
        optimizer.step(closure)
    return classifier.requires_grad_(False)


def upsample(
    logits: Float[Tensor, "images classes rows cols"], height: int, width: int
) -> Float[Tensor, "images classes {height} {width}"]:
    """Bilinear, cell centres where they lie in the image."""
    return F.interpolate(logits, size=(height, width), mode="bilinear", align_corners=False)


def confusion_matrix(
    predicted: Int[Tensor, "images height width"], labels: Int64[Tensor, "images height width"], classes: int
) -> Int64[Tensor, "classes classes"]:
    """Pixels by label (row) and prediction (column); negative labels do not count."""
    counted = labels >= 0
    pairs = labels[counted] * classes + predicted[counted]
    return torch.bincount(pairs, minlength=classes * classes).reshape(classes, classes)


def score(confusion: Int64[Tensor, "classes classes"]) -> Segmentation:
    """Intersection over union of each class, and their mean, from all pixels of a set at once."""
    intersection = confusion.diagonal().double()
    union = confusion.sum(dim=0) + confusion.sum(dim=1) - intersection
    iou = 100 * intersection / union  # 0/0 = nan: occurs in neither
    accuracy = 100 * intersection.sum() / confusion.sum()
    return Segmentation(iou.nanmean().item(), tuple(iou.tolist()), accuracy.item(), confusion)
