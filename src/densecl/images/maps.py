"""Feature maps of whole images, kept in a folder: a view's cells are cut out of them instead of computed anew.

Each map is a file of its own, named by the image's cache key and by what made it, so that any number of processes and
runs may share the folder, and it may be deleted at any time.
"""

from __future__ import annotations

import hashlib
import io
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Float16
from torch import Tensor
from torchvision.ops import roi_align

from densecl.errors import UserError
from densecl.files import free_bytes, replacing
from densecl.images.decode import BadImage
from densecl.images.sources import DatasetSource, ImageSource
from densecl.names import shown

#: Bytes before the numbers of a .npy file of three dimensions.
HEADER = 128

#: At least so many bytes of the file system stay free.
FREE_BYTES = 2**30


class KeptMaps:
    """The maps of a source's images that a frozen network made.

    Args:
        source: the images, from files.
        folder: of the maps, made if missing. Several sources and networks may share it.
        made_by: differs for another network, or another way to show it an image.
        shape: channels, rows and columns of a map.

    Raises:
        UserError: the folder cannot be written, or the images have no files.
    """

    def __init__(self, source: ImageSource, folder: Path | str, made_by: str, shape: tuple[int, int, int]) -> None:
        if isinstance(source, DatasetSource):
            raise UserError("--teacher-cache needs image files; it cannot be used with a data set in Python.")
        self.source = source
        self.folder = Path(folder).expanduser().absolute()
        self.made_by = made_by
        self.shape = shape
        self._unfinished = self.folder / "unfinished"
        try:
            self._unfinished.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"--teacher-cache {folder}: the folder cannot be written ({error.strerror}).") from error

    @property
    def bytes_each(self) -> int:
        """Of a file."""
        return HEADER + 2 * int(np.prod(self.shape))

    def missing(self) -> Iterator[int]:
        """The images whose map is not there, or not whole. Those that can have none are left out."""
        return filter(self.lacks, range(len(self.source)))

    def lacks(self, index: int) -> bool:
        """Whether the map of this image is still to be made."""
        path = self._path(index)
        return path is not None and _size(path) not in (0, self.bytes_each)

    def check_space(self, missing: int) -> None:
        """
        Raises:
            UserError: there is no room for so many more maps.
        """
        needed, free = missing * self.bytes_each, free_bytes(self.folder)
        if free is not None and needed > free - FREE_BYTES:
            raise UserError(
                f"--teacher-cache {self.folder}: {missing} maps are {needed / 1e9:.1f} GB, and there is room for"
                f" {max(0, free - FREE_BYTES) / 1e9:.1f} GB. Free some, give a smaller --teacher-size, or leave it out."
            )

    def write(self, index: int, features: Float[Tensor, "dim rows cols"] | None) -> None:
        """Keeps the map of an image. None: it cannot be read; an empty file says so.

        Raises:
            OSError: it cannot be written.
            UserError: it has numbers that 16 bits cannot hold.
        """
        path = self._path(index)
        if path is None:
            return
        content = io.BytesIO()
        if features is not None:
            assert tuple(features.shape) == self.shape
            values = features.to(torch.float16).cpu().contiguous()
            if not values.isfinite().all():
                raise UserError(
                    f"The teacher's map of {shown(self.source.name(index))} has a number that is not finite, or too"
                    " large for 16 bits. Leave --teacher-cache out."
                )
            np.save(content, values.numpy(), allow_pickle=False)
        path.parent.mkdir(exist_ok=True)
        # Not durable: to wait for the disk would take long, and a map that is not whole is made anew.
        with replacing(path, beside=self._unfinished / uuid.uuid4().hex, durable=False) as file:
            file.write(content.getvalue())

    def read(self, index: int) -> Float16[Tensor, "dim rows cols"]:
        """
        Raises:
            BadImage: it is not there. The image could not be read when the maps were made.
        """
        path = self._path(index)
        try:
            if path is not None and _size(path) == self.bytes_each:
                values = np.load(path, allow_pickle=False)
                if values.shape == self.shape and values.dtype == np.float16:
                    return torch.from_numpy(values)
        except (OSError, ValueError):
            pass
        raise BadImage(f"the teacher's map of it is not in {self.folder}")

    def _path(self, index: int) -> Path | None:
        key = self.source.key(index)
        if key is None:
            return None
        name = hashlib.blake2b(self.made_by.encode() + b"\0" + key, digest_size=20).hexdigest()
        return self.folder / name[:2] / f"{name[2:]}.npy"


def _size(path: Path) -> int | None:
    """Bytes of a file; None if there is none."""
    try:
        return path.stat().st_size if path.is_file() else None
    except OSError:
        return None


def cells_of_view(
    features: Float16[Tensor, "dim _ _"],
    box: Float[Tensor, "4"],
    flipped: bool,
    image: Sequence[int],
    grid: tuple[int, int],
) -> Float[Tensor, "dim rows cols"]:
    """The cells of a view, cut out of the map of the whole image.

    Each is the mean over the part of the map that lies behind it, sampled bilinearly (`roi_align`).

    Args:
        features: the map.
        box: x0 y0 x1 y1 of the view in pixels of the image.
        flipped: whether the view is mirrored.
        image: height and width of the image.
        grid: rows and columns that the view shall have.
    """
    (height, width), (rows, cols) = image, features.shape[1:]
    scale = torch.tensor([cols / width, rows / height, cols / width, rows / height])
    boxes = [(box * scale).float()[None]]
    cells = roi_align(features[None].float(), boxes, output_size=grid, sampling_ratio=-1, aligned=True)[0]
    return cells.flip(2) if flipped else cells
