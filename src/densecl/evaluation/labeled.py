"""Images with a label for every pixel, from files in the usual layouts."""

from __future__ import annotations

import fnmatch
import io
import re
import warnings
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Shaped, UInt8
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from densecl.errors import UserError
from densecl.evaluation.files import (
    EXTENSIONS,
    TEST_SPLITS,
    any_extension,
    decoded,
    existing,
    is_image,
    measured,
    read_bytes,
    read_lines,
    scored_split,
    visible,
    what_there_is,
)
from densecl.images.decode import png
from densecl.names import shown

#: Label of pixels that never count, as in PASCAL VOC.
VOID = 255

#: Larger label maps are refused before their pixels are decoded.
MAX_PIXELS = 100_000_000
MAX_BYTES = 256 * 1024**2

#: More labels than these, which reach so far, are the gray values of a blurred mask, unless somebody says otherwise.
FEW = 32
NEARLY_WHITE = 250

#: So are labels that reach so far beside 255 and leave out every second number: 0, 127 and 255 are three classes.
GRAY = 127

#: What a label map's file may be called: no format that loses labels.
LABEL_EXTENSIONS = (".png", ".bmp", ".tif", ".tiff")

#: The only readers of Pillow that see a label map, whatever its name says.
LABEL_FORMATS = ("PNG", "BMP", "TIFF")

#: What begins the files of formats that change values when they compress.
LOSSY = {b"\xff\xd8": "a JPEG", b"RIFF": "a WebP", b"\0\0\0\x0cjP": "a JPEG 2000"}

#: Ways to store small numbers, and what Pillow multiplies them by: it takes gray values for brightness.
STORED = {"L": 1, "L;4": 17, "L;2": 85, "1": 1}


class LabeledFiles(Sequence, Dataset):
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
                raise UserError(
                    f"The images differ in size: {shown(self.pairs[0][0].name)} is {first[0]}x{first[1]},"
                    f" {shown(path.name)} is {size[0]}x{size[1]}. Give one for all, such as --image-size 512x512."
                )
        assert first is not None, "open_labelled returns no empty set"
        return first

    def survey(self) -> dict[int, Path]:
        """The labels that occur, those that do not count too, and for each the first label map that holds it.

        Looks at every label map, and at the size of every image.

        Raises:
            UserError: a label map that cannot be used, or of another size than its image.
        """
        found: dict[int, Path] = {}
        for image_path, label_path in self.pairs:
            labels = _read_labels(label_path)
            _check_sizes(image_path, measured(image_path, self.channels), label_path, labels)
            for label in torch.bincount(labels.flatten(), minlength=256).nonzero().flatten().tolist():
                found.setdefault(label, label_path)
        return found


class ImagesAlone(Sequence, Dataset):
    """The images of `LabeledFiles` at their own size, for what needs no labels: label maps are not opened."""

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
    """Whether the labels that occur in a split can be scored.

    Args:
        found: what `LabeledFiles.survey` says of the split.
        purpose: what the split is for, for the message: "to learn from".
        ignore: labels that do not count; 255 is always one.
        classes: their number. Not given: any that could be one.

    Raises:
        UserError: there are not two classes, a label is none of them, or the labels look like gray values.
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
    """Whether sorted labels are rather gray values than numbers of classes; `void`: 255 occurs beside them."""
    if len(counted) > FEW and counted[-1] >= NEARLY_WHITE:
        return True
    return void and len(counted) >= 2 and counted[-1] >= GRAY and len(counted) <= (counted[-1] + 1) // 2


def unknown_label(name: str, label: int, classes: int) -> UserError:
    """The complaint about a label that is neither a class nor ignored."""
    return UserError(
        f"{name} holds the label {label}, but there are {classes} classes (0 to {classes - 1})."
        f" If it is none: --ignore {label}."
    )


def open_labelled(data: Path | str, split: str | None = None, *, channels: int = 3) -> LabeledFiles:
    """The labeled images of one split of a folder.

    Args:
        data: a folder in one of three layouts, tried in this order:
            ``SPLIT.txt`` with a line "image label" for each image, paths relative to the list's folder and without
            spaces, or a name without spaces for files ``images/name.*`` and ``labels/name.*``;
            PASCAL VOC (``ImageSets/Segmentation/SPLIT.txt``, ``JPEGImages``, ``SegmentationClass``);
            ``images/SPLIT`` and ``labels/SPLIT`` with files of the same name but for the extension, in the same
            folders below these, if there are any.
        split: its name, or the path of a list file of the first kind. Not given: the one to score on, "test" or "val".
        channels: of every image that is read.

    Raises:
        UserError: there is nothing there, or the split lacks a file.
    """
    data = Path(data).expanduser()
    if not data.is_dir():
        raise UserError(f"{shown(data)}: no such folder of labeled images.")
    split = scored_split(data, _splits(data)) if split is None else split
    pairs = _find_pairs(data, split)
    if not pairs:
        raise UserError(f"{shown(data)}: the split {shown(split)} is empty.")
    return LabeledFiles(pairs, channels=channels)


def is_labelled(data: Path) -> bool:
    """Whether a folder has label maps in one of these layouts."""
    if (data / "SegmentationClass").is_dir():
        return True
    if (data / "images").is_dir() and any(map(is_image, visible(data, "labels/**/*"))):
        return True
    lists = [data / f"{split}.txt" for split in ("train", *TEST_SPLITS) if (data / f"{split}.txt").is_file()]
    return any(_is_pair(_words(line)) for path in lists for _, line in read_lines(path)[:1])


def _is_pair(words: Sequence[str]) -> bool:
    """Not of an image and the number of its class, as in other lists."""
    return len(words) == 2 and is_image(Path(words[1]))


def _words(line: str) -> list[str]:
    """What spaces and tabs separate; names may have the other blanks of Unicode."""
    return re.split(r"[ \t]+", line)


def _find_pairs(data: Path, split: str) -> list[tuple[Path, Path]]:
    if split.endswith(".txt"):
        return _listed(Path(split).expanduser())
    if (data / f"{split}.txt").exists():
        return _listed(data / f"{split}.txt")
    if (data / "ImageSets/Segmentation" / f"{split}.txt").exists():
        return _listed_by_voc(data, data / "ImageSets/Segmentation" / f"{split}.txt")
    if (data / "images" / split).is_dir():
        return _paired_by_name(data / "images" / split, data / "labels" / split)
    raise UserError(
        f"{shown(data)} has no split '{shown(split)}': looked for {shown(split)}.txt,"
        f" ImageSets/Segmentation/{shown(split)}.txt and images/{shown(split)}.{what_there_is(_splits(data), split)}"
    )


def _splits(data: Path) -> list[str]:
    lists = [*visible(data, "*.txt"), *visible(data, "ImageSets/Segmentation/*.txt")]
    return sorted({path.stem for path in lists} | {path.name for path in visible(data, "images/*/")})


def _listed(listing: Path) -> list[tuple[Path, Path]]:
    pairs = []
    for place, line in read_lines(listing):
        words = _words(line)
        if len(words) > 2:
            raise UserError(f"{place}: expected 'image label' or a name, found {len(words)} words.")
        if len(words) == 2:
            image, label = (existing(listing.parent, word, place) for word in words)
        else:
            image = any_extension(listing.parent / "images", line, place)
            label = any_extension(listing.parent / "labels", line, place, _LABELS_FIRST)
        pairs.append((image, label))
    return pairs


def _listed_by_voc(data: Path, listing: Path) -> list[tuple[Path, Path]]:
    return [
        (
            any_extension(data / "JPEGImages", name, place),
            any_extension(data / "SegmentationClass", name, place, _LABELS_FIRST),
        )
        for place, name in read_lines(listing)
    ]


#: A label map in another format is found, too, where there is no better one, so that it is told what is wrong with it.
_LABELS_FIRST = tuple(dict.fromkeys((*LABEL_EXTENSIONS, *EXTENSIONS)))


def _paired_by_name(images: Path, labels: Path) -> list[tuple[Path, Path]]:
    return [
        (
            path,
            any_extension(
                labels / path.relative_to(images).parent, path.stem, f"{shown(path)} has no label map", _LABELS_FIRST
            ),
        )
        for path in sorted(filter(is_image, visible(images, "**/*")))
    ]


def resize(
    image: Shaped[Tensor, "channels _ _"], size: tuple[int, int]
) -> Shaped[Tensor, "channels {size[1]} {size[0]}"]:
    """An eight- or sixteen-bit image at (width, height), bilinearly and without aliasing."""
    if image.shape[1:] == size[::-1]:
        return image
    exact = F.interpolate(image[None].float(), size=size[::-1], mode="bilinear", antialias=True)[0]
    return exact.round().to(image.dtype)


def _read_labels(path: Path) -> UInt8[Tensor, "height width"]:
    name, content = shown(path), read_bytes(path, MAX_BYTES)
    for mark, kind in LOSSY.items():
        if content.startswith(mark):
            raise UserError(f"{name} is {kind}, whose compression changes labels. Store label maps as PNG.")
    try:
        picture = io.BytesIO(content)
        if content.startswith(png.SIGNATURE):  # a text or a profile must not decide about the labels
            picture = png.without_metadata(picture)
        with warnings.catch_warnings(action="ignore"), Image.open(picture, formats=LABEL_FORMATS) as file:
            if file.mode not in ("L", "P", "1"):
                raise UserError(
                    f"{name}: a label map is an eight-bit image of classes, not {file.mode}. Store the number of each"
                    " pixel's class as an eight-bit gray or palette PNG."
                )
            if file.width * file.height > MAX_PIXELS:
                raise Image.DecompressionBombError
            layout = file.tile[0].args if file.tile else None
            stored = layout if isinstance(layout, str) else layout[0] if layout else file.mode
            if file.info.get("compression") in ("jpeg", "tiff_jpeg", "webp"):
                raise UserError(f"{name}: its compression changes labels. Store label maps as PNG.")
            if file.mode != "P" and stored not in STORED:
                raise UserError(f"{name}: its labels are stored in an unusual way ({stored}). Store them as PNG.")
            return torch.from_numpy(np.array(file, dtype=np.uint8) // STORED.get(stored, 1))
    except UserError:
        raise
    except Image.UnidentifiedImageError as error:
        raise UserError(f"{name} cannot be read as a label map: it is no PNG, BMP or TIFF.") from error
    except Image.DecompressionBombError as error:
        raise UserError(f"{name} has more than {MAX_PIXELS} pixels, which are too many for a label map.") from error
    except Exception as error:  # decoders raise nearly everything for a damaged file
        raise UserError(f"{name} cannot be read as a label map: it is damaged ({shown(error)}).") from error


def _check_sizes(image: Path, size: tuple[int, int], label: Path, labels: UInt8[Tensor, "height width"]) -> None:
    if size != (labels.shape[1], labels.shape[0]):
        raise UserError(
            f"{shown(image)} is {size[0]}x{size[1]}, but its label map {shown(label)} is"
            f" {labels.shape[1]}x{labels.shape[0]}."
        )
