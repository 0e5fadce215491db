"""k nearest neighbours: whether images of a kind have alike vectors. No training.

Wu et al., "Unsupervised Feature Learning via Non-Parametric Instance Discrimination", CVPR 2018.
"""

from __future__ import annotations

import csv
import os
from collections import Counter
from collections.abc import Sequence
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
from densecl.evaluation.dense import device_of, normalise
from densecl.evaluation.labelled import decoded, is_labelled, resize, shown
from densecl.images.formats import EXTENSIONS

#: Of the images, the share that is asked for; the others answer.
ASKED = 0.2


class Neighbours(NamedTuple):
    """How well images find their class, in percent."""

    accuracy: float
    chance: float  # of always answering with the most common class


class ClassifiedFiles(Sequence, Dataset):
    """Image files with a class each, read when asked for.

    Args:
        files: path and name of the class of each image.
        channels: of every image that is read.
        size: side of the square that images are resized to.

    Raises:
        UserError: reading an item that cannot be used.
    """

    def __init__(self, files: Sequence[tuple[Path, str]], *, channels: int, size: int) -> None:
        self.files = tuple(files)
        self.names = tuple(sorted({name for _, name in files}))
        self.channels = channels
        self.size = size

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, index: int
    ) -> tuple[Shaped[Tensor, "channels height width"], int]:
        path, name = self.files[index]
        return resize(decoded(path, self.channels), (self.size, self.size)), self.names.index(name)


def open_classified(data: Path | str, *, channels: int = 3, size: int = 128) -> ClassifiedFiles:
    """Images with a class each.

    Args:
        data: a CSV file, with a header or without, or a folder with an ``index.csv``: the first column is a file,
            relative to the CSV's folder or to ``images`` in it, the second its class; or a folder with one of images
            for each class.
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
        raise UserError(f"{data} has labels of pixels or boxes; this needs index.csv (file, class).")
    elif data.is_dir():
        files = [(path, path.parent.name) for path in sorted(data.glob("*/*")) if path.suffix.lower() in EXTENSIONS]
    else:
        raise UserError(f"{data}: no such folder or CSV file of images with a class each.")
    found = ClassifiedFiles(files, channels=channels, size=size)
    if len(found.names) < 2:
        raise UserError(
            f"{data} has images of {len(found.names)} classes; expected index.csv (file, class) or a folder for each"
            " class."
        )
    return found


def _listed(listing: Path) -> list[tuple[Path, str]]:
    files = []
    header = True  # may come
    try:
        with listing.open(encoding="utf-8-sig", newline="") as file:
            for number, row in enumerate(csv.reader(file), 1):
                if not row:
                    continue
                places = [listing.parent / row[0], listing.parent / "images" / row[0]]
                path = next(filter(os.path.isfile, places), None)  # Path.is_file raises for a name that is too long
                is_header = header and path is None and Path(row[0]).suffix.lower() not in EXTENSIONS
                header = False
                if is_header:
                    continue
                if len(row) < 2 or not row[1].strip():
                    raise UserError(f"{listing}, line {number}: expected a file and a class.")
                if path is None:
                    raise UserError(f"{listing}, line {number}: there is no file {shown(places[0])}.")
                files.append((path, row[1].strip()))
    except OSError as error:
        raise UserError(f"{listing} cannot be read: {error.strerror}.") from error
    except (csv.Error, UnicodeDecodeError) as error:
        raise UserError(f"{listing} cannot be read as CSV: {error}.") from error
    return files


def neighbours(
    backbone: nn.Module,
    images: Sequence[tuple[Tensor, int]],
    *,
    mean: Sequence[float],
    std: Sequence[float],
    batch_size: int = 32,
    seeds: Sequence[int] = (0,),
) -> list[Neighbours]:
    """Ask a fifth of the images for their class, and let their 20 nearest among the others vote.

    The vector of an image is the mean over its feature map. The backbone goes over the images once for all seeds.

    Args:
        backbone: any module that returns a feature map "batch channels rows cols"; left as it was.
        images: uint8 or uint16 images of one size, and their classes.
        mean: of each channel, on the 0-1 scale, as the backbone was trained with.
        std: of each channel, on the 0-1 scale.
        batch_size: images that go through the backbone at a time.
        seeds: each draws which images are asked.

    Raises:
        UserError: there are fewer than two images.
    """
    if len(images) < 2:
        raise UserError("There are not two images to compare.")
    device = device_of(backbone)
    vectors, labels = [], []
    with evaluating(backbone):
        for start in range(0, len(images), batch_size):
            some = [images[index] for index in range(start, min(start + batch_size, len(images)))]
            pixels = normalise([image for image, _ in some], mean, std, device)
            vectors.append(F.normalize(backbone(pixels).float().mean(dim=(2, 3)), dim=1))
            labels += [label for _, label in some]
    all_vectors, all_labels = torch.cat(vectors), torch.tensor(labels, device=device)
    found = []
    for seed in seeds:
        order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed)).to(device)
        asked, known = order.tensor_split([max(1, round(ASKED * len(images)))])
        answers = vote(all_vectors[asked], all_vectors[known], all_labels[known])
        right = (answers == all_labels[asked]).float().mean().item()
        commonest = Counter(all_labels[known].tolist()).most_common(1)[0][0]
        chance = (all_labels[asked] == commonest).float().mean().item()
        found.append(Neighbours(100 * right, 100 * chance))
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
