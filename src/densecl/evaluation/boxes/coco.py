"""COCO's layout: one JSON file for each split, as COCO publishes it or as Roboflow exports it."""

from __future__ import annotations

import functools
import glob
import itertools
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from densecl.errors import UserError
from densecl.evaluation.boxes.annotated import (
    Annotated,
    Contents,
    Fail,
    Layout,
    Object,
    complaint,
    excerpt,
    number,
    size,
)
from densecl.evaluation.files import TEST_SPLITS, class_name, inside, located, read_bytes, visible
from densecl.names import shown

#: Larger annotation files are refused. COCO's own has half a gigabyte.
MAX_JSON_BYTES = 2 * 1024**3

#: This many file names are tried in each folder, to find out which folder the names are relative to.
TRIED = 20

#: Only these splits may have a file such as train.json. Other files beside it hold captions, key points and the like.
USUAL_SPLITS = ("train", *TEST_SPLITS)

#: The name of one entry of each of a file's lists.
SINGLE = {"annotations": "annotation", "images": "image", "categories": "category"}


def _find(data: Path) -> Mapping[str, Callable[[], Contents]]:
    usual = itertools.chain.from_iterable(visible(data, f"annotations/{split}.json") for split in USUAL_SPLITS)
    plain = {path.stem: path for path in usual}
    own = {path.stem.removeprefix("instances_"): path for path in visible(data, "annotations/instances_?*.json")}
    exported = {path.parent.name: path for path in visible(data, "*/_annotations.coco.json")}
    return {split: functools.partial(_read, data, split, path) for split, path in (exported | plain | own).items()}


COCO = Layout("COCO", "annotations/instances_SPLIT.json, annotations/SPLIT.json or SPLIT/_annotations.coco.json", _find)


def _read(data: Path, split: str, source: Path) -> Contents:
    content = _read_json(source)
    names = dict(_categories(content, source))
    images = {key: (image, fail) for key, image, fail in _images(content, source)}
    objects: dict[int | str, list[Object]] = {key: [] for key in images}
    for place, annotation in _entries(content, "annotations", source):
        fail = functools.partial(complaint, place)
        image, category = (_key(annotation, what, fail) for what in ("image_id", "category_id"))
        for what, key, known in (("image", image, images), ("category", category, names)):
            if key not in known:
                raise fail(f"it is of {what} {excerpt(key)}, which the file does not list; correct or remove it")
        if _is_crowd(annotation, fail):
            continue
        x, y, width, height = _box(annotation, fail)
        if width > 0 and height > 0:
            box = (x, y, x + width, y + height)
            objects[image].append(Object(box, names[category], place, annotation.get("segmentation")))
    files = _files(data, split, source, images)
    items = [
        Annotated(files[key], objects[key], size(image.get("width"), image.get("height"), fail))
        for key, (image, fail) in images.items()
    ]
    order = sorted(names, key=lambda key: (isinstance(key, str), key))
    return Contents(items, list(dict.fromkeys(names[key] for key in order)))


def _read_json(path: Path) -> Mapping[str, Any]:
    text = read_bytes(path, MAX_JSON_BYTES)
    try:
        content = json.loads(text)
    except json.JSONDecodeError as error:
        raise UserError(
            f"{shown(path)} is not JSON: it breaks off or goes wrong at line {error.lineno}, column {error.colno}."
        ) from error
    except RecursionError as error:
        raise UserError(f"{shown(path)} is not JSON of annotations: it is nested too deeply.") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{shown(path)} is not JSON: it is no text in UTF-8.") from error
    except ValueError as error:
        raise UserError(f"{shown(path)} holds a number of thousands of digits.") from error
    if not isinstance(content, dict):
        what = "a list, as results are" if isinstance(content, list) else excerpt(content)
        raise UserError(
            f"{shown(path)} is not in COCO's form: it holds {what}, where images, annotations and categories belong."
        )
    return content


def _entries(content: Mapping[str, Any], kind: str, source: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """The entries of one of the file's lists, each with its place for messages."""
    if kind not in content:
        hint = " Is it a split without labels?" if kind == "annotations" else ""
        raise UserError(f"{shown(source)} is not in COCO's form: there is no '{kind}'.{hint}")
    entries = content[kind]
    if not isinstance(entries, list):
        raise UserError(f"{shown(source)} is not in COCO's form: '{kind}' is {excerpt(entries)}, not a list.")
    start = f"{shown(source)}, {SINGLE[kind]}"
    for nth, entry in enumerate(entries, 1):
        place = f"{start} {nth}"
        if not isinstance(entry, dict):
            raise complaint(place, f"it is {excerpt(entry)}, where a mapping with its id belongs")
        own = entry.get("id")
        yield place if own is None else f"{place} (id {excerpt(own)})", entry


def _key(entry: Mapping[str, Any], what: str, fail: Fail) -> int | str:
    """An id. Tools write the same one as 3, 3.0 or "3"."""
    value = entry.get(what)
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, str) and re.fullmatch(r"0|[1-9][0-9]{0,17}", value):
        value = int(value)
    if value is None:
        raise fail(f"it has no {what}")
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise fail(f"its {what} is {excerpt(value)}; expected a whole number")
    return value


def _categories(content: Mapping[str, Any], source: Path) -> Iterator[tuple[int | str, str]]:
    known: dict[int | str, str] = {}
    for place, category in _entries(content, "categories", source):
        fail = functools.partial(complaint, place)
        key, name = _key(category, "id", fail), category.get("name")
        if isinstance(name, bool) or not isinstance(name, str | int) or not str(name).strip():
            raise fail(f"its name is {excerpt(name)}; expected the name of a class" if name else "it has no name")
        name = class_name(str(name))
        if known.setdefault(key, name) != name:
            raise fail(f"it is called {excerpt(name)}, but another category of this id {excerpt(known[key])}")
        yield key, name


def _images(content: Mapping[str, Any], source: Path) -> Iterator[tuple[int | str, dict[str, Any], Fail]]:
    known: set[int | str] = set()
    for place, image in _entries(content, "images", source):
        fail = functools.partial(complaint, place)
        key = _key(image, "id", fail)
        if key in known:
            raise fail("an image before it has the same id; give each its own, and to the annotations whose they are")
        known.add(key)
        name = image.get("file_name")
        if not isinstance(name, str) or not name.strip():
            raise fail(
                f"its file_name is {excerpt(name)}; expected the name of an image" if name else "it has no file_name"
            )
        yield key, image, fail


def _is_crowd(annotation: Mapping[str, Any], fail: Fail) -> bool:
    value = annotation.get("iscrowd")
    found = float(value) if isinstance(value, bool) else 0.0 if value is None else number(value)
    if found not in (0, 1):
        raise fail(f"its iscrowd is {excerpt(value)}; expected 0 or 1")
    return found == 1


def _box(annotation: Mapping[str, Any], fail: Fail) -> tuple[float, float, float, float]:
    """x, y, width and height. If the annotation has no box, the one around its polygons."""
    given = annotation.get("bbox")
    if given is None or given == []:
        return _around(annotation.get("segmentation"), fail)
    sides = [number(each) for each in given] if isinstance(given, list) else []
    x, y, width, height = sides if len(sides) == 4 else (None,) * 4
    if x is None or y is None or width is None or height is None:
        raise fail(f"its bbox is {excerpt(given)}; expected four numbers [x, y, width, height], in pixels")
    if width < 0 or height < 0:
        raise fail(f"its bbox is {excerpt(given)}; width and height, the last two, cannot be negative")
    return x, y, width, height


def _around(polygons: object, fail: Fail) -> tuple[float, float, float, float]:
    missing = "it has no bbox; add one, [x, y, width, height], in pixels"
    if not isinstance(polygons, list) or not polygons:
        raise fail(missing)
    corners = []
    for polygon in polygons:
        numbers = [number(each) for each in polygon] if isinstance(polygon, list) else []
        if len(numbers) < 6 or len(numbers) % 2 or None in numbers:
            raise fail(f"{missing} (of its segmentation, {excerpt(polygon)} is no polygon)")
        corners += numbers
    xs, ys = corners[::2], corners[1::2]
    return min(xs), min(ys), max(xs) - min(xs), max(ys) - min(ys)


# --- where the images are -------------------------------------------------------------------------------------------


def _files(
    data: Path, split: str, source: Path, images: Mapping[int | str, tuple[dict[str, Any], Fail]]
) -> dict[int | str, Path]:
    """The file of each image."""
    named, year = glob.escape(split), glob.escape(split.rstrip("0123456789")) + "[0-9]" * 4
    places = (named, f"images/{named}", f"{named}/images", year, f"images/{year}", "images")
    folders = [*(folder for place in places for folder in visible(data, f"{place}/")), data, source.parent]
    names = {key: image["file_name"] for key, (image, _) in images.items()}
    root = _root(data, folders, itertools.islice(names.values(), TRIED))
    files = {}
    for key, name in names.items():
        path = None if root is None else _inside(data, root, name)
        if path is None:
            _, fail = images[key]
            looked = " or ".join(dict.fromkeys(shown(each) for each in ([root] if root else folders)))
            raise fail(f"there is no file {shown(name)} in {looked}; its file_name must be relative to that folder")
        files[key] = path
    return files


def _root(data: Path, folders: Iterable[Path], names: Iterable[str]) -> Path | None:
    """The first folder that has one of the files."""
    names = list(names)
    return next((folder for folder in folders if any(_inside(data, folder, name) for name in names)), None)


def _inside(data: Path, folder: Path, name: str) -> Path | None:
    """The file of this name. None if it lies outside of the data set."""
    path = located(folder, name)
    return path and inside(data, path)
