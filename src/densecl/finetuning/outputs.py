"""The files that `predict` writes: COCO's JSON or label maps, pictures, and their names."""

from __future__ import annotations

import contextlib
import csv
import hashlib
import io
import json
import os
import re
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from jaxtyping import UInt8
from PIL import Image
from torch import Tensor

from densecl.evaluation.average_precision import Detections, with_sides
from densecl.files import replacing
from densecl.names import to_cell
from densecl.pictures.predictions import palette

#: Bytes of a part of a path that is written. Systems take 255, and an extension comes behind it.
LONGEST = 200

#: Characters that some system forbids in names, or that a terminal would obey.
FORBIDDEN = re.compile(r'[\x00-\x1f\x7f<>:"|?*\\]')


class Names:
    """Names of files for images: safe on every system, below one folder, and each given once.

    Args:
        root: the folder of the images, of which the folders below it are kept. None: there is none.
    """

    def __init__(self, root: str | None) -> None:
        self.root = None if root is None else os.path.abspath(root)
        self._used: set[bytes] = set()

    def shown(self, name: str) -> str:
        """The name of an image as the user knows it: relative to the root, if it lies there."""
        if self.root is not None and os.path.isabs(name):
            relative = os.path.relpath(name, self.root)
            if relative.split(os.sep)[0] != os.pardir:
                return relative
        return name

    def file(self, name: str) -> Path:
        """Where the output of an image belongs, without an extension."""
        known = self.shown(name)
        if os.path.isabs(known) or os.pardir in known.split(os.sep):  # of a list: from anywhere
            known = os.path.basename(known)
        *folders, last = [part for part in known.split(os.sep) if part not in ("", os.curdir)] or ["image"]
        stem, extension = os.path.splitext(last)
        path = Path(*map(_safe, folders), _safe(stem))
        for way in self._ways(path, extension):
            key = hashlib.blake2b(os.fsencode(str(way).casefold()), digest_size=8).digest()
            if key not in self._used:
                self._used.add(key)
                return way
        raise AssertionError("numbers do not end")

    def _ways(self, path: Path, extension: str) -> Iterator[Path]:
        """The name, and others for images that differ in their extensions, their capitals or their folders alone."""
        yield path
        yield path.with_name(_safe(f"{path.name}_{extension.removeprefix('.')}"))
        number = 2
        while True:
            yield path.with_name(_safe(f"{path.name}_{number}"))
            number += 1


def _safe(part: str) -> str:
    """A part of a path without what a system forbids. Neither hidden nor too long."""
    clean = FORBIDDEN.sub("_", part).strip(" ").rstrip(".")
    clean = re.sub(r"^\.+", "_", clean) or "_"
    content = os.fsencode(clean)
    if len(content) <= LONGEST:
        return clean
    digest = hashlib.blake2b(content, digest_size=4).hexdigest()
    return f"{os.fsdecode(content[: LONGEST - 9]).encode('utf-8', 'ignore').decode()}-{digest}"


class CocoWriter:
    """COCO's JSON, written image by image, so that any number of them takes the same memory."""

    def __init__(self, file: BinaryIO, later: BinaryIO, classes: Sequence[str], info: dict[str, Any]) -> None:
        self._file = file
        self._later = later  # the annotations stand behind all images
        self.images = self.objects = 0
        categories = [{"id": label, "name": name} for label, name in enumerate(classes, 1)]
        file.write(f'{{"info": {json.dumps(info)},\n"categories": {json.dumps(categories)},\n"images": ['.encode())

    def add(self, name: str, width: int, height: int, found: Detections) -> None:
        """An image and what was found in it."""
        self.images += 1
        image = {"id": self.images, "file_name": name, "width": width, "height": height}
        self._entry(self._file, self.images, image)
        masks = found.masks or [None] * len(found.scores)
        boxes = with_sides(found.boxes.double())
        for box, label, score, mask in zip(boxes, found.labels.tolist(), found.scores.tolist(), masks, strict=True):
            self.objects += 1
            entry = {"id": self.objects, "image_id": self.images, "category_id": label, "iscrowd": 0}
            entry |= {"bbox": [round(side, 2) for side in box], "area": round(box[2] * box[3], 2)}
            entry["score"] = round(score, 5)
            if mask is not None:
                entry["segmentation"] = mask
            self._entry(self._later, self.objects, entry)

    def _entry(self, file: BinaryIO, number: int, entry: dict[str, Any]) -> None:
        file.write(f"{',' if number > 1 else ''}\n{json.dumps(entry)}".encode())

    def close(self) -> None:
        """Writes the annotations behind the images."""
        self._file.write(b'],\n"annotations": [')
        self._later.seek(0)
        while chunk := self._later.read(2**20):
            self._file.write(chunk)
        self._file.write(b"]}\n")


@contextlib.contextmanager
def writing_coco(path: Path, classes: Sequence[str], info: dict[str, Any]) -> Iterator[CocoWriter]:
    """Writes a JSON file beside its place, and moves it there once all images were added."""
    with replacing(path) as file, tempfile.TemporaryFile(dir=path.parent) as later:
        writer = CocoWriter(file, later, classes, info)
        yield writer
        writer.close()


@contextlib.contextmanager
def writing_index(path: Path) -> Iterator[Any]:
    """Writes a CSV file of images and their label maps. Gives a function that takes such a pair."""
    with replacing(path) as file:

        def add(image: str, label_map: str) -> None:
            text = io.StringIO(newline="")
            csv.writer(text, lineterminator="\n").writerow((to_cell(image), to_cell(label_map)))
            file.write(text.getvalue().encode())

        add("image", "label_map")
        yield add


def save_label_map(labels: UInt8[Tensor, "height width"], path: Path) -> None:
    """Writes a palette PNG, whose values are the labels.

    Raises:
        OSError: it cannot be written.
    """
    picture = Image.fromarray(labels.numpy()).convert("L")
    picture.putpalette(palette())
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path, durable=False) as file:
        picture.save(file, format="PNG")


def save_overlay(picture: Image.Image, path: Path) -> None:
    """Writes a JPEG.

    Raises:
        OSError: it cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path, durable=False) as file:
        picture.save(file, format="JPEG", quality=90)
