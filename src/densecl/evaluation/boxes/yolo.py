"""YOLO's layout: a text file for each image with a line for each object, and the classes' names in ``data.yaml``."""

from __future__ import annotations

import functools
import itertools
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import yaml

from densecl.errors import UserError
from densecl.evaluation.boxes.annotated import Annotated, Contents, Layout, Object, complaint, excerpt, number, whole
from densecl.evaluation.files import TEST_SPLITS, class_name, inside, is_image, located, read_bytes, read_lines, visible
from densecl.names import shown

#: The description of a data set: the first of these files that there is.
DESCRIPTIONS = ("data.yaml", "data.yml", "dataset.yaml", "dataset.yml")
MAX_YAML_BYTES = 1024**2

#: The file with a class name on each line, which is read if the description has no names.
NAMES = "classes.txt"

#: How far a coordinate may lie beyond the image, as a fraction of its side. Rounding does that. Pixels reach farther.
SLACK = 0.01


class _Described(NamedTuple):
    """The content of ``data.yaml``."""

    source: Path
    names: Mapping[int, str] | None
    splits: Mapping[str, Sequence[str]]  # folders or lists of images, as the file writes them
    base: Path  # the folder that these are relative to
    keypoints: bool  # whether key points follow the box on each line


def _find(data: Path) -> Mapping[str, Callable[[], Contents]]:
    described = _describe(data)
    found: dict[str, list[Path | str]] = {}
    for pattern in ("images/*/", "*/images/"):
        for images in visible(data, pattern):
            if next(visible(_labels(data, images), "**/*.txt"), None):
                split = images.name if pattern == "images/*/" else images.parent.name
                found.setdefault(split, []).append(images)
    if described is not None:
        for split, entries in described.splits.items():
            found[split] = [_within(data, described.base, entry) or entry for entry in entries]
    # Exports often name a test split that was never made. If another split to score on is there, it is taken.
    there = {split for split, places in found.items() if any(isinstance(place, Path) for place in places)}
    if there & set(TEST_SPLITS):
        found = {split: places for split, places in found.items() if split in there or split not in TEST_SPLITS}
    return {split: functools.partial(_read, data, places, described) for split, places in found.items()}


YOLO = Layout("YOLO", "images/SPLIT with labels/SPLIT, SPLIT/images with SPLIT/labels, or data.yaml", _find)


def _labels(data: Path, images: Path) -> Path:
    """The path of the labels of a folder of images, or of an image: the last part "images" becomes "labels"."""
    parts = list(images.relative_to(data).parts)
    for place in reversed(range(len(parts))):
        if parts[place] == "images":
            parts[place] = "labels"
            break
    return data.joinpath(*parts)


# --- data.yaml ------------------------------------------------------------------------------------------------------


def _describe(data: Path) -> _Described | None:
    source = next((data / name for name in DESCRIPTIONS if (data / name).is_file()), None)
    if source is None:
        return None
    text = read_bytes(source, MAX_YAML_BYTES)
    try:
        # The base loader makes only texts, lists and mappings: a class called "no" stays a text, and no object is made.
        content = yaml.load(text, yaml.BaseLoader)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f" from line {mark.line + 1} on" if mark else ""
        raise UserError(f"{shown(source)} is not YAML{where}.") from error
    if not isinstance(content, dict):
        raise UserError(f"{shown(source)} does not describe a data set: it holds no mapping with names, train and val.")
    splits = {}
    for split in ("train", "val", "valid", "test"):
        entries = content.get(split) or []
        entries = [entries] if isinstance(entries, str) else entries
        if not isinstance(entries, list) or not all(isinstance(entry, str) for entry in entries):
            raise UserError(f"{shown(source)}: {split} is {excerpt(entries)}; expected a folder of images.")
        if entries:
            splits[split] = entries
    path = content.get("path")
    base = _within(data, data, path) if isinstance(path, str) else None
    return _Described(source, _names(content.get("names"), source), splits, base or data, "kpt_shape" in content)


def _names(names: object, source: Path) -> dict[int, str] | None:
    """The names of the classes by their numbers. The file has a list or a mapping."""
    if not names:
        return None
    numbered = dict(enumerate(names)) if isinstance(names, list) else names if isinstance(names, dict) else {}
    found = {whole(key): class_name(name) for key, name in numbered.items() if isinstance(name, str)}
    if len(found) < len(numbered) or not found or None in found or not all(found.values()):
        raise UserError(f"{shown(source)}: names is {excerpt(names)}; expected a list of names, or numbers and names.")
    return {key: name for key, name in found.items() if key is not None}


def _within(data: Path, base: Path, entry: str) -> Path | None:
    """The file or folder that an entry means, if it lies in the data set.

    Exports of Roboflow write ``../train/images`` for ``train/images``. Of a path that was written on another machine,
    such as ``/content/data/train/images``, the last two or more parts are looked for here.
    """
    entry = entry.replace("\\", "/")
    parts = entry.split("/")
    elsewhere = ["/".join(parts[first:]) for first in range(1, len(parts) - 1)] if _is_absolute(entry) else []
    for root in dict.fromkeys((base, data)):
        for way in (entry, entry.removeprefix("../"), *elsewhere):
            path = inside(data, root / way)
            if path is not None and os.path.exists(path):
                return path
    return None


def _is_absolute(entry: str) -> bool:
    return entry.startswith("/") or entry[1:3] == ":/"


# --- images and labels ----------------------------------------------------------------------------------------------


def _read(data: Path, places: Sequence[Path | str], described: _Described | None) -> Contents:
    """The images of folders and lists, with the objects in their label files."""
    names = described.names if described else None
    source = described.source if described else None
    images: dict[Path, None] = {}
    for place in places:
        if isinstance(place, str):
            raise UserError(
                f"{shown(source)}: there is nothing at {shown(place)} in {shown(data)}. Give a folder of images in it."
            )
        images |= dict.fromkeys(_listed(data, place) if place.is_file() else _images(place))
    if names is None:
        source, names = _read_names(data)
    read, items = set(), []
    for image in images:
        labels = _labels(data, image).relative_to(data).with_suffix(".txt")
        path = located(data, str(labels))
        read.add(path)
        keypoints = described is not None and described.keypoints
        objects = [] if path is None else list(_objects(path, names, source, keypoints))
        items.append(Annotated(image, objects, relative=True))
    for place in places:
        assert isinstance(place, Path), "texts were refused above"
        if place.is_dir() and (labels := _labels(data, place)) != place:
            _check_all_read(labels, read, place)
    if names is None:
        numbers = sorted({int(each.name) for item in items for each in item.objects})
        return Contents(items, list(map(str, numbers)))
    return Contents(items, list(dict.fromkeys(names[key] for key in sorted(names))))


def _images(folder: Path) -> list[Path]:
    return sorted(filter(is_image, visible(folder, "**/*")))


def _listed(data: Path, listing: Path) -> Iterator[Path]:
    for place, line in read_lines(listing):
        found = (path and inside(data, path) for root in (listing.parent, data) if (path := located(root, line)))
        image = next(filter(None, found), None)
        if image is None:
            raise UserError(f"{place}: there is no image {shown(line)} in {shown(data)}.")
        yield image


def _check_all_read(labels: Path, read: set[Path | None], images: Path) -> None:
    """
    Raises:
        UserError: a label file has no image. It would otherwise be left out unnoticed.
    """
    for path in visible(labels, "**/*.txt"):
        if path not in read and path.name != NAMES:
            missing = f"has no image {shown(path.stem)}.* in {shown(images)}: remove it, or add the image"
            raise UserError(f"{shown(path)} {missing if path.is_file() else 'is no regular file'}.")


def _read_names(data: Path) -> tuple[Path | None, dict[int, str] | None]:
    """The names in ``classes.txt``, which lies in the data set or in one of its folders. None: there is no file."""
    places = (sorted(visible(data, f"{folders}{NAMES}")) for folders in ("", "*/", "*/*/"))
    source = next(itertools.chain.from_iterable(places), None)
    return source, None if source is None else dict(enumerate(class_name(line) for _, line in read_lines(source)))


def _objects(path: Path, names: Mapping[int, str] | None, source: Path | None, keypoints: bool) -> Iterator[Object]:
    for place, line in read_lines(path):
        fail = functools.partial(complaint, place)
        expected = "expected a class, x and y of the center, width and height, or a class and a polygon"
        numbers = [number(word) for word in line.split()]
        which, sides = whole(numbers[0]), [side for side in numbers[1:] if side is not None]
        if which is None or len(sides) < len(numbers) - 1:
            raise fail(f"{excerpt(line)}; {expected}")
        if not all(-SLACK <= side <= 1 + SLACK for side in (sides[:4] if keypoints else sides)):
            raise fail(f"{excerpt(line)} goes beyond 0 to 1; coordinates are fractions of the image's width and height")
        if len(sides) == 4 or (keypoints and len(sides) > 4):
            x, y, width, height = sides[:4]
            if width < 0 or height < 0:
                raise fail(f"{excerpt(line)} has a negative width or height")
            box, outline = (x - width / 2, y - height / 2, x + width / 2, y + height / 2), None
        elif len(sides) >= 6 and len(sides) % 2 == 0:
            box, outline = (min(sides[::2]), min(sides[1::2]), max(sides[::2]), max(sides[1::2])), [sides]
        else:
            raise fail(f"{len(numbers)} numbers; {expected}")
        if names is not None and which not in names:
            raise fail(f"class {which} has no name in {shown(source)}, which has {len(names)}")
        if box[0] < box[2] and box[1] < box[3]:
            yield Object(box, str(which) if names is None else names[which], place, outline)
