"""Images with a class each, from a CSV file or from folders, and how they are parted into queries and support."""

from __future__ import annotations

import bisect
import csv
import io
import itertools
from collections.abc import Hashable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from jaxtyping import Shaped
from torch import Tensor
from torch.utils.data import Dataset

from densecl.errors import UserError
from densecl.evaluation.boxed import is_boxed
from densecl.evaluation.files import (
    TEST_SPLITS,
    class_name,
    decoded,
    is_image,
    located,
    read_text,
    scored_split,
    visible,
    what_there_is,
)
from densecl.evaluation.labeled import is_labeled, resize
from densecl.names import shown

#: Fraction of the images that are queries. The others are the support set.
QUERIES = 0.2


class Classified(NamedTuple):
    """An image file with its class."""

    path: Path
    name: str  # of its class
    group: str | None = None  # images of one group are never parted; None: the image is alone
    split: str | None = None  # decides whether it is a query; None: that is drawn


class ClassifiedFiles(Sequence, Dataset):
    """Image files with a class each. A file is read when its item is asked for.

    Args:
        files: the images. Either all of them have a split or none has.
        test_split: the images of this split are the queries.
        channels: of every image that is read.
        size: images are resized to squares of this side.

    Raises:
        UserError: reading an item that cannot be used.
    """

    def __init__(self, files: Sequence[Classified], test_split: str | None = None, *, channels: int, size: int) -> None:
        self.files = tuple(files)
        self.test_split = test_split
        self.names = tuple(sorted({file.name for file in files}))
        self.channels = channels
        self.size = size

    def take(self, images: Sequence[int]) -> ClassifiedFiles:
        """Some of the images."""
        some = [self.files[index] for index in images]
        return ClassifiedFiles(some, self.test_split, channels=self.channels, size=self.size)

    def partition(self, seed: int) -> Partition:
        """The queries are the images of the test split. If there is none, the seed draws them.

        Raises:
            UserError: there is no query, or no support image.
        """
        if self.test_split is None:
            groups = [index if file.group is None else file.group for index, file in enumerate(self.files)]
            return draw_partition(groups, seed)
        sides = [file.split == self.test_split for file in self.files]
        query, support = ([index for index, side in enumerate(sides) if side is which] for which in (True, False))
        if not query or not support:
            raise UserError("No query image is left, or no support image. Give more --images.")
        return Partition(query, support)

    def unfindable(self, seeds: Sequence[int]) -> set[str]:
        """The classes that a query has and no support image, for one of the seeds."""
        found = set()
        for query, support in map(self.partition, seeds):
            found |= {self.files[index].name for index in query} - {self.files[index].name for index in support}
        return found

    def is_drawn_singly(self) -> bool:
        """Whether each image is drawn on its own, without groups or splits."""
        return self.test_split is None and all(file.group is None for file in self.files)

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, index: int
    ) -> tuple[Shaped[Tensor, "channels height width"], int]:
        file = self.files[index]
        return resize(decoded(file.path, self.channels), (self.size, self.size)), self.names.index(file.name)


class Partition(NamedTuple):
    """Indices of images."""

    query: list[int]
    support: list[int]


def draw_partition(groups: Sequence[Hashable], seed: int) -> Partition:
    """Draw at least a fifth of the images as queries. Images of one group stay together.

    Args:
        groups: the group of each image.
        seed: fixes what is drawn.

    Raises:
        UserError: there are not two groups.
    """
    members: dict[Hashable, list[int]] = {}
    for index, group in enumerate(groups):
        members.setdefault(group, []).append(index)
    if len(members) < 2:
        raise UserError("There are not two images to compare, or all are of one group.")
    order = torch.randperm(len(members), generator=torch.Generator().manual_seed(seed))
    drawn = [list(members.values())[place] for place in order.tolist()]
    ends = list(itertools.accumulate(map(len, drawn)))
    wanted = max(1, round(QUERIES * len(groups)))
    first = min(bisect.bisect_left(ends, wanted) + 1, len(drawn) - 1)
    query, support = (list(itertools.chain.from_iterable(some)) for some in (drawn[:first], drawn[first:]))
    return Partition(query, support)


def open_classified(
    data: Path | str, train_split: str = "train", test_split: str | None = None, *, channels: int = 3, size: int = 128
) -> ClassifiedFiles:
    """Images with a class each.

    Args:
        data: one of these:
            a CSV file, or a folder with an ``index.csv``. The first column is a file, relative to the CSV's folder or
            to ``images`` in it. The second is its class. There may be a header. Columns that it calls "split" and
            "group" say which images are queries, and which stay together;
            a folder with a folder of images for each class;
            a folder with such folders in ``train`` and ``test`` (or other splits).
        train_split: the support images, where there are splits.
        test_split: the queries, where there are splits. Not given: "test", "val" or "valid", the first that there is.
        channels: of every image that is read.
        size: images are resized to squares of this side.

    Raises:
        UserError: there is nothing, there are other kinds of labels, a file or a class is missing, or there are fewer
            than two classes.
    """
    data = Path(data).expanduser()
    listing = data / "index.csv" if data.is_dir() else data
    if listing.is_file():
        files = _listed(listing)
    elif is_labeled(data) or is_boxed(data):
        raise UserError(f"{shown(data)} has labels of pixels or boxes; this needs index.csv (file, class).")
    elif data.is_dir():
        files = _by_folder(data, train_split, test_split)
    else:
        raise UserError(f"{shown(data)}: no such folder or CSV file of images with a class each.")
    splits = {file.split for file in files if file.split is not None}
    if splits:
        test_split = scored_split(data, splits) if test_split is None else test_split
        missing = [split for split in (train_split, test_split) if split not in splits]
        if missing:
            raise UserError(f"{shown(data)} has no split '{shown(missing[0])}'.{what_there_is(splits, missing[0])}")
        files = [file for file in files if file.split in (train_split, test_split)]
    elif test_split is not None:
        raise UserError(f"{shown(data)} has no splits, so there is no '{shown(test_split)}'. Leave out --test-split.")
    _check_groups(files)
    found = ClassifiedFiles(files, test_split, channels=channels, size=size)
    if len(found.names) < 2:
        raise UserError(
            f"{shown(data)} has images of {f'one class, {shown(found.names[0])}' if found.names else 'no class'};"
            " expected index.csv (file, class) or a folder for each class."
        )
    return found


def _check_groups(files: Sequence[Classified]) -> None:
    """
    Raises:
        UserError: a group has images in two splits.
    """
    sides: dict[str, str | None] = {}
    for file in files:
        if file.group is not None and sides.setdefault(file.group, file.split) != file.split:
            splits = shown(f"{sides[file.group]} and {file.split}")
            raise UserError(f"The group '{shown(file.group)}' has images in two splits, {splits}. Keep it in one.")


def _by_folder(data: Path, train_split: str, test_split: str | None) -> list[Classified]:
    """The images of class folders, which may lie in folders for the splits."""
    deep = [
        Classified(path, class_name(path.parent.name), split=path.parent.parent.name)
        for path in sorted(visible(data, "*/*/*"))
        if is_image(path)
    ]
    splits = {file.split for file in deep}
    if train_split in splits and (test_split is not None or splits & set(TEST_SPLITS)):
        return deep
    flat = [Classified(path, class_name(path.parent.name)) for path in sorted(visible(data, "*/*")) if is_image(path)]
    return flat or deep


def _listed(listing: Path) -> list[Classified]:
    files = []
    seen: set[Path] = set()
    columns: dict[str, int] = {}  # their numbers, by their titles in the header
    for number, (place, row) in enumerate(_rows(listing)):
        path = located(listing.parent, row[0]) or located(listing.parent / "images", row[0])
        if number == 0 and path is None and not is_image(Path(row[0])):  # a header
            columns = {title.strip().lower(): column for column, title in enumerate(row)}
            if columns.get("split") == 1 or columns.get("group") == 1:
                raise UserError(f"{place}: the second column is {shown(row[1])}; the class belongs there.")
            continue
        if len(row) < 2 or not row[1].strip():
            raise UserError(f"{place}: expected a file and a class, with a comma between them.")
        if path is None:
            raise UserError(f"{place}: there is no file {shown(listing.parent / row[0])}.")
        if path in seen:
            raise UserError(f"{place}: {shown(path)} is listed again, and would be its own neighbor.")
        seen.add(path)
        more = {title: row[column].strip() for title, column in columns.items() if column < len(row)}
        if "split" in columns and not more.get("split"):
            raise UserError(f"{place}: its split is empty.")
        files.append(Classified(path, class_name(row[1]), more.get("group") or None, more.get("split")))
    return files


def _rows(listing: Path) -> Iterator[tuple[str, list[str]]]:
    """The rows of a CSV file that are not empty, each with its place for messages."""
    rows = csv.reader(io.StringIO(read_text(listing), newline=""), strict=True)
    while True:
        place = f"{shown(listing)}, line {rows.line_num + 1}"
        try:
            row = next(rows, None)
        except csv.Error as error:
            raise UserError(f"{place} cannot be read as CSV: is a quote missing?") from error
        if row is None:
            return
        if row:
            yield place, row
