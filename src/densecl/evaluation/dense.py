"""Judging feature maps by the labels of pixels, in the same way for every backbone and every task.

A frozen backbone goes once over the training images and once over the test images. A probe learns from the training
maps to score each class in each cell. The scores are upsampled bilinearly to the pixels, and the highest wins. The mean
IoU is over all pixels of the test set. Several probes share the two passes.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Hashable, Iterator, Mapping, Sequence
from typing import NamedTuple, TypeVar

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64, Integer, UInt8
from torch import Tensor, nn

from densecl.borrowed import evaluating
from densecl.errors import UserError
from densecl.evaluation.floor import Floor, floor_of
from densecl.evaluation.labeled import VOID, LabeledFiles, unknown_label
from densecl.evaluation.resampling import Tally
from densecl.evaluation.watched import watched
from densecl.names import shown
from densecl.normalization import Normalization

Key = TypeVar("Key", bound=Hashable)

#: An image (uint8 or uint16 "channels height width") and its label map (integers "height width").
Labeled = tuple[Tensor, Tensor]

#: A training set is refused if its feature maps would need more memory.
MAX_FEATURE_BYTES = 8 * 1024**3


class LabeledMaps(NamedTuple):
    """Feature maps of images, and the images' label maps."""

    features: Float[Tensor, "images channels rows cols"]
    labels: UInt8[Tensor, "images height width"]  # VOID does not count

    def take(self, images: Sequence[int]) -> LabeledMaps:
        """Those of some of the images."""
        return LabeledMaps(self.features[list(images)], self.labels[list(images)])


#: From feature maps "batch channels rows cols" to scores of the classes "batch classes rows cols".
Classify = Callable[[Tensor], Tensor]

#: Learns from the training maps, given the number of classes.
Fit = Callable[[LabeledMaps, int], Classify]


class Segmentation(NamedTuple):
    """How well label maps were predicted."""

    miou: float  # percent, mean over the classes that occur in the labels or the predictions
    per_class_iou: tuple[float, ...]  # percent; nan for a class that occurs in neither
    pixel_accuracy: float  # percent
    confusion: Int64[Tensor, "classes classes"]  # pixels by label (row) and prediction (column)
    by_image: Tally | None = None  # the same of each image, if it was asked for

    @property
    def floor(self) -> Floor:
        """What one class everywhere would score on the same pixels."""
        return floor_of(self.confusion.sum(dim=1).tolist())

    def scores(self) -> dict[str, float]:
        """The numbers as they stand in the file of results, with the IoU of each class."""
        each = {f"iou_{label}": iou for label, iou in enumerate(self.per_class_iou)}
        return {"miou": self.miou, "pixel_accuracy": self.pixel_accuracy, **each}


def judge(
    backbone: nn.Module,
    train: Sequence[Labeled],
    test: Sequence[Labeled],
    probes: Mapping[Key, Fit],
    *,
    classes: int,
    normalization: Normalization,
    ignore: Collection[int] = (),
    subsets: Mapping[str, Collection[int]] | None = None,
    by_image: Collection[Key] = (),
    batch_size: int = 32,
    title: str | None = None,
) -> dict[Key, dict[str, Segmentation]]:
    """Fit each probe to the feature maps of `train` and score it on those of `test`.

    Args:
        backbone: any module that returns a feature map "batch channels rows cols"; left as it was.
        train: images and label maps, all of one size. Their feature maps are kept in memory, on the backbone's device.
        test: the same, of any one size.
        probes: what learns, each under a key of the caller's.
        classes: number of classes; labels are 0 to classes - 1.
        normalization: the one that the backbone was trained with.
        ignore: labels of pixels that count neither in training nor in the score. 255 is always one of them.
        subsets: names and indices of parts of `test` that also get a score of their own.
        by_image: keys of the probes whose counts of each image are kept, two for each class.
        batch_size: images that go through the backbone at a time.
        title: stands in front of the progress on stderr. None: no progress is shown.

    Returns:
        For each key the scores on "all" of `test` and on each of the subsets.

    Raises:
        UserError: an empty set, images of different sizes, a label that is neither a class nor ignored, feature maps
            beyond `MAX_FEATURE_BYTES`.
    """
    if len(train) == 0 or len(test) == 0:
        raise UserError("There are no labeled images to learn from or none to score on.")
    with evaluating(backbone):
        told = None if title is None else f"{title} the training images"
        maps = extract(backbone, train, normalization, classes, ignore, batch_size, told)
        classifiers = {name: probe(maps, classes) for name, probe in probes.items()}
        del maps
    return score_test(
        backbone,
        test,
        classifiers,
        classes=classes,
        normalization=normalization,
        ignore=ignore,
        subsets=subsets,
        by_image=by_image,
        batch_size=batch_size,
        title=None if title is None else f"{title} the test images",
    )


def score_test(
    module: nn.Module,
    test: Sequence[Labeled],
    classifiers: Mapping[Key, Classify],
    *,
    classes: int,
    normalization: Normalization,
    ignore: Collection[int],
    subsets: Mapping[str, Collection[int]] | None,
    by_image: Collection[Key] = (),
    batch_size: int,
    title: str | None = None,
) -> dict[Key, dict[str, Segmentation]]:
    """The second half of `judge`, whose arguments these are: one pass over `test`, scored for each classifier."""
    groups: dict[str, Collection[int]] = {"all": range(len(test)), **(subsets or {})}
    confusions = {
        name: {group: torch.zeros(classes, classes, dtype=torch.int64) for group in groups} for name in classifiers
    }
    tallies = {name: Tally.empty(len(test), classes) for name in by_image}
    index = 0
    with evaluating(module):
        batches = _batches(module, test, normalization, classes, ignore, batch_size)
        for features, labels in watched(batches, len(test), batch_size, title):
            for name, classify in classifiers.items():
                for offset, (scores, label) in enumerate(zip(classify(features), labels, strict=True)):
                    predicted = upsample(scores[None], *label.shape).argmax(dim=1)[0]
                    counts = confusion_matrix(predicted, label, classes).cpu()
                    for group, members in groups.items():
                        if index + offset in members:
                            confusions[name][group] += counts
                    if name in tallies:
                        tallies[name].set(index + offset, *intersection_and_union(counts).numpy())
            index += len(labels)
    return {
        name: {
            group: score(confusion)._replace(
                by_image=tallies[name].take(sorted(groups[group])) if name in tallies else None
            )
            for group, confusion in by_group.items()
        }
        for name, by_group in confusions.items()
    }


def extract(
    backbone: nn.Module,
    labeled: Sequence[Labeled],
    normalization: Normalization,
    classes: int,
    ignore: Collection[int],
    batch_size: int,
    title: str | None = None,
) -> LabeledMaps:
    """Feature maps and label maps of all images, on the backbone's device. The arguments are those of `judge`."""
    maps: LabeledMaps | None = None
    start = 0
    batches = _batches(backbone, labeled, normalization, classes, ignore, batch_size)
    for features, labels in watched(batches, len(labeled), batch_size, title):
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
    normalization: Normalization,
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
        yield LabeledMaps(backbone(normalize(images, normalization, device)).float(), labels.to(device))


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
    """The device of a module's parameters; the CPU if it has none."""
    return next((parameter.device for parameter in module.parameters()), torch.device("cpu"))


def normalize(
    images: Sequence[Tensor], normalization: Normalization, device: torch.device
) -> Float[Tensor, "batch channels height width"]:
    """A batch for a backbone from eight- or sixteen-bit images of one size."""
    pixels = torch.stack([image.to(device).float() / torch.iinfo(image.dtype).max for image in images])
    mean, std = (torch.tensor(values, device=device)[:, None, None] for values in normalization)
    return (pixels - mean) / std


def checked(
    labels: Integer[Tensor, "height width"], classes: int, ignore: Collection[int], name: str
) -> UInt8[Tensor, "height width"]:
    """The label map with VOID for each pixel that does not count.

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


def label_fractions(
    labels: UInt8[Tensor, "images height width"], classes: int, rows: int, cols: int
) -> Float[Tensor, "images classes {rows} {cols}"]:
    """The fraction of each cell's pixels that each class has. The sum is less than 1 where pixels do not count."""
    fractions = []
    for label in labels:  # one at a time, because the one-hot pixels of many images are large
        one_hot = F.one_hot(label.masked_fill(label == VOID, classes).long(), classes + 1)[..., :classes]
        fractions.append(F.adaptive_avg_pool2d(one_hot.permute(2, 0, 1).float(), (rows, cols)))
    return torch.stack(fractions)


def upsample(
    scores: Float[Tensor, "images classes rows cols"], height: int, width: int
) -> Float[Tensor, "images classes {height} {width}"]:
    """Bilinearly, with the centers of the cells at their places in the image."""
    return F.interpolate(scores, size=(height, width), mode="bilinear", align_corners=False)


def confusion_matrix(
    predicted: Integer[Tensor, "*pixels"], labels: Integer[Tensor, "*pixels"], classes: int
) -> Int64[Tensor, "{classes} {classes}"]:
    """Numbers of pixels by label (row) and prediction (column). Pixels labeled VOID do not count."""
    counted = labels != VOID
    pairs = labels[counted].long() * classes + predicted[counted]
    return torch.bincount(pairs, minlength=classes * classes).reshape(classes, classes)


def intersection_and_union(confusion: Int64[Tensor, "classes classes"]) -> Int64[Tensor, "2 classes"]:
    """Pixels of each class that are both labeled and predicted so, and that are either. Over images both add up."""
    intersection = confusion.diagonal()
    return torch.stack([intersection, confusion.sum(dim=0) + confusion.sum(dim=1) - intersection])


def score(confusion: Int64[Tensor, "classes classes"]) -> Segmentation:
    """Intersection over union of each class, and its mean, over all pixels of a set at once.

    Raises:
        UserError: there is no pixel.
    """
    if not confusion.any():
        raise UserError("The test set has no labeled pixel to score.")
    intersection, union = intersection_and_union(confusion)
    iou = 100 * intersection.double() / union  # 0/0 is nan: the class occurs in neither
    accuracy = 100 * intersection.sum() / confusion.sum()
    return Segmentation(iou.nanmean().item(), tuple(iou.tolist()), accuracy.item(), confusion)
