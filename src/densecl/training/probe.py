"""A few labeled images that tell during a run how good its backbone is: `--probe`.

Retrieval, as `evaluate --task retrieval` has it: each cell of some images takes the labels of the most similar cells of
others. Nothing is trained, so it takes a moment.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Int64, Shaped, UInt8
from torch import Tensor, nn
from torch.utils.data import Dataset

from densecl.config.settings import Settings
from densecl.errors import UserError
from densecl.evaluation.dense import Classify, LabeledMaps, judge
from densecl.evaluation.files import measured
from densecl.evaluation.labeled import VOID, LabeledFiles, check_classes, open_labeled, splits_of
from densecl.evaluation.split_places import ASKED
from densecl.evaluation.tasks.retrieval import fit_retrieval
from densecl.model import Backbone
from densecl.names import counted, shown
from densecl.normalization import Normalization
from densecl.training.early import told_as_probe

#: Images whose labels are remembered, and images that are asked about; fewer if there are fewer.
IMAGES = 20

#: The longer side of an image, in sides of a view. Larger ones have more cells, and cost more.
SIDE = 1.5

#: ... or so many cells, if these are more pixels, but not more than the image has. With 4x4 cells, all of them got the
#: label of the ground on pictures of nuclei.
CELLS = 8

#: Cells that are remembered at most, so that looking through them costs little beside the backbone.
MEMORY_CELLS = 4096

#: Images that go through the backbone at a time.
BATCH_SIZE = 8

#: A measurement is blind if it finds less than this fraction of the pixels that have another label than the one it
#: gives most. Its mIoU then is that of one label everywhere, whatever the weights.
FOUND = 0.01


class Probe:
    """Labeled images to remember and others to ask about, all of one size.

    Args:
        train: to remember.
        test: to ask about.
        split: the name of the latter's split.
        classes: labels are 0 to classes - 1.
        ignore: labels that do not count.
        normalization: of the run.

    Attributes:
        seconds: of computing that the last measurement took.
        blind: whether nearly all pixels got the same label in it, so that it cannot tell good weights from bad ones.
    """

    def __init__(
        self,
        train: LabeledFiles,
        test: LabeledFiles,
        *,
        split: str,
        classes: int,
        ignore: Sequence[int],
        normalization: Normalization,
    ) -> None:
        self.files = train, test
        self.split = split
        self.classes = classes
        self.ignore = tuple(ignore)
        self.normalization = normalization
        self.seconds = 0.0
        self.blind = False
        self._read: dict[tuple[int, int], tuple[Tensor, Tensor]] = {}  # images stay in memory: they are few and small

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) of the images."""
        size = self.files[0].size
        assert size is not None
        return size

    def passes(self, image_size: int) -> float:
        """What it costs, in forward passes of a view of this side."""
        width, height = self.size
        return sum(map(len, self.files)) * width * height / image_size**2

    def describe(self) -> str:
        """A line for the user."""
        (train, test), (width, height) = self.files, self.size
        return (
            f"probe: retrieval on {len(test)} labeled images of {shown(self.split)}, by the labels of {len(train)} of"
            f" train, {counted(self.classes, 'class')}, at {width}x{height} px"
        )

    def miou(
        self,
        backbone: Backbone,
        *,
        stop: Callable[[], bool] = lambda: False,
        show: Callable[[int, int], None] = lambda done, total: None,
    ) -> float | None:
        """mIoU in percent of the frozen backbone, which is in evaluation mode meanwhile.

        Args:
            backbone: what is judged.
            stop: is asked at every image. If it says yes, there is no number.
            show: is told at every image how many there were before, of how many.

        Returns:
            None if it was stopped.

        Raises:
            UserError: an image cannot be read any more, or no pixel has a label.
        """
        train, test = (_Images(self, number, stop, show) for number in (0, 1))
        try:
            for images in (train, test):
                for index in range(len(images)):
                    _ = images[index]
            began = time.monotonic()
            found = judge(
                _Plain(backbone),
                train,
                test,
                {"retrieval": _fit},
                classes=self.classes,
                normalization=self.normalization,
                ignore=self.ignore,
                batch_size=BATCH_SIZE,
            )
        except _Stopped:
            return None
        self.seconds = time.monotonic() - began
        score = found["retrieval"]["all"]
        self.blind = _blind(score.confusion)
        return score.miou


def _blind(confusion: Int64[Tensor, "classes classes"]) -> bool:
    """Whether hardly a pixel is found but those of the label that is given most."""
    others = torch.arange(len(confusion)) != confusion.sum(dim=0).argmax()
    there, found = confusion.sum(dim=1)[others].sum(), confusion.diagonal()[others].sum()
    return bool(found < FOUND * there) or not there


class _Stopped(Exception):
    """Somebody asked for an end in the midst."""


class _Plain(nn.Module):
    """The backbone without `torch.compile`, which would compile it once more for images of another size."""

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        self.backbone = backbone

    def forward(self, pixels: Tensor) -> Tensor:
        features = self.backbone.forward(pixels)
        assert isinstance(features, Tensor)
        return features


class _Images(Sequence, Dataset):
    """The images to remember (0) or to ask about (1), each read once."""

    def __init__(self, probe: Probe, number: int, stop: Callable[[], bool], show: Callable[[int, int], None]) -> None:
        self.probe, self.number, self.stop, self.show = probe, number, stop, show

    def __len__(self) -> int:
        return len(self.probe.files[self.number])

    def __getitem__(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, index: int
    ) -> tuple[Shaped[Tensor, "channels height width"], UInt8[Tensor, "height width"]]:
        if self.stop():
            raise _Stopped
        before = len(self.probe.files[0]) if self.number else 0
        self.show(before + index, sum(map(len, self.probe.files)))
        place = self.number, index
        if place not in self.probe._read:
            self.probe._read[place] = self.probe.files[self.number][index]
        return self.probe._read[place]


def _fit(train: LabeledMaps, classes: int) -> Classify:
    return fit_retrieval(train, classes, memory_cells=MEMORY_CELLS)


class _Files(NamedTuple):
    train: LabeledFiles
    test: LabeledFiles
    split: str  # of the latter


class ProbeLabels(NamedTuple):
    """The labels of a probe, read and checked. What is missing for a `Probe` is known once there is a backbone."""

    settings: Settings[Any]
    files: _Files
    classes: int
    ignore: tuple[int, ...]

    def probe(self, backbone: Backbone, normalization: Normalization) -> Probe:
        """
        Raises:
            UserError: the header of an image cannot be read.
        """
        train, test, split = self.files
        with told_as_probe(self.settings.probe or ""):
            size = _size(self.settings, (*train.pairs, *test.pairs), backbone)
        return Probe(
            train.resized(size),
            test.resized(size),
            split=split,
            classes=self.classes,
            ignore=self.ignore,
            normalization=normalization,
        )


def open_probe_labels(settings: Settings[Any]) -> ProbeLabels | None:
    """The labels of the probe that the settings ask for. What is wrong with them is told here, before any image of the
    run is read.

    Raises:
        UserError: they cannot be used.
    """
    if settings.probe is None:
        return None
    ignore = settings.probe_ignore or ()
    with told_as_probe(settings.probe):
        files = _files(settings)
        surveys = files.train.survey(), files.test.survey()
        for survey, purpose in zip(surveys, ("to remember", "to ask about"), strict=True):
            check_classes(survey, purpose, ignore=ignore, classes=settings.probe_classes)
    labels = set().union(*surveys) - {VOID, *ignore}
    return ProbeLabels(settings, files, settings.probe_classes or 1 + max(labels), tuple(ignore))


def probed_images(settings: Settings[Any]) -> int | None:
    """How many images the probe of a run asks about; None if it has none, or they are no longer there."""
    if settings.probe is None:
        return None
    try:
        return len(_files(settings).test)
    except UserError:
        return None


def _files(settings: Settings[Any]) -> _Files:
    """Some images of each split, from all over it, at their own sizes."""
    data = Path(settings.probe or "").expanduser()
    split = next((name for name in ASKED if data.is_dir() and name in splits_of(data)), None)
    train, test = (open_labeled(data, name, channels=settings.channels) for name in ("train", split))
    return _Files(_some(train), _some(test), split or "")


def _some(files: LabeledFiles) -> LabeledFiles:
    count = min(IMAGES, len(files))
    return files.take([number * len(files) // count for number in range(count)])


def _size(settings: Settings[Any], pairs: Sequence[tuple[Path, Path]], backbone: Backbone) -> tuple[int, int]:
    """(width, height) in whole cells: of the images' usual shape, not larger than they will be used at.

    A backbone that takes one size alone gets the square that it is trained on.
    """
    sizes = [measured(image, settings.channels) for image, _ in pairs]
    own = statistics.median(max(size) for size in sizes)
    longer = max(SIDE * settings.image_size, min(CELLS * backbone.stride, own))
    if settings.use_size is not None:
        longer = min(longer, settings.use_size)
    width_over_height = statistics.median(width / height for width, height in sizes)
    sides = longer * min(1.0, width_over_height), longer * min(1.0, 1 / width_over_height)
    width, height = (max(1, round(side / backbone.stride)) * backbone.stride for side in sides)
    try:
        backbone.grid_at(height, width)
    except UserError:
        return settings.image_size, settings.image_size
    return width, height
