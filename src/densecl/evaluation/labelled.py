"""Images with a label for every pixel, from files in the usual layouts."""

from __future__ import annotations

import fnmatch
import os
from collections.abc import Collection, Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Shaped, UInt8
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from densecl.errors import UserError, nearest
from densecl.images.decode import BadImage, decode, measure
from densecl.images.formats import EXTENSIONS

#: Label of pixels that never count, as in PASCAL VOC.
VOID = 255

#: Larger label maps are refused before their pixels are decoded.
MAX_PIXELS = 100_000_000

#: What a label map's file may be called: no format that loses labels.
LABEL_EXTENSIONS = (".png", ".bmp", ".tif", ".tiff")

#: Splits that are looked for to score on, when none is named.
TEST_SPLITS = ("test", "val")


class LabelledFiles(Sequence, Dataset):
    """Pairs of an image file and a file of its label map, read when asked for.

    Label maps are eight-bit images (grayscale or palette) whose values are the classes.

    Args:
        pairs: paths of images and of their label maps.
        channels: of every image that is read.
        size: (width, height) to resize to, images bilinearly, labels to the nearest pixel. Not given: as they are.

    Raises:
        UserError: reading an item: a file that cannot be used, or an image and a label map of different size.
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
        labels = _read_labels(label_path)
        if image.shape[1:] != labels.shape:
            raise UserError(f"{image_path} is {_size(image[0])}, but its label map {label_path} is {_size(labels)}.")
        if self.size is not None:
            image = resize(image, self.size)
            labels = F.interpolate(labels[None, None], size=self.size[::-1], mode="nearest-exact")[0, 0]
        return image, labels

    def resized(self, size: tuple[int, int]) -> LabelledFiles:
        """The same files, resized to (width, height)."""
        return LabelledFiles(self.pairs, channels=self.channels, size=size)

    def take(self, images: Sequence[int]) -> LabelledFiles:
        """Some of the images."""
        return LabelledFiles([self.pairs[index] for index in images], channels=self.channels, size=self.size)

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
                raise UserError(
                    f"The images differ in size: {self.pairs[0][0].name} is {first[0]}x{first[1]},"
                    f" {path.name} is {size[0]}x{size[1]}. Give one for all, such as --image-size 512x512."
                )
        assert first is not None, "open_labelled returns no empty set"
        return first

    def count_classes(self, ignore: Collection[int] = ()) -> int:
        """One more than the highest label that occurs, labels to ignore aside.

        Raises:
            UserError: no pixel has a label.
        """
        present = torch.zeros(256, dtype=torch.bool)
        for _, path in self.pairs:
            present[_read_labels(path).flatten().long().unique()] = True
        present[[VOID, *ignore]] = False
        if not present.any():
            raise UserError(f"{self.pairs[0][1].parent} holds no label but those to ignore.")
        return int(present.nonzero().max()) + 1


def open_labelled(data: Path | str, split: str | None = None, *, channels: int = 3) -> LabelledFiles:
    """The labelled images of one split of a folder.

    Args:
        data: a folder in one of three layouts, tried in this order:
            ``SPLIT.txt`` with a line "image label" for each image, paths relative to the list's folder and without
            spaces, or a name without spaces for files ``images/name.*`` and ``labels/name.*``;
            PASCAL VOC (``ImageSets/Segmentation/SPLIT.txt``, ``JPEGImages``, ``SegmentationClass``);
            ``images/SPLIT`` and ``labels/SPLIT`` with files of the same name but for the extension.
        split: its name, or the path of a list file of the first kind. Not given: the one to score on, "test" or "val".
        channels: of every image that is read.

    Raises:
        UserError: there is nothing there, or the split lacks a file.
    """
    data = Path(data).expanduser()
    if not data.is_dir():
        raise UserError(f"{data}: no such folder of labelled images.")
    pairs = _find_pairs(data, scored_split(data, _splits(data)) if split is None else split)
    if not pairs:
        raise UserError(f"{data}: the split {split} is empty.")
    return LabelledFiles(pairs, channels=channels)


def scored_split(data: Path, splits: Collection[str]) -> str:
    """The one of a folder's splits to score on where none is named.

    Raises:
        UserError: none of them is for that.
    """
    found = [name for name in TEST_SPLITS if name in splits]
    if not found:
        raise UserError(
            f"{data} has neither a test nor a val split to score on. Name one with --test-split.{what_there_is(splits)}"
        )
    return found[0]


def what_there_is(splits: Collection[str], asked: str = "") -> str:
    """The end of a message about a split that is missing: the others, and which of them was perhaps meant."""
    return f" It has {', '.join(sorted(splits))}.{nearest(asked, splits)}" if splits else ""


def is_labelled(data: Path) -> bool:
    """Whether a folder has label maps in one of these layouts."""
    if (data / "SegmentationClass").is_dir() or all((data / name).is_dir() for name in ("images", "labels")):
        return True
    lists = [data / f"{split}.txt" for split in ("train", *TEST_SPLITS) if (data / f"{split}.txt").is_file()]
    return any(_is_pair(line.split()) for path in lists for _, line in read_lines(path)[:1])


def _is_pair(words: Sequence[str]) -> bool:
    """Not of an image and the number of its class, as in other lists."""
    return len(words) == 2 and Path(words[1]).suffix.lower() in EXTENSIONS


def _find_pairs(data: Path, split: str) -> list[tuple[Path, Path]]:
    if split.endswith(".txt"):
        return _listed(Path(split).expanduser())
    if (data / f"{split}.txt").is_file():
        return _listed(data / f"{split}.txt")
    if (data / "ImageSets/Segmentation" / f"{split}.txt").is_file():
        return _listed_by_voc(data, data / "ImageSets/Segmentation" / f"{split}.txt")
    if (data / "images" / split).is_dir():
        return _paired_by_name(data / "images" / split, data / "labels" / split)
    raise UserError(
        f"{data} has no split '{split}': looked for {split}.txt, ImageSets/Segmentation/{split}.txt and images/{split}."
        f"{what_there_is(_splits(data), split)}"
    )


def _splits(data: Path) -> list[str]:
    lists = [*data.glob("*.txt"), *data.glob("ImageSets/Segmentation/*.txt")]
    return sorted({path.stem for path in lists} | {path.name for path in data.glob("images/*") if path.is_dir()})


def _listed(listing: Path) -> list[tuple[Path, Path]]:
    pairs = []
    for place, line in read_lines(listing):
        words = line.split()
        if len(words) > 2:
            raise UserError(f"{place}: expected 'image label' or a name, found {len(words)} words.")
        if len(words) == 2:
            image, label = (existing(listing.parent / word, place) for word in words)
        else:
            image = any_extension(listing.parent / "images" / line, place)
            label = any_extension(listing.parent / "labels" / line, place, LABEL_EXTENSIONS)
        pairs.append((image, label))
    return pairs


def _listed_by_voc(data: Path, listing: Path) -> list[tuple[Path, Path]]:
    return [
        (
            any_extension(data / "JPEGImages" / name, place),
            any_extension(data / "SegmentationClass" / name, place, LABEL_EXTENSIONS),
        )
        for place, name in read_lines(listing)
    ]


def read_lines(listing: Path) -> list[tuple[str, str]]:
    """(where it stands, what it says) of each line of a text file that is not empty.

    Raises:
        UserError: it cannot be read.
    """
    try:
        lines = listing.read_text(encoding="utf-8-sig").splitlines()
    except OSError as error:
        raise UserError(f"{listing} cannot be read: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{listing} is not a text file.") from error
    return [(f"{listing}, line {number}", line.strip()) for number, line in enumerate(lines, 1) if line.strip()]


def existing(path: Path, place: str) -> Path:
    """The path, if there is such a file.

    Raises:
        UserError: there is none; `place` says who names it.
    """
    if not os.path.isfile(path):  # Path.is_file raises for a name that is too long
        raise UserError(f"{place}: there is no file {shown(path)}.")
    return path


def shown(path: Path) -> str:
    """A path for a message: its end, if it is longer than any that can be."""
    return str(path)[-200:]


def any_extension(path: Path, place: str, extensions: Sequence[str] = EXTENSIONS) -> Path:
    """The file of this name with one of the extensions, the first that there is, in small letters or capitals.

    Raises:
        UserError: there is none; `place` says who names it.
    """
    candidates = (Path(f"{path}{each}") for extension in extensions for each in (extension, extension.upper()))
    found = next(filter(os.path.isfile, candidates), None)
    if found is None:
        raise UserError(f"{place}: there is no image {shown(path)}.*.")
    return found


def _paired_by_name(images: Path, labels: Path) -> list[tuple[Path, Path]]:
    label_of = {path.stem: path for path in sorted(labels.glob("*")) if path.suffix.lower() in EXTENSIONS}
    pairs = []
    for path in sorted(images.iterdir()):
        if path.suffix.lower() in EXTENSIONS:
            if path.stem not in label_of:
                raise UserError(f"{path} has no label map {path.stem}.* in {labels}.")
            pairs.append((path, label_of[path.stem]))
    return pairs


def resize(
    image: Shaped[Tensor, "channels _ _"], size: tuple[int, int]
) -> Shaped[Tensor, "channels {size[1]} {size[0]}"]:
    """An eight- or sixteen-bit image at (width, height), bilinearly and without aliasing."""
    if image.shape[1:] == size[::-1]:
        return image
    exact = F.interpolate(image[None].float(), size=size[::-1], mode="bilinear", antialias=True)[0]
    return exact.round().to(image.dtype)


def decoded(path: Path, channels: int) -> Shaped[Tensor, "{channels} height width"]:
    """`decode` of an image that cannot be left out.

    Raises:
        UserError: it cannot be used.
    """
    try:
        return decode(path, channels)
    except BadImage as error:
        raise UserError(f"{path} cannot be used: {error}") from error


def measured(path: Path, channels: int) -> tuple[int, int]:
    """(width, height) of an image, from its header.

    Raises:
        UserError: it cannot be used.
    """
    try:
        height, width = measure(path, channels)
    except BadImage as error:
        raise UserError(f"{path} cannot be used: {error}") from error
    return width, height


def _read_labels(path: Path) -> UInt8[Tensor, "height width"]:
    try:
        with Image.open(path) as file:
            if file.mode not in ("L", "P"):
                raise UserError(f"{path}: a label map is an eight-bit image of classes, not {file.mode}.")
            if file.width * file.height > MAX_PIXELS:
                raise UserError(f"{path}: {file.width}x{file.height} pixels are too many for a label map.")
            return torch.from_numpy(np.array(file))
    except UserError:
        raise
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise UserError(f"{path} cannot be read as a label map: {error}") from error


def _size(plane: Tensor) -> str:
    return f"{plane.shape[1]}x{plane.shape[0]}"
