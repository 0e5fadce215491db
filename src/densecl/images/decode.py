"""From the bytes of one image file to a tensor of its pixels, or to the reason why not.

The content decides the format, never the file's name. What a header promises is checked before
anything of that size is allocated. Eight bits stay uint8, sixteen stay uint16.

What a file holds becomes what the run asks for:

==========================  ======================================================================
grayscale, 3 wanted         repeated
RGB, 1 wanted               luma (ITU-R 601)
palette, CMYK, YCbCr        RGB
transparency                shown over white, unless exactly that many channels are wanted (RGBA as 4)
EXIF or TIFF orientation    turned upright
several pages               the first; or, if there are as many gray pages as channels, one channel each
.npy, TIFF floats           must lie in 0 to 1, become uint16
anything else               `BadImage`
==========================  ======================================================================
"""

from __future__ import annotations

import importlib.util
import io
import itertools
import logging
import os
import stat
import warnings
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
import tifffile
import torch
from jaxtyping import Shaped
from PIL import ExifTags, Image
from torch import Tensor

from densecl.images.crops import flip, resize

#: Images of more pixels are refused. Pillow's own guard against decompression bombs stands at the same place.
MAX_PIXELS = 178_956_970

#: Only these of Pillow's readers are used: fewer parsers for a hostile file to choose from.
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF")

#: How an orientation (EXIF tag 274) is undone: first rows and columns are swapped or not, then these axes mirrored.
ORIENTATIONS = {
    2: (False, (-1,)),
    3: (False, (-2, -1)),
    4: (False, (-2,)),
    5: (True, ()),
    6: (True, (-1,)),
    7: (True, (-2, -1)),
    8: (True, (-2,)),
}

# Both libraries complain about odd files through logging, which without a handler prints to stderr.
for library in ("PIL", "tifffile"):
    logging.getLogger(library).addHandler(logging.NullHandler())


class BadImage(Exception):
    """An image that cannot be used; the message is the reason, in one short line."""


class Region(NamedTuple):
    """A rectangle of an upright image, in pixels; the lower and right ends are exclusive."""

    top: int
    left: int
    bottom: int
    right: int


def decode(
    path: Path | str,
    channels: int,
    max_pixels: int = MAX_PIXELS,
    region: Region | None = None,
    least_side: int | None = None,
) -> Shaped[Tensor, "channels height width"]:
    """The pixels of an image file, upright, uint8 or uint16.

    With a `region` only that part is returned, and of tiled TIFF and of .npy only that part is read, so
    that `max_pixels` then limits the part. The tensor's memory may be laid out channels last.

    With `least_side` a whole image comes a whole number of times smaller, as long as its shorter side keeps that many
    pixels. A JPEG comes at a half, a quarter or an eighth, for which libjpeg does not compute the fine frequencies.

    Raises:
        BadImage: the file cannot be read, is not an image, is damaged, is larger than `max_pixels`, or
            its channels cannot be made `channels`.
    """
    with _complaints_as_bad_image(), _open(path) as file:
        pixels = _reader(file)(file, channels, max_pixels, region, least_side)
        return pixels if region is not None or least_side is None else _shrink(pixels, least_side)


def measure(path: Path | str, channels: int) -> tuple[int, int]:
    """Height and width of the upright image in a file, from its header alone.

    Raises:
        BadImage: the header cannot be read.
    """
    with _complaints_as_bad_image(), _open(path) as file:
        reader = _reader(file)
        if reader is _read_npy:
            return _layout(_npy_header(file)[0], channels)[:2]
        if reader is _read_tiff:
            with tifffile.TiffFile(file) as tiff:
                page = tiff.pages.first
                assert isinstance(page, tifffile.TiffPage)
                height, width, orientation = page.imagelength, page.imagewidth, _tiff_orientation(page)
        else:
            with Image.open(file, formats=FORMATS) as image:
                height, width, orientation = image.height, image.width, _orientation(image)
    return (width, height) if orientation in (5, 6, 7, 8) else (height, width)


def to_channels(
    pixels: Shaped[Tensor, "bands height width"], channels: int, *, alpha: bool = False, premultiplied: bool = False
) -> Shaped[Tensor, "channels height width"]:
    """The same image with the wanted number of channels, by the table at the top of this file.

    With `alpha` the last band is the opacity; `premultiplied` says that the colours already carry it.

    Raises:
        BadImage: the number of bands cannot be made `channels`.
    """
    if len(pixels) == channels:
        return pixels
    if alpha:
        pixels = _over_white(pixels, premultiplied)
        if len(pixels) == channels:
            return pixels
    if len(pixels) == 1 and channels == 3:
        return pixels.permute(1, 2, 0).repeat(1, 1, 3).permute(2, 0, 1)
    if len(pixels) == 3 and channels == 1:
        red, green, blue = pixels.to(torch.int64)
        luma = (19595 * red + 38470 * green + 7471 * blue + 0x8000) >> 16  # Pillow's fixed-point ITU-R 601
        return luma.to(pixels.dtype)[None]
    raise BadImage(f"has {len(pixels)} channel{'s' * (len(pixels) != 1)}, not {channels}")


def from_array(
    array: np.ndarray, channels: int, *, channels_first: bool = False
) -> Shaped[Tensor, "channels height width"]:
    """An image from an array: "height width", "height width channels" or "channels height width", copied.

    Which axis holds the channels is the one whose length is `channels` (or 1 or 3, which can be made
    `channels`); where both could, the last, or the first with `channels_first`.

    Raises:
        BadImage: no axis fits, or the values are neither uint8, uint16 nor floats in 0 to 1.
    """
    axis = _layout(array.shape, channels, channels_first=channels_first)[2]
    array = array[None] if axis is None else np.moveaxis(array, axis, 0)
    return to_channels(_to_tensor(array), channels)


def from_pillow(image: Image.Image, channels: int) -> Shaped[Tensor, "channels height width"]:
    """An image from Pillow's; its EXIF orientation is undone.

    Raises:
        BadImage: its data are damaged or its channels cannot be made `channels`.
    """
    orientation = 1 if image.format == "TIFF" else _orientation(image)  # Pillow turns TIFFs itself
    image.load()
    if image.mode == "P":
        image = image.convert("RGBA" if image.has_transparency_data else "RGB")
    elif image.mode in ("PA", "La", "RGBa"):
        image = image.convert("RGBA" if image.mode != "La" else "LA")
    elif image.mode in ("L", "RGB") and "transparency" in image.info:
        image = image.convert(image.mode + "A")
    elif image.mode == "1":
        image = image.convert("L")
    elif image.mode == "I":
        image = _narrow(image)
    elif image.mode not in ("L", "LA", "RGB", "RGBA", "F") and not image.mode.startswith("I;16"):
        image = image.convert("RGB")
    array = np.asarray(image)
    pixels = _to_tensor(array[None] if array.ndim == 2 else array.transpose(2, 0, 1))
    return to_channels(_upright(pixels, orientation), channels, alpha=image.mode in ("LA", "RGBA"))


# --- opening ------------------------------------------------------------------------------------------------------

Reader = Callable[[BinaryIO, int, int, Region | None, int | None], Tensor]


@contextmanager
def _complaints_as_bad_image() -> Iterator[None]:
    """Turn whatever a decoder raises on a hostile file into `BadImage`, and keep its warnings off the terminal."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except BadImage:
        raise
    except Image.UnidentifiedImageError as error:  # its own message holds an address, different in every run
        raise BadImage("not a JPEG, PNG, WebP, BMP, TIFF or .npy image, or its header is damaged") from error
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
def _open(path: Path | str) -> Iterator[BinaryIO]:
    with open(path, "rb", opener=_open_at_once) as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise BadImage("not a regular file")
        if status.st_size == 0:
            raise BadImage("empty file")
        yield file


def _open_at_once(path: str, flags: int) -> int:
    """A named pipe, opened the ordinary way, would wait for its writer for ever."""
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


#: What else is met under an image's name: where its mark stands, and the mark in lower case.
OTHER_KINDS = {
    "a GIF": (0, b"gif8"),
    "a HEIC or AVIF image": (4, b"ftyp"),
    "a PDF": (0, b"%pdf"),
    "a web page (a failed download?)": (0, b"<!doctype"),
    "an HTML file (a failed download?)": (0, b"<html"),
    "an XML or SVG file": (0, b"<?xml"),
    "an SVG file": (0, b"<svg"),
}


def _reader(file: BinaryIO) -> Reader:
    magic = file.read(12)
    file.seek(0)
    for kind, (place, mark) in OTHER_KINDS.items():
        if magic[place : place + len(mark)].lower() == mark:
            raise BadImage(f"{kind}, whatever its name says")
    if magic[:6] == b"\x93NUMPY":
        return _read_npy
    if magic[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
        return _read_tiff
    return _read_with_pillow


def _check_size(height: int, width: int, max_pixels: int) -> None:
    if height < 1 or width < 1:
        raise BadImage(f"its size is {width}x{height}")
    if height * width > max_pixels:
        raise BadImage(f"{width}x{height} is more than {max_pixels} pixels: a decompression bomb?")


# --- JPEG, PNG, WebP, BMP -----------------------------------------------------------------------------------------


def _read_with_pillow(
    file: BinaryIO, channels: int, max_pixels: int, region: Region | None, least_side: int | None
) -> Tensor:
    if os.fstat(file.fileno()).st_size > 8 * max_pixels:
        raise BadImage("the file is larger than any image that would be accepted")
    data = file.read()
    with Image.open(io.BytesIO(data), formats=FORMATS) as image:
        _check_size(image.height, image.width, max_pixels)
        if image.format in ("JPEG", "MPO") and not _has_end(data):
            raise BadImage("truncated: the end of the JPEG is missing")
        if image.format == "JPEG" and region is None and least_side is not None:
            shrink = max(scale for scale in (1, 2, 4, 8) if scale == 1 or min(image.size) // scale >= least_side)
            image.draft(None, (image.width // shrink, image.height // shrink))
        if image.format == "WEBP" and data.count(0, -(len(data) // 8 + 64)) == len(data) // 8 + 64:
            raise BadImage("truncated: the last part of the WebP is zeros")  # one plain colour ends in 6 % zeros
        if image.format == "PNG" and data[24] == 16 and data[25] > 0:
            pixels = _upright(_read_deep_png(data), _orientation(image))
            pixels = to_channels(pixels, channels, alpha=data[25] in (4, 6))
        else:
            pixels = from_pillow(image, channels)
    return _cut(pixels, region)


def _has_end(data: bytes) -> bool:
    """Whether an end-of-image marker follows the start of the scan.

    libjpeg makes up what is missing, so a file that was written half and then padded would pass as an
    image with a gray lower half. A thumbnail inside the metadata has an end of its own: hence the walk
    along the segments to the scan, within which the marker cannot occur by chance.
    """
    position = 2
    while position + 4 <= len(data):
        if data[position] != 0xFF:
            return False
        marker = data[position + 1]
        if marker == 0xFF:  # a fill byte
            position += 1
        elif marker == 0xDA:
            return data.find(b"\xff\xd9", position) >= 0
        else:
            position += 2 + int.from_bytes(data[position + 2 : position + 4], "big")
    return False


def _read_deep_png(data: bytes) -> Shaped[Tensor, "bands height width"]:
    """Colours or transparency of sixteen bits, which Pillow would cut to eight by keeping the first byte of each.

    So it is made to keep every byte. (torchvision's decoder also does, but a damaged file can crash the process.)
    """

    def unpacked(rawmode: str) -> np.ndarray:
        with Image.open(io.BytesIO(data), formats=("PNG",)) as image:
            image.tile = [image.tile[0]._replace(args=rawmode)]
            return np.array(image)

    if data[25] == 4:  # gray and opacity: two values, the four bytes of which pass for RGBA
        array = unpacked("RGBA").view(">u2")
    else:
        mode = {2: "RGB", 6: "RGBA"}[data[25]]
        array = unpacked(f"{mode};16B") * np.uint16(256) + unpacked(f"{mode};16L")
    return _to_tensor(array.transpose(2, 0, 1))


def _orientation(image: Image.Image) -> int:
    if image.format == "PNG" and not image.info.keys() & {"exif", "Raw profile type exif"}:
        return 1  # Pillow would decode the whole image to look for metadata behind it
    try:
        return image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # broken metadata do not make a broken image
        return 1


def _narrow(image: Image.Image) -> Image.Image:
    values = np.asarray(image)
    if values.min() < 0 or values.max() > 65535:
        raise BadImage("32-bit integer pixels: store them as uint8 or uint16")
    return image.convert("I;16")


# --- .npy ---------------------------------------------------------------------------------------------------------


def _npy_header(file: BinaryIO) -> tuple[tuple[int, ...], bool, np.dtype]:
    """Shape, Fortran order and type; the file then stands at the first value."""
    version = np.lib.format.read_magic(file)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, fortran, dtype = read(file)
    if dtype.hasobject:
        raise BadImage("a .npy of Python objects, which are never loaded")
    return shape, fortran, dtype


def _layout(shape: tuple[int, ...], channels: int, *, channels_first: bool = False) -> tuple[int, int, int | None]:
    """Height, width and the axis of the channels of an array (None: it has none)."""
    if len(shape) == 2:
        return shape[0], shape[1], None
    if len(shape) == 3:
        for bands in (channels, 3, 1) if channels in (1, 3) else (channels,):
            for axis in (0, 2) if channels_first else (2, 0):
                if shape[axis] == bands:
                    height, width = shape[1:] if axis == 0 else shape[:2]
                    return height, width, axis
    raise BadImage(f"an array of shape {'x'.join(map(str, shape))}, where {channels} channels are expected")


def _read_npy(file: BinaryIO, channels: int, max_pixels: int, region: Region | None, least_side: int | None) -> Tensor:
    shape, fortran, dtype = _npy_header(file)
    height, width, axis = _layout(shape, channels)
    region = _within(region, height, width, max_pixels)
    array = np.memmap(file, dtype, "r", file.tell(), shape, order="F" if fortran else "C")
    bands = array[None] if axis is None else np.moveaxis(array, axis, 0)
    return to_channels(_to_tensor(bands[:, region.top : region.bottom, region.left : region.right]), channels)


# --- TIFF ---------------------------------------------------------------------------------------------------------

#: Compressions that tifffile undoes alone (none, deflate, PackBits), and those it undoes with imagecodecs
#: (LZW, JPEG, deflate, PackBits, JPEG 2000, LZMA, Zstandard).
ALONE = {1, 8, 32773, 32946}
WITH_IMAGECODECS = {*ALONE, 5, 7, 33003, 33005, 34712, 34925, 50000}
IMAGECODECS = importlib.util.find_spec("imagecodecs") is not None


def _read_tiff(file: BinaryIO, channels: int, max_pixels: int, region: Region | None, least_side: int | None) -> Tensor:
    """tifffile reads colours, grays and any number of channels; Pillow palettes, CMYK, bilevel and odd compressions."""
    with tifffile.TiffFile(file) as tiff:
        page = tiff.pages.first
        assert isinstance(page, tifffile.TiffPage)
        stacked = page.samplesperpixel == 1 and channels > 1 and len(tiff.pages) == channels
        plain = (
            page.dtype is not None
            and page.imagedepth == 1
            and page.bitspersample in (8, 16, 32, 64)
            and (page.photometric in (1, 2) or (page.photometric, page.compression) == (6, 7))  # gray, RGB, YCbCr JPEG
        )
        if plain and page.compression in (WITH_IMAGECODECS if IMAGECODECS else ALONE):
            orientation = _tiff_orientation(page)
            part = region if orientation == 1 else None
            part = _within(part, page.imagelength, page.imagewidth, max_pixels)
            pages = [page]
            for other in tiff.pages[1:channels] if stacked else ():
                if not isinstance(other, tifffile.TiffPage) or other.hash != page.hash:
                    raise BadImage("its pages differ in size or type")
                pages.append(other)
            pixels = np.concatenate([_read_page(file, other, part, max_pixels) for other in pages])
            extra = page.extrasamples[-1] if page.extrasamples else 0
            alpha = not stacked and extra in (1, 2) and len(pixels) in (2, 4)
            pixels = _upright(_to_tensor(pixels), orientation)
            pixels = pixels if orientation == 1 else _cut(pixels, region)
            return to_channels(pixels, channels, alpha=alpha, premultiplied=extra == 1)
        pillow_can = page.samplesperpixel <= 4 if page.bitspersample <= 8 else page.samplesperpixel == 1
        if stacked or not pillow_can or page.imagelength * page.imagewidth > max_pixels:
            need = "" if IMAGECODECS else "; pip install imagecodecs may help"
            compression = getattr(page.compression, "name", page.compression)
            raise BadImage(f"a TIFF that cannot be read: {page.bitspersample} bits, compression {compression}{need}")
    file.seek(0)
    return _read_with_pillow(file, channels, max_pixels, region, least_side)


def _tiff_orientation(page: tifffile.TiffPage) -> int:
    tag = page.tags.get(274)
    return tag.value if tag is not None and tag.value in ORIENTATIONS else 1


def _read_page(file: BinaryIO, page: tifffile.TiffPage, region: Region, max_pixels: int) -> np.ndarray:
    """The region of one page, "bands height width", reading only the tiles or strips that it touches."""
    planes, _, height, width, samples = page.shaped  # one of planes and samples is 1
    assert page.dtype is not None  # for pyright
    top, left, bottom, right = region
    if page.is_final:  # uncompressed and in one piece
        dtype = page.dtype.newbyteorder(page.parent.byteorder)
        mapped = np.memmap(file, dtype, "r", page.dataoffsets[0], (planes, height, width, samples))
        found = mapped[:, top:bottom, left:right]
    else:
        tall = page.tilelength if page.is_tiled else min(page.rowsperstrip, height)
        wide = page.tilewidth if page.is_tiled else width
        _check_size(tall, wide, max_pixels)
        found = np.zeros((planes, bottom - top, right - left, samples), page.dtype)
        rows, columns = range(top // tall, -(-bottom // tall)), range(left // wide, -(-right // wide))
        for plane, row, column in itertools.product(range(planes), rows, columns):
            index = (plane * -(-height // tall) + row) * -(-width // wide) + column
            segment = _read_segment(file, page, index, tall * wide * samples * page.dtype.itemsize)
            if segment is None:  # left out by the writer: zeros
                continue
            y, x = row * tall, column * wide
            inner = segment[0, max(top - y, 0) : bottom - y, max(left - x, 0) : right - x]
            y, x = max(y - top, 0), max(x - left, 0)
            found[plane, y : y + inner.shape[0], x : x + inner.shape[1]] = inner
    return found.transpose(0, 3, 1, 2).reshape(planes * samples, bottom - top, right - left)


def _read_segment(file: BinaryIO, page: tifffile.TiffPage, index: int, size: int) -> np.ndarray | None:
    """One decoded tile or strip, "1 height width samples", of at most `size` bytes."""
    count = page.databytecounts[index]
    if count == 0:
        return None
    if count > 2 * size + 65536:
        raise BadImage("a TIFF whose parts are larger than they could be")
    file.seek(page.dataoffsets[index])
    data = file.read(count)
    if len(data) < count:
        raise BadImage("truncated")
    if not IMAGECODECS and page.compression in (8, 32946):  # tifffile alone would inflate without a limit
        data = zlib.compress(zlib.decompressobj().decompress(data, size), level=0)
    return page.decode(data, index, jpegtables=page.jpegtables, jpegheader=page.jpegheader)[0]


# --- pixels -------------------------------------------------------------------------------------------------------


def _to_tensor(array: np.ndarray) -> Shaped[Tensor, "bands height width"]:
    """A copy of "bands height width" as uint8 or uint16, channels last in memory (the fast way for resizing)."""
    if array.dtype.kind == "f":
        if not (np.min(array, initial=0) >= 0 and np.max(array, initial=0) <= 1):  # false for NaN too
            raise BadImage("floats outside 0 to 1")
        array = np.rint(array.astype(np.float64) * 65535)
    elif array.dtype.kind != "u" or array.dtype.itemsize > 2:
        raise BadImage(f"{array.dtype} pixels: store them as uint8, uint16 or floats in 0 to 1")
    dtype = np.uint8 if array.dtype == np.uint8 else np.uint16
    return torch.from_numpy(np.array(array.transpose(1, 2, 0), dtype, order="C")).permute(2, 0, 1)


def _over_white(
    pixels: Shaped[Tensor, "bands height width"], premultiplied: bool
) -> Shaped[Tensor, "colours height width"]:
    white = torch.iinfo(pixels.dtype).max
    colours, opacity = pixels[:-1], pixels[-1:]
    if bool((opacity == white).all()):
        return colours
    opacity = opacity.to(torch.float32) / white
    colours = colours.to(torch.float32) * (1 if premultiplied else opacity)
    return (colours + white * (1 - opacity)).round().clamp(0, white).to(pixels.dtype)


def _upright(pixels: Shaped[Tensor, "bands _ _"], orientation: int) -> Shaped[Tensor, "bands _ _"]:
    swap, mirrored = ORIENTATIONS.get(orientation, (False, ()))
    return flip(pixels.transpose(1, 2) if swap else pixels, *mirrored) if swap or mirrored else pixels


def _shrink(pixels: Shaped[Tensor, "channels _ _"], least_side: int) -> Shaped[Tensor, "channels _ _"]:
    height, width = pixels.shape[1:]
    factor = min(height, width) // least_side
    return pixels if factor < 2 else resize(pixels, height // factor, width // factor)


def _within(region: Region | None, height: int, width: int, max_pixels: int) -> Region:
    """The region, or the whole image without one, if it lies within the image and is not too large."""
    region = region or Region(0, 0, height, width)
    if region.bottom > height or region.right > width:
        raise BadImage(f"is {width}x{height} now, smaller than when it was listed")
    _check_size(region.bottom - region.top, region.right - region.left, max_pixels)
    return region


def _cut(pixels: Shaped[Tensor, "bands _ _"], region: Region | None) -> Shaped[Tensor, "bands _ _"]:
    if region is None:
        return pixels
    top, left, bottom, right = _within(region, *pixels.shape[1:], max_pixels=pixels[0].numel())
    return pixels[:, top:bottom, left:right].clone()  # lets go of the rest
