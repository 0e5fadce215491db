"""Images with a box around each object, from files in COCO's or PASCAL VOC's layout."""

from __future__ import annotations

import copy
import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from xml.etree import ElementTree

import torch
from jaxtyping import Float, Int64, Shaped
from torch import Tensor
from torch.utils.data import Dataset

from densecl.errors import UserError
from densecl.evaluation.labelled import (
    any_extension,
    decoded,
    existing,
    measured,
    read_lines,
    scored_split,
    shown,
    what_there_is,
)

#: Larger annotation files are refused: COCO's own, of all images, has half a gigabyte, VOC's, of one, a few kilobytes.
MAX_JSON_BYTES = 2 * 1024**3
MAX_XML_BYTES = 16 * 1024**2

#: Boxes that are less wide or high, in pixels, are left out: shrunk with their image they would have no area.
LEAST_SIDE = 0.1


class Boxed(NamedTuple):
    """An image and the objects in it."""

    image: Shaped[Tensor, "channels height width"]  # uint8 or uint16
    boxes: Float[Tensor, "objects 4"]  # x0 y0 x1 y1 in pixels
    labels: Int64[Tensor, "objects"]  # 1 to classes: torchvision keeps 0 for the background


class Object(NamedTuple):
    """An object as its annotation has it."""

    box: tuple[float, float, float, float]  # x0 y0 x1 y1 in pixels
    name: str  # of its class


class Annotated(NamedTuple):
    """An image file and what is known of it."""

    path: Path
    objects: Sequence[Object]
    size: tuple[int, int] | None  # (width, height) that the boxes are meant for; None: not given


class BoxedFiles(Sequence, Dataset):
    """Images with boxes, read when asked for. Boxes are cut to their image.

    Args:
        items: path of each image, the objects in it, and the size that its annotation gives.
        names: of all classes; label 1 is the first.
        channels: of every image that is read.

    Raises:
        UserError: an image that is not there or has another size, or a box that lies outside of it. Reading an item
            that cannot be used.
    """

    def __init__(self, items: Sequence[Annotated], names: Sequence[str], *, channels: int) -> None:
        self.items = list(items)
        self.names = tuple(names)
        self.channels = channels
        for path, objects, size in self.items:
            width, height = measured(path, channels)
            if size is not None and size != (width, height):
                raise UserError(
                    f"{path}: its boxes are of an image of {size[0]}x{size[1]}, but upright it is {width}x{height}."
                )
            for (x0, y0, x1, y1), name in objects:
                if x1 <= 0 or y1 <= 0 or x0 >= width or y0 >= height:
                    raise UserError(
                        f"{path}: the box of a {name} from ({x0:g}, {y0:g}) to ({x1:g}, {y1:g}) lies outside"
                        f" of the image of {width}x{height}."
                    )

    def take(self, images: Sequence[int]) -> BoxedFiles:
        """Some of the images."""
        some = copy.copy(self)
        some.items = [self.items[index] for index in images]
        return some

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Boxed:  # pyright: ignore[reportIncompatibleMethodOverride]
        path, objects, _ = self.items[index]
        image = decoded(path, self.channels)
        height, width = image.shape[1:]
        boxes = torch.tensor([box for box, _ in objects]).reshape(-1, 4).clamp(min=0)
        boxes = boxes.minimum(torch.tensor([width, height, width, height]))
        labels = torch.tensor([self.names.index(name) + 1 for _, name in objects], dtype=torch.int64)
        kept = (boxes[:, 2:] - boxes[:, :2] >= LEAST_SIDE).all(dim=1)
        return Boxed(image, boxes[kept], labels[kept])


def open_boxed(data: Path | str, split: str | None = None, *, channels: int = 3) -> BoxedFiles:
    """The images with boxes of one split of a folder.

    Args:
        data: a folder in COCO's layout (``annotations/instances_SPLIT.json``, images in ``SPLIT/``) or in PASCAL VOC's
            (``ImageSets/Main/SPLIT.txt``, ``JPEGImages``, ``Annotations``). COCO's crowds and VOC's difficult objects
            are left out, and boxes without an area.
        split: its name. Not given: the one to score on, "test" or "val".
        channels: of every image that is read.

    Raises:
        UserError: there is nothing there, no object, the annotations are not of this form, or `BoxedFiles` does not
            take them.
    """
    data = Path(data).expanduser()
    if not data.is_dir():
        raise UserError(f"{data}: no such folder of images with boxes.")
    coco = {path.stem.removeprefix("instances_"): path for path in data.glob("annotations/instances_*.json")}
    voc = {path.stem: path for path in data.glob("ImageSets/Main/*.txt")}
    if split is None:
        split = scored_split(data, {*coco, *voc})
    if split in coco:
        items, names = _read_coco(coco[split], data / split)
    elif split in voc:
        items, names = _read_voc(data, voc[split])
    else:
        raise UserError(
            f"{data} has no boxes of '{split}': looked for annotations/instances_{split}.json (COCO) and"
            f" ImageSets/Main/{split}.txt (VOC).{what_there_is({*coco, *voc}, split)}"
        )
    if not any(item.objects for item in items):
        raise UserError(f"{data}: there is no object in the split {split}. Is it one without labels?")
    return BoxedFiles(items, names, channels=channels)


def is_boxed(data: Path) -> bool:
    """Whether a folder has boxes in one of these layouts, or in Roboflow's."""
    layouts = ("annotations/instances_*.json", "ImageSets/Main/*.txt", "Annotations/*.xml", "*/_annotations.coco.json")
    return any(next(data.glob(layout), None) for layout in layouts)


# --- COCO -----------------------------------------------------------------------------------------------------------


def _read_coco(annotations: Path, images: Path) -> tuple[list[Annotated], list[str]]:
    """The images, and the names of the classes, by their numbers."""
    content = _read_json(annotations)
    try:
        names = {each["id"]: str(each["name"]) for each in content["categories"]}
        objects: dict[Any, list[Object]] = {image["id"]: [] for image in content["images"]}
        if len(objects) < len(content["images"]):
            raise ValueError("two images have the same id")
        for annotation in content["annotations"]:
            image, category = annotation["image_id"], annotation["category_id"]
            x, y, width, height = map(float, annotation["bbox"])
            for what, number, known in (("image", image, objects), ("category", category, names)):
                if number not in known:
                    raise ValueError(f"a box is of {what} {number!r}, which it does not have")
            if not all(map(math.isfinite, (x, y, width, height))) or min(width, height) < 0:
                raise ValueError(f"a box in image {image!r} is {annotation['bbox']}")
            if min(width, height) > 0 and not int(annotation.get("iscrowd", 0)):
                objects[image].append(Object((x, y, x + width, y + height), names[category]))
        items = [
            Annotated(
                existing(images / str(image["file_name"]), str(annotations)),
                objects[image["id"]],
                _size(image.get("width"), image.get("height")),
            )
            for image in content["images"]
        ]
        order = sorted(names)
    except UserError:
        raise
    except KeyError as error:
        raise UserError(f"{annotations} is not in COCO's form: there is no {error}.") from error
    except (TypeError, ValueError, AttributeError, OverflowError) as error:
        raise UserError(f"{annotations} is not in COCO's form: {error}.") from error
    return items, list(dict.fromkeys(names[number] for number in order))


def _size(width: Any, height: Any) -> tuple[int, int] | None:
    """The size that a file gives; some give 0, or nothing."""
    return (int(width), int(height)) if width and height and int(width) and int(height) else None


def _read_json(path: Path) -> Mapping[str, Any]:
    try:
        if path.stat().st_size > MAX_JSON_BYTES:
            raise UserError(f"{path} is too large for annotations.")
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}.") from error
    except UserError:
        raise
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not JSON: {str(error)[:100]}.") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} is not in COCO's form: it holds a {type(content).__name__}.")
    return content


# --- PASCAL VOC -----------------------------------------------------------------------------------------------------


def _read_voc(data: Path, listing: Path) -> tuple[list[Annotated], list[str]]:
    """The listed images, and the names of all classes of the folder, by the alphabet."""
    files = [path for path in sorted(data.glob("Annotations/*.xml")) if not path.name.startswith(".")]
    known = {path.stem: _read_xml(path) for path in files}
    items = []
    for place, name in read_lines(listing):
        if name not in known:
            raise UserError(f"{place}: there is no file {shown(data / 'Annotations' / name)}.xml.")
        items.append(Annotated(any_extension(data / "JPEGImages" / name, place), *known[name]))
    return items, sorted({each.name for objects, _ in known.values() for each in objects})


def _read_xml(path: Path) -> tuple[list[Object], tuple[int, int] | None]:
    """The objects of an image, and its size."""
    try:
        if os.path.getsize(path) > MAX_XML_BYTES:
            raise UserError(f"{path} is too large for the annotations of an image.")
        root = ElementTree.parse(path).getroot()
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}.") from error
    except UserError:
        raise
    except (ElementTree.ParseError, ValueError, LookupError) as error:
        raise UserError(f"{path} is not XML: {error}.") from error
    objects = []
    for number, element in enumerate(root.iterfind("object"), 1):
        if element.findtext("difficult", "0").strip() == "1":
            continue
        sides = [element.findtext(f"bndbox/{side}", "") for side in ("xmin", "ymin", "xmax", "ymax")]
        try:
            x0, y0, x1, y1 = map(float, sides)
        except ValueError as error:
            raise UserError(f"{path}, object {number}: its bndbox has the sides {sides}.") from error
        name = element.findtext("name", "").strip()
        if not name or not all(map(math.isfinite, (x0, y0, x1, y1))) or x1 < x0 or y1 < y0:
            raise UserError(f"{path}, object {number}: it has no name, or its bndbox no place: {sides}.")
        objects.append(Object((x0 - 1, y0 - 1, x1, y1), name))  # VOC counts pixels from 1, both ends within
    width, height = (root.findtext(f"size/{side}", "").strip() for side in ("width", "height"))
    return objects, _size(width, height) if width.isdecimal() and height.isdecimal() else None
