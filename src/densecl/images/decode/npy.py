"""Arrays as numpy saves them, with or without an axis of channels, which may be the first or the last."""

from __future__ import annotations

import math
import os
from typing import BinaryIO

import numpy as np
from jaxtyping import Shaped
from torch import Tensor

from densecl.images.decode.canvas import Canvas, Wanted
from densecl.images.decode.limits import BadImage, check_cost
from densecl.images.decode.pixels import layout

#: Limit for the bytes of a header. NumPy refuses longer ones only after it has read them, which may be 4 GB.
MAX_HEADER = 10_000

#: The orientation that swaps rows and columns: an array in Fortran's order is stored that way.
SWAPPED = 5


def read(file: BinaryIO, wanted: Wanted) -> Shaped[Tensor, "channels height width"]:
    """The array, or a region of it. Of a region only its rows are read.

    Raises:
        BadImage: it is no image, too large, or an array of Python objects, which are never loaded.
    """
    shape, fortran, dtype = read_header(file)
    place = file.tell()
    height, width, axis = layout(shape, wanted.channels)
    # In Fortran's order the axes are reversed, and so rows and columns are swapped.
    stored, turned = (shape[::-1], SWAPPED) if fortran else (shape, 1)
    if fortran:
        height, width = width, height
        axis = None if axis is None else 2 - axis
    canvas = Canvas(height, width, wanted, turned)
    top, left, bottom, right = canvas.part
    result = wanted.channels * (1 if dtype.itemsize == 1 else 2)
    check_cost(bottom - top, right - left, wanted.max_pixels, per_pixel=result)
    if place + math.prod(shape) * dtype.itemsize > os.fstat(file.fileno()).st_size:
        raise BadImage("truncated")
    for upper, lower in canvas.bands(per_pixel=1 if axis is None else stored[axis]):
        # Map the file again for each band. Otherwise the pages read so far would count as memory of the process.
        array = np.memmap(file, dtype, "r", place, stored)
        bands = array[None] if axis is None else np.moveaxis(array, axis, 0)
        canvas.put(bands[:, upper:lower, left:right])
    return canvas.tensor()


def measure(file: BinaryIO, channels: int) -> tuple[int, int, int]:
    """Height, width and orientation, from the header.

    Raises:
        BadImage: it is no image.
    """
    height, width, _ = layout(read_header(file)[0], channels)
    return height, width, 1


def read_header(file: BinaryIO) -> tuple[tuple[int, ...], bool, np.dtype]:
    """Shape, Fortran order and type. Afterwards the file stands at the first value.

    Raises:
        BadImage, or what NumPy raises: it is damaged, or an array of Python objects.
    """
    version = np.lib.format.read_magic(file)
    start = file.tell()
    if int.from_bytes(file.read(2 if version == (1, 0) else 4), "little") > MAX_HEADER:
        raise BadImage("the header of the .npy is damaged")
    file.seek(start)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, fortran, dtype = read(file)
    if dtype.hasobject:
        raise BadImage("a .npy of Python objects, which are never loaded")
    return shape, fortran, dtype
