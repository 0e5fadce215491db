"""Images with a label for every pixel, read from files."""

from __future__ import annotations

import fnmatch
import statistics
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Shaped, UInt8
from torch import Tensor
from torch.utils.data import Dataset

from densecl.errors import UserError
from densecl.evaluation.files import decoded, measured, scored_split, what_there_is
from densecl.evaluation.label_map import read_label_map
from densecl.evaluation.pixel_layouts import LAYOUTS
from densecl.names import listing, shown

#: Label of pixels that never count, as in PASCAL VOC.
VOID = 255

#: More labels than this, which reach up to nearly white, are taken for the gray values of a blurred mask.
FEW = 32
NEARLY_WHITE = 250

#: Labels beside 255 are also taken for gray values if they reach this far and leave out half of the numbers. So 0, 127
#: and 255 are refused.
GRAY = 127


class LabeledFiles(Sequence, Dataset):
    """Image files and their label maps. A pair is read when its item is asked for.

    Args:
        pairs: paths of images and of their label maps.
        channels: of every image that is read.
        size: (width, height) to resize to, images bilinearly, labels to the nearest pixel. Not given: no resizing.

    Raises:
        UserError: reading an item that cannot be used, or whose label map has another size than the image.
    """

    def __init__(
        self, pairs: Sequence[tuple[Path, Path]], *, channels: int = 3, size: tuple[int, int] | None = None
    ) -> None:
        self.pairs = tuple(pairs)
        self.channels = channels
        self.size = size

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, index: int
    ) -> tuple[Shaped[Tensor, "channels height width"], UInt8[Tensor, "height width"]]:
        image_path, label_path = self.pairs[index]
        image = decoded(image_path, self.channels)
        labels = read_label_map(label_path)
        _check_sizes(image_path, (image.shape[2], image.shape[1]), label_path, labels)
        if self.size is not None:
            image = resize(image, self.size)
            labels = F.interpolate(labels[None, None], size=self.size[::-1], mode="nearest-exact")[0, 0]
        return image, labels

    def resized(self, size: tuple[int, int]) -> LabeledFiles:
        """The same files, resized to (width, height)."""
        return LabeledFiles(self.pairs, channels=self.channels, size=size)

    def take(self, images: Sequence[int]) -> LabeledFiles:
        """Some of the images."""
        return LabeledFiles([self.pairs[index] for index in images], channels=self.channels, size=self.size)

    def matching(self, pattern: str) -> list[int]:
        """Indices of the images whose file name, without or with its extension, matches a pattern such as "Seq05V*"."""
        names = [image.name for image, _ in self.pairs]
        return [
            index
            for index, name in enumerate(names)
            if fnmatch.fnmatchcase(name, pattern) or fnmatch.fnmatchcase(Path(name).stem, pattern)
        ]

    def common_size(self) -> tuple[int, int]:
        """(width, height) of every image, from the headers alone.

        Raises:
            UserError: they differ.
        """
        first: tuple[int, int] | None = None
        for path, _ in self.pairs:
            size = measured(path, self.channels)
            first = first or size
            if size != first:
                width, height = self.usual_size()
                raise UserError(
                    f"The images differ in size: {shown(self.pairs[0][0].name)} is {first[0]}x{first[1]},"
                    f" {shown(path.name)} is {size[0]}x{size[1]}. Give one for all: --image-size {width}x{height} is"
                    " the usual one here."
                )
        assert first is not None, "open_labeled returns no empty set"
        return first

    def usual_size(self) -> tuple[int, int]:
        """(width, height) in the middle of all images, in multiples of 32: whole cells of nearly any network."""
        sizes = zip(*(measured(path, self.channels) for path, _ in self.pairs), strict=True)
        width, height = (32 * max(1, round(statistics.median(sides) / 32)) for sides in sizes)
        return width, height

    def survey(self) -> dict[int, Path]:
        """All labels that occur, and for each the first label map that holds it.

        This reads every label map, and the size of every image.

        Raises:
            UserError: a label map cannot be used, or has another size than its image.
        """
        found: dict[int, Path] = {}
        for image_path, label_path in self.pairs:
            labels = read_label_map(label_path)
            _check_sizes(image_path, measured(image_path, self.channels), label_path, labels)
            for label in torch.bincount(labels.flatten(), minlength=256).nonzero().flatten().tolist():
                found.setdefault(label, label_path)
        return found


class ImagesAlone(Sequence, Dataset):
    """The images of `LabeledFiles` at their own size. Label maps are not opened."""

    def __init__(self, files: LabeledFiles) -> None:
        self.files = files

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, index: int
    ) -> Shaped[Tensor, "channels height width"]:
        return decoded(self.files.pairs[index][0], self.files.channels)


def check_classes(
    found: Mapping[int, Path], purpose: str, *, ignore: Collection[int] = (), classes: int | None = None
) -> None:
    """Check that the labels of a split can be scored.

    Args:
        found: what `LabeledFiles.survey` returned for the split.
        purpose: what the split is for, as the message says it: "to learn from".
        ignore: labels that do not count. 255 is always one of them.
        classes: the number of classes. Not given: the labels must only look like classes.

    Raises:
        UserError: there are fewer than two classes, a label is none of them, or the labels look like gray values.
    """
    counted = sorted(set(found) - {VOID, *ignore})
    if classes is not None and counted and counted[-1] >= classes:
        raise unknown_label(shown(found[counted[-1]]), counted[-1], classes)
    if classes is None and _look_gray(counted, VOID in found):
        beside = f", beside {VOID}, which stands for pixels that do not count" if VOID in found else ""
        raise UserError(
            f"The label maps {purpose} hold {len(counted)} labels, up to {counted[-1]}{beside}. Are they gray values,"
            " such as of masks that were resized or stored as JPEG? Then number the classes from 0 on; of masks of 0"
            f" and {VOID}, with Pillow for each file: Image.open(file).point([0] * 128 + [1] * 128).save(file)."
            f" If they are classes: --classes {counted[-1] + 1}."
        )
    if len(counted) >= 2:
        return
    message = f"The label maps {purpose} hold {f'only the label {counted[0]}' if counted else 'no label'}"
    if VOID in found:
        free = next(label for label in range(VOID) if label not in found and label not in ignore)
        message += (
            f" beside {'those to ignore and ' if ignore else ''}{VOID}, which stands for pixels that do not count."
            f" If {VOID} is a class, as in masks of 0 and {VOID}, give it a free number, with Pillow for each file:"
            f" Image.open(file).point([*range({VOID}), {free}]).save(file)"
        )
    else:
        message += f"{' beside those to ignore' if ignore else ''}; a score needs two classes"
    raise UserError(message + ".")


def _look_gray(counted: Sequence[int], void: bool) -> bool:
    """Whether sorted labels look like gray values rather than classes. `void`: 255 occurs beside them."""
    if len(counted) > FEW and counted[-1] >= NEARLY_WHITE:
        return True
    return void and len(counted) >= 2 and counted[-1] >= GRAY and len(counted) <= (counted[-1] + 1) // 2


def unknown_label(name: str, label: int, classes: int) -> UserError:
    """The error for a label that is neither a class nor ignored."""
    return UserError(
        f"{name} holds the label {label}, but there are {classes} classes (0 to {classes - 1})."
        f" If it is none: --ignore {label}."
    )


def open_labeled(data: Path | str, split: str | None = None, *, channels: int = 3) -> LabeledFiles:
    """The labeled images of one split of a folder.

    Args:
        data: a folder in one of the `LAYOUTS`.
        split: its name, or the path of a list file. Not given: the one to score on, "test", "val" or "valid".
        channels: of every image that is read.

    Raises:
        UserError: there is no such split, or it lacks a file.
    """
    data = Path(data).expanduser()
    if not data.is_dir():
        raise UserError(f"{shown(data)}: no such folder of labeled images.")
    splits = splits_of(data)
    split = scored_split(data, splits) if split is None else split
    pairs = next((found for layout in LAYOUTS if (found := layout.pairs(data, split)) is not None), None)
    if pairs is None:
        files = (layout.files.replace("SPLIT", shown(split)) for layout in LAYOUTS)
        raise UserError(
            f"{shown(data)} has no split '{shown(split)}': looked for {listing(files, 'and')}."
            f"{what_there_is(splits, split)}"
        )
    if not pairs:
        raise UserError(f"{shown(data)}: the split {shown(split)} is empty.")
    return LabeledFiles(pairs, channels=channels)


def size_to_give(data: Path | str, *, channels: int = 3) -> tuple[int, int] | None:
    """(width, height) that `evaluate` asks for because the images of a folder differ in size; None if they do not.

    Both it and its error look at all images of the splits that are used unless others are named.
    """
    try:
        both = [open_labeled(data, split, channels=channels) for split in ("train", None)]
        files = LabeledFiles([pair for each in both for pair in each.pairs], channels=channels)
        alike = len({measured(path, channels) for path, _ in files.pairs}) == 1
        return None if alike else files.usual_size()
    except UserError:  # they are no longer there
        return None


def splits_of(data: Path) -> list[str]:
    """The names of a folder's splits, sorted."""
    return sorted({name for layout in LAYOUTS for name in layout.splits(data)})


def is_labeled(data: Path) -> bool:
    """Whether a folder has label maps in one of the `LAYOUTS`."""
    return any(layout.is_there(data) for layout in reversed(LAYOUTS))  # lists last, because they must be read


def resize(
    image: Shaped[Tensor, "channels _ _"], size: tuple[int, int]
) -> Shaped[Tensor, "channels {size[1]} {size[0]}"]:
    """An eight- or sixteen-bit image at (width, height), bilinearly and without aliasing."""
    if image.shape[1:] == size[::-1]:
        return image
    exact = F.interpolate(image[None].float(), size=size[::-1], mode="bilinear", antialias=True)[0]
    return exact.round().to(image.dtype)


def _check_sizes(image: Path, size: tuple[int, int], label: Path, labels: UInt8[Tensor, "height width"]) -> None:
    if size != (labels.shape[1], labels.shape[0]):
        raise UserError(
            f"{shown(image)} is {size[0]}x{size[1]}, but its label map {shown(label)} is"
            f" {labels.shape[1]}x{labels.shape[0]}."
        )
