"""The names of the classes of label maps, from the files that data sets bring along."""

from __future__ import annotations

import csv
from collections.abc import Callable, Mapping
from pathlib import Path

import yaml

from densecl.errors import UserError
from densecl.evaluation.files import class_name, read_lines, read_text

#: The labels 0 to 20 of PASCAL VOC.
VOC = (
    *("background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow"),
    *("diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor"),
)


def names_of(data: Path) -> Mapping[int, str]:
    """The name of each label, as far as a file says it: ``classes.txt`` with a name on each line, from label 0 on;
    ``names`` in ``data.yaml``; Roboflow's ``_classes.csv`` (also in ``train``); PASCAL VOC's own.

    Such a file is a help, not data: one that cannot be read says nothing.
    """
    for path, read in (
        (data / "classes.txt", _lines),
        (data / "data.yaml", _yaml),
        (data / "_classes.csv", _roboflow),
        (data / "train" / "_classes.csv", _roboflow),
    ):
        if path.is_file():
            return _or_nothing(read, path)
    return dict(enumerate(VOC)) if (data / "SegmentationClass").is_dir() else {}


def _or_nothing(read: Callable[[Path], Mapping[int, str]], path: Path) -> Mapping[int, str]:
    try:
        return {label: name for label, name in read(path).items() if name}
    except (UserError, ValueError, yaml.YAMLError, RecursionError):
        return {}


def _lines(path: Path) -> Mapping[int, str]:
    return {label: class_name(line) for label, (_, line) in enumerate(read_lines(path))}


def _yaml(path: Path) -> Mapping[int, str]:
    content = yaml.safe_load(read_text(path))
    names = content.get("names") if isinstance(content, dict) else None
    numbered = dict(enumerate(names)) if isinstance(names, list) else names if isinstance(names, dict) else {}
    return {int(label): class_name(str(name)) for label, name in numbered.items()}


def _roboflow(path: Path) -> Mapping[int, str]:
    """Lines such as "1, tree" below a title."""
    rows = list(csv.reader(read_text(path).splitlines()))[1:]
    return {int(row[0]): class_name(row[1]) for row in rows if len(row) > 1}
