"""Near-duplicates by their vectors: images that show nearly the same, such as the frames of a video.

The images are taken in order. One that is nearly the same as an image that was kept belongs to that image's group; any
other is kept itself. So each image that is left out looks like one that stays, and a slow video is thinned out, not
cut down to its first frame.

How alike two images are is the cosine of their vectors after the mean over all images was subtracted. Without that all
images are alike: what they have in common, and what the network says of any image, is most of each vector.
"""

from __future__ import annotations

import math
import os
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Float32, Int64
from rich.console import Console
from torch import Tensor

from densecl.embedding.formats import Stored
from densecl.images.lists import write_list
from densecl.names import shown

#: Cosine from which two images count as nearly the same. Seen with ImageNet's EfficientNet-Lite0, continued on street
#: scenes: frames that a driving car took 1/15 s apart have 0.90 to 0.97 (95 of 100 such pairs), one second apart 0.80;
#: a photograph and its copy, cropped by a tenth or saved as a poor JPEG, 0.92 and more (9 of 10); the most similar of
#: 120 unrelated photographs 0.82. Where all images look alike, as in microscopy, unrelated ones reach 0.95.
THRESHOLD = 0.9

#: Images that are compared with each other at a time: a square of so many cosines is in memory.
BLOCK = 2048

#: A further number that all vectors get, relative to their usual length. Two images that are both like the mean then
#: count as alike, as all do where each image is the same.
ANCHOR = 1e-3

#: Groups that are shown, the largest.
SHOWN = 5


class Duplicates(NamedTuple):
    """Which images are nearly the same."""

    leader: Int64[np.ndarray, "images"]  # of each image, the kept one that it is like; itself, if it is kept
    cosine: Float32[np.ndarray, "images"]  # to its leader

    @property
    def kept(self) -> int:
        """Images that stay."""
        return int((self.leader == np.arange(len(self.leader))).sum())

    @property
    def groups(self) -> int:
        """Groups of two or more."""
        return int((np.bincount(self.leader, minlength=1) > 1).sum())


def find_duplicates(stored: Stored, threshold: float, device: torch.device, folder: Path) -> Duplicates:
    """Group the images of a file of vectors.

    It takes time that grows with the number of images times that of those kept, and memory for a block of vectors.

    Args:
        stored: image vectors.
        threshold: the cosine from which images belong together.
        device: where the cosines are computed.
        folder: for a file of the kept vectors meanwhile.
    """
    count = len(stored.names.ends)
    leader, cosine = np.zeros(count, np.int64), np.ones(count, np.float32)
    centered = _centering(stored, device)
    with tempfile.TemporaryFile(dir=folder) as file:
        kept: list[np.ndarray] = []  # the images whose vectors are in the file
        at = 0
        for vectors in stored.vectors():
            for block in vectors.split(BLOCK):
                units = centered(block.to(device))
                best, which = _nearest_kept(units, file, kept)
                here = _greedy(units, best >= threshold, threshold)
                images = at + np.arange(len(block))
                own = here[0] >= 0
                leader[images] = np.where(own, at + here[0], which)
                cosine[images] = np.where(own, here[1], best)
                stays = leader[images] == images
                file.seek(0, 2)
                file.write(units[torch.from_numpy(stays)].cpu().numpy().data)
                kept.append(images[stays])
                at += len(block)
    return Duplicates(leader, cosine)


def _centering(stored: Stored, device: torch.device) -> Callable[[Tensor], Tensor]:
    """Subtracts the mean over all images, adds the anchor, and makes the length 1."""
    total, squares, count = torch.zeros(stored.plan.dim, dtype=torch.float64), 0.0, 0
    for vectors in stored.vectors():
        total += vectors.double().sum(dim=0)
        squares += vectors.double().square().sum().item()
        count += len(vectors)
    mean = (total / max(1, count)).float().to(device)
    anchor = ANCHOR * math.sqrt(squares / max(1, count)) or 1.0

    def centered(vectors: Tensor) -> Tensor:
        return F.normalize(F.pad(vectors.float() - mean, (0, 1), value=anchor), dim=1)

    return centered


def _nearest_kept(
    units: Float[Tensor, "images dim"], file: BinaryIO, kept: Sequence[np.ndarray]
) -> tuple[Float32[np.ndarray, "images"], Int64[np.ndarray, "images"]]:
    """For each of a block of vectors, the cosine to the most similar of those kept before, and which one that is.

    Args:
        units: the block.
        file: the vectors that were kept before, one after the other.
        kept: their images.
    """
    best = np.full(len(units), -2.0, np.float32)
    which = np.full(len(units), -1, np.int64)
    file.seek(0)
    for images in kept:
        if len(images) == 0:
            continue
        content = bytearray(file.read(len(images) * units.shape[1] * 4))
        others = torch.frombuffer(content, dtype=torch.float32).reshape(len(images), -1).to(units.device)
        cosines, places = (units @ others.T).max(dim=1)
        closer = cosines.cpu().numpy() > best
        best[closer] = cosines.cpu().numpy()[closer]
        which[closer] = images[places.cpu().numpy()[closer]]
    return best, which


def _greedy(
    units: Float[Tensor, "images dim"], taken: Bool[np.ndarray, "images"], threshold: float
) -> tuple[Int64[np.ndarray, "images"], Float32[np.ndarray, "images"]]:
    """Groups within a block, in order, without the images that are `taken` already.

    Returns:
        For each image its leader in the block (itself, if it is kept) and the cosine to it; -1 for those taken.
    """
    cosines = (units @ units.T).cpu().numpy()
    leader, cosine = np.full(len(units), -1, np.int64), np.ones(len(units), np.float32)
    kept = np.zeros(len(units), bool)
    for image in np.flatnonzero(~taken).tolist():
        candidates = np.flatnonzero(kept[:image])
        best = candidates[cosines[image, candidates].argmax()] if len(candidates) else image
        if len(candidates) and cosines[image, best] >= threshold:
            leader[image], cosine[image] = best, cosines[image, best]
        else:
            leader[image], kept[image] = image, True
    return leader, cosine


def write_kept(path: Path, stored: Stored, found: Duplicates) -> int:
    """Write a list of the images that stay, which `pretrain` takes. Those left out follow theirs, as comments.

    Returns:
        The number of images whose names no list can say, such as those with a line break. They are not in it.
    """
    order = np.lexsort((np.arange(len(found.leader)), found.leader))
    rows = (
        (
            os.fsdecode(stored.names.get(image)),
            None if found.leader[image] == image else f"like the one above, {found.cosine[image]:.3f}",
        )
        for image in order.tolist()
    )
    return write_list(path, "The images that stay. Below each, those that are nearly the same, with the cosine.", rows)


def tell_duplicates(
    stored: Stored, found: Duplicates, unsayable: int, threshold: float, path: Path, console: Console
) -> None:
    """How many groups there are, the largest of them, and where the list is."""
    images, sizes = len(found.leader), np.bincount(found.leader)
    console.print(
        f"{found.groups} group{'' if found.groups == 1 else 's'} of near-duplicates (cosine from {threshold:g}):"
        f" {found.kept} of {images} images stay"
    )
    for leader in np.argsort(-sizes, kind="stable")[:SHOWN].tolist():
        if sizes[leader] > 1:
            console.print(f"  {sizes[leader]} like {shown(os.fsdecode(stored.names.get(leader)))}")
    if unsayable:
        console.print(f"warning: {unsayable} names cannot stand in a list, such as those with a line break")
    console.print(f"the images that stay: {shown(path)}, for pretrain --data")
