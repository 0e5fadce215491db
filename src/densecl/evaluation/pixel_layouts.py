"""Where the images of a split and their label maps are. A layout is a row of `LAYOUTS`, with three functions.

To add one: write its functions here, and add its row. A split is read in the first layout that has it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from densecl.errors import UserError
from densecl.evaluation.files import EXTENSIONS, TEST_SPLITS, any_extension, existing, is_image, read_lines, visible
from densecl.evaluation.label_map import LABEL_EXTENSIONS
from densecl.evaluation.split_places import FOLDERS, LISTS, VOC
from densecl.names import shown

#: An image and its label map.
Pair = tuple[Path, Path]

#: A label map in another format is found where there is no better one, so that the user is told what is wrong with it.
_LABELS_FIRST = tuple(dict.fromkeys((*LABEL_EXTENSIONS, *EXTENSIONS)))


def _label_map(folder: Path, name: str, place: str) -> Path:
    return any_extension(folder, name, place, _LABELS_FIRST, what="label map")


class Layout(NamedTuple):
    """A way to store images and their label maps."""

    files: str  # what is looked for, with SPLIT for the name of a split
    is_there: Callable[[Path], bool]  # whether a folder has label maps in this layout
    splits: Callable[[Path], Iterable[str]]  # the splits of a folder
    pairs: Callable[[Path, str], list[Pair] | None]  # the files of a split; None: the folder does not have it


# --- lists: train.txt, with a line for each image -------------------------------------------------------------------


def _has_lists(data: Path) -> bool:
    """Whether a list names pairs. In other lists the second word is the number of a class."""
    lists = [data / f"{split}.txt" for split in ("train", *TEST_SPLITS) if (data / f"{split}.txt").is_file()]
    firsts = (_words(line) for path in lists for _, line in read_lines(path)[:1])
    return any(len(words) == 2 and is_image(Path(words[1])) for words in firsts)


def _list_names(data: Path) -> Iterable[str]:
    return (path.stem for path in visible(data, "*.txt"))


def _listed(data: Path, split: str) -> list[Pair] | None:
    """A line is "image label", relative to the list; or a name of ``images/name.*`` and ``labels/name.*``.

    The split may also be the path of a list.
    """
    listing = Path(split).expanduser() if split.endswith(".txt") else data / f"{split}.txt"
    if not split.endswith(".txt") and not listing.exists():
        return None
    pairs = []
    for place, line in read_lines(listing):
        words = _words(line)
        if len(words) > 2:
            raise UserError(f"{place}: expected 'image label' or a name, found {len(words)} words.")
        if len(words) == 2:
            image, label = (existing(listing.parent, word, place) for word in words)
        else:
            image = any_extension(listing.parent / "images", line, place)
            label = _label_map(listing.parent / "labels", line, place)
        pairs.append((image, label))
    return pairs


def _words(line: str) -> list[str]:
    """What spaces and tabs separate. Unicode has other blanks, which may be part of a name."""
    return re.split(r"[ \t]+", line)


# --- PASCAL VOC -----------------------------------------------------------------------------------------------------


def _has_voc(data: Path) -> bool:
    return (data / "SegmentationClass").is_dir()


def _voc_names(data: Path) -> Iterable[str]:
    return (path.stem for path in visible(data, "ImageSets/Segmentation/*.txt"))


def _listed_by_voc(data: Path, split: str) -> list[Pair] | None:
    listing = data / "ImageSets/Segmentation" / f"{split}.txt"
    if not listing.exists():
        return None
    return [
        (
            any_extension(data / "JPEGImages", name, place),
            _label_map(data / "SegmentationClass", name, place),
        )
        for place, name in read_lines(listing)
    ]


# --- folders: images/train and labels/train -------------------------------------------------------------------------


def _has_folders(data: Path) -> bool:
    return (data / "images").is_dir() and any(map(is_image, visible(data, "labels/**/*")))


def _folder_names(data: Path) -> Iterable[str]:
    return (path.name for path in visible(data, "images/*/"))


def _paired_by_name(data: Path, split: str) -> list[Pair] | None:
    images, labels = data / "images" / split, data / "labels" / split
    if not images.is_dir():
        return None
    return [(path, _label_of(path, images, labels)) for path in sorted(filter(is_image, visible(images, "**/*")))]


def _label_of(image: Path, images: Path, labels: Path) -> Path:
    folder = labels / image.relative_to(images).parent
    return _label_map(folder, image.stem, shown(image))


#: Every layout, in the order in which a split is looked for.
LAYOUTS: Sequence[Layout] = (
    Layout(LISTS, _has_lists, _list_names, _listed),
    Layout(VOC, _has_voc, _voc_names, _listed_by_voc),
    Layout(FOLDERS, _has_folders, _folder_names, _paired_by_name),
)
