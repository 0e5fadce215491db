"""k nearest neighbors: whether images of a kind have alike vectors. No training.

Wu et al., "Unsupervised Feature Learning via Non-Parametric Instance Discrimination", CVPR 2018.
"""

from __future__ import annotations

import bisect
import csv
import functools
import io
import itertools
from collections import Counter
from collections.abc import Callable, Hashable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64, Shaped
from torch import Tensor, nn
from torch.utils.data import Dataset

from densecl.borrowed import evaluating
from densecl.errors import UserError
from densecl.evaluation.boxed import is_boxed
from densecl.evaluation.dense import device_of, normalize
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
from densecl.evaluation.labeled import is_labelled, resize
from densecl.names import shown

#: Of the images, the share that is asked for; the others answer.
ASKED = 0.2


class Neighbors(NamedTuple):
    """How well images find their class, in percent."""

    accuracy: float
    chance: float  # of always answering with the most common class


class Classified(NamedTuple):
    """An image file and what is known of it."""

    path: Path
    name: str  # of its class
    group: str | None = None  # the images of a group stand on one side; None: it is its own
    split: str | None = None  # the name of the side that it stands on; None: that is drawn


class ClassifiedFiles(Sequence, Dataset):
    """Image files with a class each, read when asked for.

    Args:
        files: the images, either all with a split or none.
        test_split: those of this split are asked.
        channels: of every image that is read.
        size: side of the square that images are resized to.

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
        """Which images are asked: those of the test split, where there is one, or groups that the seed draws.

        Raises:
            UserError: one side is empty.
        """
        if self.test_split is None:
            groups = [index if file.group is None else file.group for index, file in enumerate(self.files)]
            return draw_partition(groups, seed)
        sides = [file.split == self.test_split for file in self.files]
        asked, known = ([index for index, side in enumerate(sides) if side is which] for which in (True, False))
        if not asked or not known:
            raise UserError("No image is left to ask, or none to answer. Give more --images.")
        return Partition(asked, known)

    def unfindable(self, seeds: Sequence[int]) -> set[str]:
        """The classes that an image is asked for, for one of the seeds, and none that answers has."""
        found = set()
        for asked, known in map(self.partition, seeds):
            found |= {self.files[index].name for index in asked} - {self.files[index].name for index in known}
        return found

    def is_drawn_singly(self) -> bool:
        """Whether chance decides of each image on its own which side it stands on."""
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

    asked: list[int]
    known: list[int]  # these answer


def draw_partition(groups: Sequence[Hashable], seed: int) -> Partition:
    """At least a fifth of the images is asked; those of one group are on the same side.

    Args:
        groups: the group of each image.
        seed: of the drawing.

    Raises:
        UserError: there are not two groups.
    """
    members: dict[Hashable, list[int]] = {}
    for index, group in enumerate(groups):
        members.setdefault(group, []).append(index)
    if len(members) < 2:
        raise UserError("There are not two images to compare, or all are of one group.")
    drawn = [list(members.values())[place] for place in torch.randperm(len(members), generator=_seeded(seed)).tolist()]
    ends = list(itertools.accumulate(map(len, drawn)))
    wanted = max(1, round(ASKED * len(groups)))
    first = min(bisect.bisect_left(ends, wanted) + 1, len(drawn) - 1)
    asked, known = (list(itertools.chain.from_iterable(some)) for some in (drawn[:first], drawn[first:]))
    return Partition(asked, known)


def _seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def open_classified(
    data: Path | str, train_split: str = "train", test_split: str | None = None, *, channels: int = 3, size: int = 128
) -> ClassifiedFiles:
    """Images with a class each.

    Args:
        data: a CSV file, with a header or without, or a folder with an ``index.csv``: the first column is a file,
            relative to the CSV's folder or to ``images`` in it, the second its class, and columns that the header calls
            "split" or "group" say which images are asked or stay together; or a folder with one of images for each
            class, or with such folders in ``train`` and ``test`` (or other splits).
        train_split: the images that answer, where there are splits.
        test_split: the images that are asked, where there are splits. Not given: "test" or "val", whichever there is.
        channels: of every image that is read.
        size: side of the square that images are resized to.

    Raises:
        UserError: there is nothing there, the labels are others, a file or class is missing, or there are not two.
    """
    data = Path(data).expanduser()
    listing = data / "index.csv" if data.is_dir() else data
    if listing.is_file():
        files = _listed(listing)
    elif is_labelled(data) or is_boxed(data):
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
        UserError: a group stands on both sides.
    """
    sides: dict[str, str | None] = {}
    for file in files:
        if file.group is not None and sides.setdefault(file.group, file.split) != file.split:
            splits = shown(f"{sides[file.group]} and {file.split}")
            raise UserError(f"The group '{shown(file.group)}' has images in two splits, {splits}. Keep it in one.")


def _by_folder(data: Path, train_split: str, test_split: str | None) -> list[Classified]:
    """The images of a folder for each class, or of such folders for each split."""
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
    columns: dict[str, int] = {}  # by the titles that a header gives them
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
    """(where it stands, what it says) of each row of a CSV file that is not empty."""
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


def neighbors(
    backbone: nn.Module,
    images: Sequence[tuple[Tensor, int]],
    *,
    mean: Sequence[float],
    std: Sequence[float],
    batch_size: int = 32,
    seeds: Sequence[int] = (0,),
    partition: Callable[[int], Partition] | None = None,
) -> list[Neighbors]:
    """Ask some of the images for their class, and let their 20 nearest among the others vote.

    The vector of an image is the mean over its feature map. The backbone goes over the images once for all seeds.

    Args:
        backbone: any module that returns a feature map "batch channels rows cols"; left as it was.
        images: uint8 or uint16 images of one size, and their classes.
        mean: of each channel, on the 0-1 scale, as the backbone was trained with.
        std: of each channel, on the 0-1 scale.
        batch_size: images that go through the backbone at a time.
        seeds: each draws which images are asked.
        partition: which images are asked and which answer, for a seed. Not given: a fifth of them is drawn.

    Raises:
        UserError: there are fewer than two images.
    """
    partition = partition or functools.partial(draw_partition, range(len(images)))
    partitions = [partition(seed) for seed in seeds]
    device = device_of(backbone)
    vectors, labels = [], []
    with evaluating(backbone):
        for start in range(0, len(images), batch_size):
            some = [images[index] for index in range(start, min(start + batch_size, len(images)))]
            pixels = normalize([image for image, _ in some], mean, std, device)
            vectors.append(F.normalize(backbone(pixels).float().mean(dim=(2, 3)), dim=1))
            labels += [label for _, label in some]
    all_vectors, all_labels = torch.cat(vectors), torch.tensor(labels, device=device)
    found = []
    for asked, known in partitions:
        answers = vote(all_vectors[asked], all_vectors[known], all_labels[known])
        right = (answers == all_labels[asked]).float().mean().item()
        commonest = Counter(all_labels[known].tolist()).most_common(1)[0][0]
        chance = (all_labels[asked] == commonest).float().mean().item()
        found.append(Neighbors(100 * right, 100 * chance))
    return found


def vote(
    queries: Float[Tensor, "batch dim"],
    keys: Float[Tensor, "images dim"],
    labels: Int64[Tensor, "images"],
    k: int = 20,
    temperature: float = 0.07,
) -> Int64[Tensor, "batch"]:
    """The class with the most votes of the k nearest keys, weighted by exp(cosine / temperature), of unit vectors."""
    similarity, nearest = (queries @ keys.T).topk(min(k, len(keys)), dim=1)
    votes = torch.zeros(len(queries), int(labels.max()) + 1, device=queries.device)
    votes.scatter_add_(1, labels[nearest], (similarity / temperature).softmax(dim=1))
    return votes.argmax(dim=1)
