"""Images with a box around each object, read from files in one of the layouts of `LAYOUTS`.

To add a layout: write a reader in a file of its own in `boxes/`, and add it to `LAYOUTS`.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from jaxtyping import Float, Int64, Shaped
from torch import Tensor
from torch.utils.data import Dataset

from densecl.errors import UserError
from densecl.evaluation.boxes.annotated import Annotated, Contents, Object, complaint
from densecl.evaluation.boxes.coco import COCO
from densecl.evaluation.boxes.outlines import Outline, read_outline
from densecl.evaluation.boxes.voc import VOC
from densecl.evaluation.boxes.yolo import YOLO
from densecl.evaluation.files import decoded, measured, scored_split, visible, what_there_is
from densecl.names import shown

#: Every layout that is read. If a folder has two of them, the first counts.
LAYOUTS = (COCO, VOC, YOLO)

#: Boxes less wide or high than this, in pixels, are left out. When the image is shrunk, they would have no area.
LEAST_SIDE = 0.1


class Boxed(NamedTuple):
    """An image and the objects in it."""

    image: Shaped[Tensor, "channels height width"]  # uint8 or uint16
    boxes: Float[Tensor, "objects 4"]  # x0 y0 x1 y1 in pixels
    labels: Int64[Tensor, "objects"]  # 1 to classes, because torchvision keeps 0 for the background
    outlines: tuple[Outline, ...] = ()  # of the objects, if they were asked for


class BoxedFiles(Sequence, Dataset):
    """Images with boxes. An image is read when its item is asked for. Boxes are cut to their image.

    Args:
        items: path of each image, the objects in it, and the size that its annotation gives.
        names: of all classes. Label 1 is the first.
        channels: of every image that is read.
        outlines: read the outlines of objects, too. Every object must have one.

    Raises:
        UserError: an image is missing or has another size than its annotation says, a box lies outside of its image,
            or an outline is missing. Reading an item that cannot be used.
    """

    def __init__(
        self, items: Sequence[Annotated], names: Sequence[str], *, channels: int, outlines: bool = False
    ) -> None:
        self.outlines = outlines
        self.items = [self._in_pixels(item, measured(item.path, channels)) for item in items]
        self.names = tuple(names)
        self.channels = channels

    def _in_pixels(self, item: Annotated, size: tuple[int, int]) -> Annotated:
        """The item with the real size of its image, and its boxes in pixels."""
        width, height = size
        if item.size is not None and item.size != size:
            raise UserError(
                f"{shown(item.path)}: its boxes are of an image of {item.size[0]}x{item.size[1]}, but upright it is"
                f" {width}x{height}."
            )
        objects = []
        for each in item.objects:
            scale = (width, height) if item.relative else (1, 1)
            x0, y0, x1, y1 = (side * scale[axis % 2] for axis, side in enumerate(each.box))
            if x1 <= 0 or y1 <= 0 or x0 >= width or y0 >= height:
                raise UserError(
                    f"{each.place}: the box of a {shown(each.name)} from ({x0:g}, {y0:g}) to ({x1:g}, {y1:g}) lies"
                    f" outside of the image of {width}x{height}, {shown(item.path)}."
                )
            outline = self._outline(each, size, item.relative) if self.outlines else None
            objects.append(each._replace(box=(x0, y0, x1, y1), outline=outline))
        return item._replace(objects=objects, size=size, relative=False)

    def _outline(self, each: Object, size: tuple[int, int], relative: bool) -> Outline:
        found = read_outline(each.outline, size, functools.partial(complaint, each.place), relative=relative)
        if found is None:
            raise UserError(
                f"{each.place}: the {shown(each.name)} has a box and no outline (COCO's polygons or masks, YOLO's"
                " polygons), from which a mask-rcnn learns. Take another --architecture."
            )
        return found

    def take(self, images: Sequence[int]) -> BoxedFiles:
        """Some of the images."""
        some = copy.copy(self)
        some.items = [self.items[index] for index in images]
        return some

    def occurring(self) -> set[str]:
        """The names of the classes that have an object."""
        return {each.name for item in self.items for each in item.objects}

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Boxed:  # pyright: ignore[reportIncompatibleMethodOverride]
        item = self.items[index]
        image = decoded(item.path, self.channels)
        height, width = image.shape[1:]
        boxes = torch.tensor([each.box for each in item.objects]).reshape(-1, 4).clamp(min=0)
        boxes = boxes.minimum(torch.tensor([width, height, width, height]))
        labels = torch.tensor([self.names.index(each.name) + 1 for each in item.objects], dtype=torch.int64)
        kept = (boxes[:, 2:] - boxes[:, :2] >= LEAST_SIDE).all(dim=1)
        given = [each.outline for each, large in zip(item.objects, kept.tolist(), strict=True) if large]
        outlines = tuple(each for each in given if isinstance(each, Outline))
        return Boxed(image, boxes[kept], labels[kept], outlines)


def open_boxed(data: Path | str, split: str | None = None, *, channels: int = 3, outlines: bool = False) -> BoxedFiles:
    """The images with boxes of one split of a folder.

    Args:
        data: a folder in one of the `LAYOUTS`. COCO's crowds, VOC's difficult objects, and boxes without an area are
            left out.
        split: its name. "train" also finds "train2017", if there is only one of this kind. Not given: the one to score
            on, "test", "val" or "valid".
        channels: of every image that is read.
        outlines: read the outlines of objects, too. Every object must have one.

    Raises:
        UserError: there is no such split, it has no object, its annotations are broken, or `BoxedFiles` does not take
            them.
    """
    data = Path(data).expanduser()
    if not data.is_dir():
        folder = data.parent.parent if data.parent.name in ("annotations", "Annotations") else data.parent
        hint = f" Give the folder that it describes, such as {shown(folder)}." if data.is_file() else ""
        raise UserError(f"{shown(data)}: no such folder of images with boxes.{hint}")
    found = _find(data)
    if split is None:
        split = scored_split(data, found)
    if found and split not in found:
        raise UserError(f"{shown(data)} has no boxes of '{shown(split)}'.{what_there_is(found, split)}")
    if not found:
        looked = ", ".join(f"{each.files.replace('SPLIT', shown(split))} ({each.title})" for each in LAYOUTS)
        raise UserError(f"{shown(data)} has no boxes of '{shown(split)}': looked for {looked}.{_other_json(data)}")
    items, names = found[split]()
    if not any(item.objects for item in items):
        raise UserError(
            f"{shown(data)}: there is no object in the split {shown(split)}. If it is one without labels, name another"
            " split."
        )
    if not any(max(each.box) > 1 or item.relative for item in items for each in item.objects):
        raise UserError(
            f"{shown(data)}: every box of the split {shown(split)} lies within the first pixel of its image. Are they"
            " in fractions of its sides, as YOLO has them? They must be in pixels."
        )
    return BoxedFiles(items, names, channels=channels, outlines=outlines)


def splits_of(data: Path) -> Collection[str]:
    """The names of a folder's splits."""
    return _find(data)


def _find(data: Path) -> dict[str, Callable[[], Contents]]:
    """The reader of each split of a folder."""
    found = next((splits for layout in LAYOUTS if (splits := dict(layout.find(data)))), {})
    by_name: dict[str, list[str]] = {}
    for split in found:
        by_name.setdefault(split.rstrip("0123456789"), []).append(split)
    return found | {name: found[years[0]] for name, years in by_name.items() if name not in found and len(years) == 1}


def _other_json(data: Path) -> str:
    """The end of a message when nothing was found: a file that perhaps only needs another name."""
    places = ("*.json", "annotations/*.json", "*/*.json")
    first = next((path for place in places for path in sorted(visible(data, place))), None)
    return f" Is {shown(first)} one of COCO's? Give it the name that is looked for." if first else ""


def is_boxed(data: Path) -> bool:
    """Whether a folder has boxes in one of the `LAYOUTS`, or VOC's without lists of splits."""
    return bool(_find(data)) or next(visible(data, "Annotations/*.xml"), None) is not None


def share_classes(train: BoxedFiles, test: BoxedFiles) -> tuple[BoxedFiles, BoxedFiles]:
    """Both splits with the same classes: those that have a box in either of them.

    The files may name other ones: exports also name a group of all classes, and some files only those with a box.
    """
    used = train.occurring() | test.occurring()
    names = tuple(name for name in dict.fromkeys((*train.names, *test.names)) if name in used)
    shared = copy.copy(train), copy.copy(test)
    for files in shared:
        files.names = names
    return shared
