"""Labelled images from files, in the layout of CamVid."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from densecl.errors import UserError
from densecl.images.decode import BadImage, decode

#: Larger label maps are refused before their pixels are decoded.
MAX_PIXELS = 100_000_000


class LabelledFiles(Sequence[tuple[Tensor, Tensor]]):
    """Images and label maps named by a list file, "image label" on each line, relative to the file's folder.

    Label maps are eight-bit images (grayscale or palette) whose values are the classes. Files are read
    when asked for.

    Args:
        listing: the list file. Empty lines are skipped. Paths hold no spaces.
        size: (width, height) to resize to, images bilinearly, labels to the nearest pixel. Not given: as they are.

    Raises:
        UserError: no such list, or a line that is not a pair. Reading an item: a file that cannot be used, or
            an image and a label map of different size.
    """

    def __init__(self, listing: Path | str, *, size: tuple[int, int] | None = None) -> None:
        listing = Path(listing)
        if not listing.is_file():
            raise UserError(f"{listing}: no such list of labelled images.")
        self.size = size
        self.pairs: list[tuple[Path, Path]] = []
        for number, line in enumerate(listing.read_text(encoding="utf-8").splitlines(), start=1):
            paths = line.split()
            if len(paths) not in (0, 2):
                raise UserError(f"{listing}, line {number}: expected 'image label', found {len(paths)} words.")
            if paths:
                self.pairs.append((listing.parent / paths[0], listing.parent / paths[1]))

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Image uint8 "3 height width" and label map uint8 "height width"."""
        image_path, label_path = self.pairs[index]
        try:
            image = decode(image_path, 3)
        except BadImage as error:
            raise UserError(f"{image_path} cannot be used: {error}") from error
        labels = _read_labels(label_path)
        if image.shape[1:] != labels.shape:
            raise UserError(f"{image_path} is {_size(image[0])}, but its label map {label_path} is {_size(labels)}.")
        if self.size is not None:
            width, height = self.size
            image = F.interpolate(image[None], size=(height, width), mode="bilinear", antialias=True)[0]
            labels = F.interpolate(labels[None, None], size=(height, width), mode="nearest-exact")[0, 0]
        return image, labels


def _read_labels(path: Path) -> Tensor:
    try:
        with Image.open(path) as file:
            if file.mode not in ("L", "P"):
                raise UserError(f"{path}: a label map is an eight-bit image of classes, not {file.mode}.")
            if file.width * file.height > MAX_PIXELS:
                raise UserError(f"{path}: {file.width}x{file.height} pixels are too many for a label map.")
            return torch.from_numpy(np.array(file))
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise UserError(f"{path} cannot be read as a label map: {error}") from error


def _size(plane: Tensor) -> str:
    return f"{plane.shape[1]}x{plane.shape[0]}"
