"""Judging feature maps by labels, the same way for every backbone and every question.

A frozen backbone goes once over the training images and once over the test images. A *probe* learns from the
training maps how to give each class a score in each cell; scores are upsampled bilinearly to the pixels, the highest
wins, and the predictions of the whole test set make one mean IoU. Several probes share the two passes.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64, Integer, UInt8
from torch import Tensor, nn

from densecl.borrowed import evaluating
from densecl.errors import UserError
from densecl.evaluation.labeled import VOID, LabeledFiles, unknown_label
from densecl.names import shown

#: An image (uint8 or uint16 "channels height width") and its label map (integers "height width").
Labeled = tuple[Tensor, Tensor]

#: A training set whose feature maps would take more is refused.
MAX_FEATURE_BYTES = 8 * 1024**3


class LabeledMaps(NamedTuple):
    """Feature maps of images, and their labels."""

    features: Float[Tensor, "images channels rows cols"]
    labels: UInt8[Tensor, "images height width"]  # VOID does not count

    def take(self, images: Sequence[int]) -> LabeledMaps:
        """Those of some of the images."""
        return LabeledMaps(self.features[list(images)], self.labels[list(images)])


#: From feature maps "batch channels rows cols" to scores of the classes "batch classes rows cols".
Classify = Callable[[Tensor], Tensor]

#: What learns from the training maps; also given the number of classes.
Probe = Callable[[LabeledMaps, int], Classify]


class Segmentation(NamedTuple):
    """How well label maps were predicted."""

    miou: float  # percent, mean over the classes that occur in the labels or the predictions
    per_class_iou: tuple[float, ...]  # percent; nan for a class that occurs in neither
    pixel_accuracy: float  # percent
    confusion: Int64[Tensor, "classes classes"]  # pixels by label (row) and prediction (column)


def judge(
    backbone: nn.Module,
    train: Sequence[Labeled],
    test: Sequence[Labeled],
    probes: Mapping[str, Probe],
    *,
    classes: int,
    mean: Sequence[float],
    std: Sequence[float],
    ignore: Collection[int] = (),
    subsets: Mapping[str, Collection[int]] | None = None,
    batch_size: int = 32,
) -> dict[str, dict[str, Segmentation]]:
    """Fit each probe to the feature maps of `train` and score it on those of `test`.

    Args:
        backbone: any module that returns a feature map "batch channels rows cols"; left as it was.
        train: images and label maps, all of one size; their feature maps are kept in memory, on the backbone's device.
        test: the same, of any one size.
        probes: by name.
        classes: number of classes; labels are 0 to classes - 1.
        mean: of each channel, on the 0-1 scale, as the backbone was trained with.
        std: of each channel, on the 0-1 scale.
        ignore: labels of pixels that count neither in training nor in the score; 255 is always one.
        subsets: names and indices of parts of `test` that are scored on their own, too.
        batch_size: images that go through the backbone at a time.

    Returns:
        For each probe the scores on "all" of `test` and on each of the subsets.

    Raises:
        UserError: an empty set, images of different sizes, a label that is neither a class nor ignored, feature maps
            beyond `MAX_FEATURE_BYTES`.
    """
    if len(train) == 0 or len(test) == 0:
        raise UserError("There are no labeled images to learn from or none to score on.")
    with evaluating(backbone):
        maps = extract(backbone, train, mean, std, classes, ignore, batch_size)
        classifiers = {name: probe(maps, classes) for name, probe in probes.items()}
        del maps
    return score_test(
        backbone,
        test,
        classifiers,
        classes=classes,
        mean=mean,
        std=std,
        ignore=ignore,
        subsets=subsets,
        batch_size=batch_size,
    )


def score_test(
    module: nn.Module,
    test: Sequence[Labeled],
    classifiers: Mapping[str, Classify],
    *,
    classes: int,
    mean: Sequence[float],
    std: Sequence[float],
    ignore: Collection[int],
    subsets: Mapping[str, Collection[int]] | None,
    batch_size: int,
) -> dict[str, dict[str, Segmentation]]:
    """The second half of `judge`, whose arguments these are: one pass over `test`, scored for each classifier."""
    groups: dict[str, Collection[int]] = {"all": range(len(test)), **(subsets or {})}
    confusions = {
        name: {group: torch.zeros(classes, classes, dtype=torch.int64) for group in groups} for name in classifiers
    }
    index = 0
    with evaluating(module):
        for features, labels in _batches(module, test, mean, std, classes, ignore, batch_size):
            for name, classify in classifiers.items():
                for offset, (scores, label) in enumerate(zip(classify(features), labels, strict=True)):
                    predicted = upsample(scores[None], *label.shape).argmax(dim=1)[0]
                    counts = confusion_matrix(predicted, label, classes).cpu()
                    for group, members in groups.items():
                        if index + offset in members:
                            confusions[name][group] += counts
            index += len(labels)
    return {
        name: {group: score(confusion) for group, confusion in by_group.items()}
        for name, by_group in confusions.items()
    }


def extract(
    backbone: nn.Module,
    labeled: Sequence[Labeled],
    mean: Sequence[float],
    std: Sequence[float],
    classes: int,
    ignore: Collection[int],
    batch_size: int,
) -> LabeledMaps:
    """Feature maps and label maps of all images, on the backbone's device. The arguments are those of `judge`."""
    maps: LabeledMaps | None = None
    start = 0
    for features, labels in _batches(backbone, labeled, mean, std, classes, ignore, batch_size):
        if maps is None:
            need = len(labeled) * features[0].nbytes
            if need > MAX_FEATURE_BYTES:
                raise UserError(
                    f"The feature maps of {len(labeled)} images would take {need / 1024**3:.1f} GB. Choose a smaller"
                    " --image-size, a larger --output-stride or a smaller --label-fraction."
                )
            maps = LabeledMaps(*(some.new_empty(len(labeled), *some.shape[1:]) for some in (features, labels)))
        maps.features[start : start + len(labels)] = features
        maps.labels[start : start + len(labels)] = labels
        start += len(labels)
    assert maps is not None, "judge refuses empty sets"
    return maps


def _batches(
    backbone: nn.Module,
    labeled: Sequence[Labeled],
    mean: Sequence[float],
    std: Sequence[float],
    classes: int,
    ignore: Collection[int],
    batch_size: int,
) -> Iterator[LabeledMaps]:
    device = device_of(backbone)
    first: Tensor | None = None
    for start in range(0, len(labeled), batch_size):
        chosen = range(start, min(start + batch_size, len(labeled)))
        images, labels = labeled_batch(labeled, chosen, classes, ignore)
        first = labels if first is None else first
        if first.shape[1:] != labels.shape[1:]:
            raise UserError(f"Labeled images must all have one size, but {_name(labeled, start)} differs.")
        yield LabeledMaps(backbone(normalize(images, mean, std, device)).float(), labels.to(device))


def labeled_batch(
    labeled: Sequence[Labeled], chosen: Sequence[int], classes: int, ignore: Collection[int]
) -> tuple[list[Tensor], UInt8[Tensor, "images height width"]]:
    """Some of the images, and their checked label maps.

    Raises:
        UserError: they differ in size, or have a label that is neither a class nor ignored.
    """
    images, labels = [], []
    for index in chosen:
        image, label = labeled[index]
        if images and (image.shape != images[0].shape or label.shape != labels[0].shape):
            raise UserError(f"Labeled images must all have one size, but {_name(labeled, index)} differs.")
        images.append(image)
        labels.append(checked(label, classes, ignore, _name(labeled, index)))
    return images, torch.stack(labels)


def device_of(module: nn.Module) -> torch.device:
    """Where a module's parameters lie; the CPU for one that has none."""
    return next((parameter.device for parameter in module.parameters()), torch.device("cpu"))


def normalize(
    images: Sequence[Tensor], mean: Sequence[float], std: Sequence[float], device: torch.device
) -> Float[Tensor, "batch channels height width"]:
    """Eight- or sixteen-bit images as what an encoder takes."""
    pixels = torch.stack([image.to(device).float() / torch.iinfo(image.dtype).max for image in images])
    return (pixels - torch.tensor(mean, device=device)[:, None, None]) / torch.tensor(std, device=device)[:, None, None]


def checked(
    labels: Integer[Tensor, "height width"], classes: int, ignore: Collection[int], name: str
) -> UInt8[Tensor, "height width"]:
    """The label map with VOID for whatever does not count.

    Raises:
        UserError: for a label that is neither a class nor ignored.
    """
    ignored = torch.isin(labels, torch.tensor([VOID, *ignore], dtype=labels.dtype))
    wrong = labels[~ignored & ((labels < 0) | (labels >= classes))]
    if len(wrong):
        raise unknown_label(name, int(wrong[0]), classes)
    return labels.to(torch.uint8).masked_fill(ignored, VOID)


def _name(labeled: Sequence[Labeled], index: int) -> str:
    return shown(labeled.pairs[index][1]) if isinstance(labeled, LabeledFiles) else f"labeled image {index}"


def label_shares(
    labels: UInt8[Tensor, "images height width"], classes: int, rows: int, cols: int
) -> Float[Tensor, "images classes {rows} {cols}"]:
    """The share of each cell's pixels that each class has. A cell sums to less than 1 where pixels do not count."""
    shares = []
    for label in labels:  # one at a time: one-hot pixels of many images and classes are large
        one_hot = F.one_hot(label.masked_fill(label == VOID, classes).long(), classes + 1)[..., :classes]
        shares.append(F.adaptive_avg_pool2d(one_hot.permute(2, 0, 1).float(), (rows, cols)))
    return torch.stack(shares)


def upsample(
    scores: Float[Tensor, "images classes rows cols"], height: int, width: int
) -> Float[Tensor, "images classes {height} {width}"]:
    """Bilinear, cell centers where they lie in the image."""
    return F.interpolate(scores, size=(height, width), mode="bilinear", align_corners=False)


def confusion_matrix(
    predicted: Integer[Tensor, "*pixels"], labels: Integer[Tensor, "*pixels"], classes: int
) -> Int64[Tensor, "{classes} {classes}"]:
    """Pixels by label (row) and prediction (column); those labeled VOID do not count."""
    counted = labels != VOID
    pairs = labels[counted].long() * classes + predicted[counted]
    return torch.bincount(pairs, minlength=classes * classes).reshape(classes, classes)


def score(confusion: Int64[Tensor, "classes classes"]) -> Segmentation:
    """Intersection over union of each class, and their mean, from all pixels of a set at once.

    Raises:
        UserError: there is no pixel.
    """
    if not confusion.any():
        raise UserError("The test set has no labeled pixel to score.")
    intersection = confusion.diagonal().double()
    union = confusion.sum(dim=0) + confusion.sum(dim=1) - intersection
    iou = 100 * intersection / union  # 0/0 = nan: occurs in neither
    accuracy = 100 * intersection.sum() / confusion.sum()
    return Segmentation(iou.nanmean().item(), tuple(iou.tolist()), accuracy.item(), confusion)
