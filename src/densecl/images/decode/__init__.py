"""From an image file to a tensor of its pixels, or to the reason why not. Each format has a file here (see `table`).

The content decides the format, not the file's name. Damaged metadata do not make an image unreadable. The size in a
header is checked before that much memory is allocated. Eight bits stay uint8, sixteen stay uint16.

What a file holds is turned into the channels that the run asks for:

==========================  ======================================================================
grayscale, 3 wanted         repeated
RGB, 1 wanted               luma (ITU-R 601)
palette, CMYK, YCbCr        RGB
transparency                shown over white, unless exactly that many channels are wanted (RGBA as 4)
EXIF or TIFF orientation    turned upright
several pages               the picture, not its small copies and masks; the first of several pictures;
                            or, if there are as many gray pages as channels, one channel each
animation                   the first picture
.npy, TIFF floats           must lie in 0 to 1, become uint16
anything else               `BadImage`
==========================  ======================================================================
"""

from __future__ import annotations

import logging
import os
import stat
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from jaxtyping import Shaped
from PIL import Image
from torch import Tensor

from densecl.images.crops import resize
from densecl.images.decode.canvas import ORIENTATIONS, Region, Wanted
from densecl.images.decode.limits import BYTES_PER_PIXEL, MAX_PIXELS, BadImage, NoBrightness, check_cost
from densecl.images.decode.pillow import from_pillow
from densecl.images.decode.pixels import from_array, to_channels
from densecl.images.decode.table import EXTENSIONS, EXTENSIONS_OF_EXTRAS, FORMATS, KINDS, Format
from densecl.images.formats import HEAD, kind_of
from densecl.names import listing

__all__ = [
    "EXTENSIONS",
    "EXTENSIONS_OF_EXTRAS",
    "KINDS",
    "MAX_PIXELS",
    "BadImage",
    "NoBrightness",
    "Region",
    "decode",
    "from_array",
    "from_pillow",
    "measure",
    "to_channels",
]

# Both libraries log complaints about odd files. Without a handler, logging would print them to stderr.
for library in ("PIL", "tifffile"):
    logging.getLogger(library).addHandler(logging.NullHandler())


def decode(
    path: Path | str,
    channels: int,
    max_pixels: int = MAX_PIXELS,
    region: Region | None = None,
    least_side: int | None = None,
) -> Shaped[Tensor, "channels height width"]:
    """The pixels of an image file, upright, uint8 or uint16.

    The tensor's memory may be laid out channels last. Decoding takes at most eight bytes of memory for each pixel of
    `max_pixels`, plus 64 MiB, whatever the file holds.

    Args:
        path: of the file.
        channels: that the image shall have.
        max_pixels: larger images are refused. A limit above the default also raises Pillow's own, for the whole
            process.
        region: return only this part. TIFF and .npy then read only this part, and `max_pixels` limits the part.
        least_side: divide height and width by a whole number, as long as the shorter side keeps this many pixels. For
            JPEG the divisor is 2, 4 or 8, because libjpeg then skips the fine frequencies. No effect with a region.

    Raises:
        BadImage: the file cannot be read, is no image, is damaged, is larger than `max_pixels`, or its channels cannot
            be turned into `channels`.
    """
    if Image.MAX_IMAGE_PIXELS is not None and max_pixels > MAX_PIXELS:
        Image.MAX_IMAGE_PIXELS = max(Image.MAX_IMAGE_PIXELS, max_pixels)
    with _complaints_as_bad_image(), _open(path) as (file, size):
        format = _format(file)
        if not format.in_parts and size > BYTES_PER_PIXEL * max_pixels:
            raise BadImage("the file is larger than any image that would be accepted")
        pixels = format.reader.read(file, Wanted(channels, max_pixels, region, least_side))
        return pixels if region is not None or least_side is None else _shrink(pixels, least_side, max_pixels)


def measure(path: Path | str, channels: int) -> tuple[int, int]:
    """Height and width of the upright image in a file, from its header alone.

    Raises:
        BadImage: the header cannot be read.
    """
    with _complaints_as_bad_image(), _open(path) as (file, _):
        height, width, orientation = _format(file).reader.measure(file, channels)
    swapped, _ = ORIENTATIONS.get(orientation, ORIENTATIONS[1])
    return (width, height) if swapped else (height, width)


@contextmanager
def _complaints_as_bad_image() -> Iterator[None]:
    """Turn whatever a decoder raises into `BadImage`, and keep its warnings off the terminal."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except BadImage:
        raise
    except Image.UnidentifiedImageError as error:  # its message holds a memory address, different in every run
        raise BadImage("its header is damaged") from error
    except Image.DecompressionBombError as error:
        raise BadImage(f"more than {MAX_PIXELS} pixels: a decompression bomb?") from error
    except MemoryError as error:
        raise BadImage("needs more memory than there is") from error
    except OSError as error:
        raise BadImage(_one_line(error.strerror or error)) from error
    except Exception as error:  # decoders raise nearly everything: SyntaxError, struct.error, IndexError, ...
        raise BadImage(_one_line(f"{type(error).__name__}: {error}")) from error


def _one_line(message: object) -> str:
    text = " ".join(str(message).split())
    return text if len(text) <= 160 else text[:157] + "..."


@contextmanager
def _open(path: Path | str) -> Iterator[tuple[BinaryIO, int]]:
    """The file and its size."""
    _check_kind(os.stat(path))  # before opening, because opening a device may have an effect
    with open(path, "rb", opener=_open_at_once) as file:
        status = os.fstat(file.fileno())
        _check_kind(status)
        if status.st_size == 0:
            raise BadImage("empty file")
        yield file, status.st_size


def _check_kind(status: os.stat_result) -> None:
    """
    Raises:
        BadImage: it is a folder, a pipe, a socket or a device.
    """
    if stat.S_ISDIR(status.st_mode):
        raise BadImage("a folder, whatever its name says")
    if not stat.S_ISREG(status.st_mode):
        raise BadImage("not a regular file but a pipe, a socket or a device")


def _open_at_once(path: str, flags: int) -> int:
    """Opening a named pipe in the ordinary way would wait for its writer without end."""
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


def _format(file: BinaryIO) -> Format:
    """
    Raises:
        BadImage: none fits.
    """
    head = file.read(HEAD)
    file.seek(0)
    for format in FORMATS:
        if any(head.startswith(mark, format.place) for mark in format.marks):
            return format
    if kind := kind_of(head):
        raise BadImage(f"{kind}, whatever its name says")
    names = listing(format.name for format in FORMATS)
    raise BadImage(f"not a {names} image, or its header is damaged")


def _shrink(pixels: Shaped[Tensor, "channels _ _"], least_side: int, max_pixels: int) -> Shaped[Tensor, "channels _ _"]:
    height, width = pixels.shape[1:]
    factor = min(height, width) // least_side
    if factor < 2:
        return pixels
    # Sixteen-bit images are resized as floats, a channel at a time.
    floats = 4 if pixels.element_size() == 2 else 0
    check_cost(height, width, max_pixels, per_pixel=len(pixels) * pixels.element_size() + floats)
    return resize(pixels, height // factor, width // factor)
