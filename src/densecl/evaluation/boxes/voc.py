"""PASCAL VOC's layout: one XML file for each image, in VOC's folders or beside the images of a split."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from xml.etree import ElementTree
from xml.parsers import expat

from densecl.errors import UserError
from densecl.evaluation.boxes.annotated import Annotated, Contents, Layout, Object, complaint, excerpt, number, size
from densecl.evaluation.files import any_extension, class_name, located, read_bytes, read_lines, visible
from densecl.names import shown


def _find(data: Path) -> Mapping[str, Callable[[], Contents]]:
    beside = {path.parent.name: path.parent for path in visible(data, "*/*.xml") if path.parent.name != "Annotations"}
    listed = {path.stem: path for path in visible(data, "ImageSets/Main/*.txt")}
    return {split: functools.partial(_read_beside, folder) for split, folder in beside.items()} | {
        split: functools.partial(_read_listed, data, listing) for split, listing in listed.items()
    }


VOC = Layout("PASCAL VOC", "ImageSets/Main/SPLIT.txt or SPLIT/*.xml", _find)


def _read_listed(data: Path, listing: Path) -> Contents:
    items = []
    for place, name in read_lines(listing):
        annotations = located(data / "Annotations", f"{name}.xml")
        if annotations is None:
            raise UserError(f"{place}: there is no file {shown(data / 'Annotations' / name)}.xml.")
        items.append(_read_xml(annotations, any_extension(data / "JPEGImages", name, place)))
    return _contents(items)


def _read_beside(folder: Path) -> Contents:
    return _contents(
        [_read_xml(path, any_extension(folder, path.stem, shown(path))) for path in sorted(visible(folder, "*.xml"))]
    )


def _contents(items: list[Annotated]) -> Contents:
    return Contents(items, sorted({each.name for item in items for each in item.objects}))


def _read_xml(path: Path, image: Path) -> Annotated:
    """An image and its objects, without those that are marked as difficult."""
    root = _parse(path)
    if root.tag != "annotation" and root.find("object") is None:
        raise UserError(f"{shown(path)} is no annotation of VOC: it holds {excerpt(root.tag)}, not 'annotation'.")
    objects = []
    for place, element in enumerate(root.iterfind("object"), 1):
        if element.findtext("difficult", "0").strip() == "1":
            continue
        where = f"{shown(path)}, object {place}"
        fail = functools.partial(complaint, where)
        name = class_name(element.findtext("name", ""))
        if not name:
            raise fail("it has no name")
        if element.find("bndbox") is None:
            raise fail("it has no bndbox; add one, of xmin, ymin, xmax and ymax, in pixels")
        given = [element.findtext(f"bndbox/{side}", "") for side in ("xmin", "ymin", "xmax", "ymax")]
        x0, y0, x1, y1 = map(number, given)
        if x0 is None or y0 is None or x1 is None or y1 is None:
            raise fail(f"its bndbox has the sides {excerpt(given)}; expected xmin, ymin, xmax and ymax, in pixels")
        if x1 < x0 or y1 < y0:
            raise fail(f"its bndbox has the sides {excerpt(given)}; xmax or ymax is less than its min")
        objects.append(Object((x0 - 1, y0 - 1, x1, y1), name, where))  # VOC counts from 1, and includes both ends
    width, height = (root.findtext(f"size/{side}", "").strip() for side in ("width", "height"))
    return Annotated(image, objects, size(width, height, functools.partial(complaint, shown(path))))


def _parse(path: Path) -> ElementTree.Element:
    """The root of an XML file. Files with entities are refused, because entities can unfold to fill the memory."""
    content = read_bytes(path)

    def refuse(*_: object) -> None:
        raise UserError(f"{shown(path)} declares entities, which annotations do not need. Remove its DOCTYPE.")

    try:
        guard = expat.ParserCreate()
        guard.EntityDeclHandler = refuse
        guard.Parse(content, True)
        return ElementTree.fromstring(content)
    except UserError:
        raise
    except (expat.ExpatError, ElementTree.ParseError) as error:
        raise UserError(f"{shown(path)} is not XML: {error}.") from error
    except (ValueError, LookupError) as error:  # an unknown encoding
        raise UserError(f"{shown(path)} is not XML: {error}.") from error
