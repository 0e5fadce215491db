"""TIFF, classic and big: the page of a file that is the picture, or the pages that are its channels.

tifffile reads grays, colors and any number of channels. Pillow reads palettes, CMYK, bilevel and rare compressions. If
a page consists of tiles or strips, only those of the wanted region are read.
"""

from __future__ import annotations

import importlib.util
import itertools
import os
import re
import struct
import zlib
from collections.abc import Sequence
from typing import BinaryIO

import numpy as np
import tifffile
from jaxtyping import Shaped
from PIL import Image
from torch import Tensor

from densecl.images.decode.canvas import ORIENTATIONS, Canvas, Region, Wanted
from densecl.images.decode.jpeg import MAX_SCANS
from densecl.images.decode.limits import BadImage, check_cost
from densecl.images.decode.pillow import paint

#: How a file begins: classic and big, in either byte order.
SIGNATURES = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")

#: Compressions that tifffile decodes alone (none, deflate, PackBits), and with imagecodecs (also LZW, JPEG, JPEG 2000,
#: LZMA, Zstandard).
DEFLATE, PACK_BITS, JPEG = {8, 32946}, 32773, 7
ALONE = {1, PACK_BITS, *DEFLATE}
WITH_IMAGECODECS = {*ALONE, 5, JPEG, 33003, 33005, 34712, 34925, 50000}
IMAGECODECS = importlib.util.find_spec("imagecodecs") is not None

#: Without imagecodecs, tifffile decodes PackBits in Python. A larger picture would take minutes.
MAX_PACK_BITS_PIXELS = 16_000_000

WHITE_IS_ZERO, BLACK_IS_ZERO, COLORS, INKS, YCBCR = 0, 1, 2, 5, 6  # photometric interpretations

#: Pages that are looked at in addition to one for each channel. They may be small copies and masks of the picture.
FURTHER_PAGES = 32

#: Limit for the numbers in a table of the file, such as the places of the tiles. Each takes 40 bytes of memory.
MAX_TABLE = 4_000_000

#: Limit for the tiles or strips of one image. Each costs about 50 microseconds in addition to its pixels.
MAX_PARTS = 200_000

#: Copies of a tile or strip that are in memory while it is decoded.
COPIES = 4


def read(file: BinaryIO, wanted: Wanted) -> Shaped[Tensor, "channels height width"]:
    """The picture, or a region of it.

    Raises:
        BadImage, or what tifffile and Pillow raise: it is damaged, of a kind that is not read, or too large.
    """
    pages = _check_directories(file, wanted.channels + FURTHER_PAGES)
    with tifffile.TiffFile(file) as tiff:
        index, page, stack = _picture(tiff, pages, wanted.channels)
        pillow_can = page.samplesperpixel <= 4 if page.bitspersample <= 8 else page.samplesperpixel == 1
        pillow_can = pillow_can and len(stack) == 1
        if _plain(page) and not (page.compression == PACK_BITS and pillow_can and not IMAGECODECS):
            return _read_plain(file, stack, wanted)
        if not pillow_can:
            need = "" if IMAGECODECS else "; pip install imagecodecs may help"
            compression = getattr(page.compression, "name", page.compression)
            raise BadImage(f"a TIFF that cannot be read: {page.bitspersample} bits, compression {compression}{need}")
        per_pixel = 8 + wanted.channels * (2 if page.bitspersample > 8 else 1)
        check_cost(page.imagelength, page.imagewidth, wanted.max_pixels, per_pixel=per_pixel)
    file.seek(0)
    with Image.open(file, formats=("TIFF",)) as image:
        image.seek(index)
        image.load()  # Pillow turns it upright
        return paint(image, Canvas(image.height, image.width, wanted))


def measure(file: BinaryIO, channels: int) -> tuple[int, int, int]:
    """Height, width and orientation of the picture, from the directory of its page.

    Raises:
        BadImage, or what tifffile raises: it is damaged.
    """
    pages = _check_directories(file, channels + FURTHER_PAGES)
    with tifffile.TiffFile(file) as tiff:
        _, page, _ = _picture(tiff, pages, channels)
        return page.imagelength, page.imagewidth, _orientation(page)


# --- what is in the file ------------------------------------------------------------------------------------------


def _check_directories(file: BinaryIO, most: int) -> int:
    """The number of pages, counted up to one more than `most`.

    Raises:
        BadImage: a directory holds too large a table, or is damaged.
    """
    head = file.read(16)
    order = "<" if head[:2] == b"II" else ">"
    big = head[2:4] in (b"\x2b\0", b"\0\x2b")
    count_format, entry_format, offset_format = ("Q", "HHQ", "Q") if big else ("H", "HHI", "I")
    entry = 20 if big else 12
    (place,) = struct.unpack_from(order + offset_format, head, 8 if big else 4)
    seen: set[int] = set()
    while place and place not in seen and len(seen) <= most:
        seen.add(place)
        file.seek(place)
        (count,) = struct.unpack(order + count_format, file.read(struct.calcsize(count_format)))
        if count > 4096:
            raise BadImage("the directory of the TIFF is damaged")
        directory = file.read(count * entry + struct.calcsize(offset_format))
        for number in range(count):
            code, kind, values = struct.unpack_from(order + entry_format, directory, number * entry)
            if values > (MAX_TABLE if kind not in (1, 2, 6, 7) else 16 * MAX_TABLE):
                raise BadImage(f"a TIFF whose tag {code} has {values} values: more than are read")
        (place,) = struct.unpack_from(order + offset_format, directory, count * entry)
    file.seek(0)
    return len(seen)


def _picture(
    tiff: tifffile.TiffFile, pages: int, channels: int
) -> tuple[int, tifffile.TiffPage, Sequence[tifffile.TiffPage]]:
    """The number of the page that is the picture, that page, and all pages that hold its channels.

    Some files begin with a small copy of the picture, and many have copies or masks among their pages.
    """
    whole = []
    for index in range(min(pages, channels + FURTHER_PAGES)):
        page = tiff.pages[index]
        if isinstance(page, tifffile.TiffPage) and not page.is_reduced and not page.is_mask:
            whole.append((index, page))
    if not whole:
        first = tiff.pages.first
        assert isinstance(first, tifffile.TiffPage)
        return 0, first, [first]
    index, page = whole[0]
    if page.samplesperpixel == 1 and channels > 1 and pages <= channels + FURTHER_PAGES:
        alike = [other for _, other in whole if other.hash == page.hash]
        if len(alike) == channels:
            return index, page, alike
    return index, page, [page]


def _plain(page: tifffile.TiffPage) -> bool:
    """Whether tifffile gives the values of the picture itself, such as colors rather than places in a palette."""
    return (
        page.dtype is not None
        and page.imagedepth == 1
        and page.bitspersample in (8, 16, 32, 64)
        and (
            page.photometric in (WHITE_IS_ZERO, BLACK_IS_ZERO, COLORS)
            or (page.photometric, page.compression) == (YCBCR, JPEG)
            or (page.photometric == INKS and page.bitspersample == 16 and page.samplesperpixel == 4)
        )
        and page.compression in (WITH_IMAGECODECS if IMAGECODECS else ALONE)
    )


def _orientation(page: tifffile.TiffPage) -> int:
    tag = page.tags.get(274)
    return tag.value if tag is not None and tag.value in ORIENTATIONS else 1


def _planes_of_imagej(page: tifffile.TiffPage, channels: int) -> int:
    """`channels`, if ImageJ stored that many planes behind one directory; else 1."""
    if channels > 1 and page.is_imagej and page.samplesperpixel == 1 and page.is_final:
        match = re.search(r"^images=(\d{1,9})$", page.description, re.MULTILINE)
        if match and int(match[1]) == channels:
            return channels
    return 1


# --- pixels -------------------------------------------------------------------------------------------------------


def _read_plain(
    file: BinaryIO, pages: Sequence[tifffile.TiffPage], wanted: Wanted
) -> Shaped[Tensor, "channels height width"]:
    page = pages[0]
    planes = page.shaped[0] * page.shaped[-1]
    imagej = _planes_of_imagej(page, wanted.channels) if len(pages) == 1 else 1
    channels = len(pages) * planes * imagej
    assert page.dtype is not None  # for pyright
    canvas = Canvas(page.imagelength, page.imagewidth, wanted, _orientation(page))
    tall, wide, part_bytes = 1, page.imagewidth, 0
    if not page.is_final:
        tall = page.tilelength if page.is_tiled else min(page.rowsperstrip, page.imagelength)
        wide = page.tilewidth if page.is_tiled else page.imagewidth
        part_bytes = COPIES * tall * wide * page.shaped[-1] * page.dtype.itemsize
        _check_parts(page, canvas.part, tall, wide, planes * len(pages))
    top, left, bottom, right = canvas.part
    result = wanted.channels * (1 if page.dtype.itemsize == 1 else 2)
    check_cost(bottom - top, right - left, wanted.max_pixels, per_pixel=result, beside=part_bytes)
    if page.compression == PACK_BITS and not IMAGECODECS and (bottom - top) * (right - left) > MAX_PACK_BITS_PIXELS:
        raise BadImage(f"a PackBits TIFF of more than {MAX_PACK_BITS_PIXELS} pixels: pip install imagecodecs")
    extra = page.extrasamples[-1] if page.extrasamples else 0
    alpha = len(pages) == 1 and extra in (1, 2) and channels in (2, 4)
    for upper, lower in canvas.bands(per_pixel=channels, multiple=tall):
        region = Region(upper, left, lower, right)
        bands = [_read_page(file, other, region, imagej) for other in pages]
        band = bands[0] if len(bands) == 1 else np.concatenate(bands)
        canvas.put(_meant(band, page.photometric), alpha=alpha, premultiplied=extra == 1)
    return canvas.tensor()


def _meant(band: Shaped[np.ndarray, "bands rows width"], photometric: int) -> Shaped[np.ndarray, "_ rows width"]:
    """Grays and colors, also where 0 stands for white or the values are inks."""
    if photometric not in (WHITE_IS_ZERO, INKS) or band.dtype.kind not in "uf":
        return band
    white = np.iinfo(band.dtype).max if band.dtype.kind == "u" else 1
    light = band.dtype.type(white) - band
    if photometric == WHITE_IS_ZERO:
        return light
    return (light[:3].astype(np.uint32) * light[3:] // white).astype(band.dtype)


def _check_parts(page: tifffile.TiffPage, part: Region, tall: int, wide: int, planes: int) -> None:
    """
    Raises:
        BadImage: the part lies in too many tiles or strips, or they have no size.
    """
    if tall < 1 or wide < 1:
        raise BadImage("a TIFF whose parts have no size")
    rows = -(-part.bottom // tall) - part.top // tall
    columns = -(-part.right // wide) - part.left // wide
    if rows * columns * planes > MAX_PARTS:
        raise BadImage(f"a TIFF in {rows * columns * planes} parts, more than {MAX_PARTS}: store it in larger tiles")


def _read_page(
    file: BinaryIO, page: tifffile.TiffPage, region: Region, imagej: int = 1
) -> Shaped[np.ndarray, "bands rows width"]:
    """A region of one page. Only the tiles or strips that it touches are read."""
    planes, _, height, width, samples = page.shaped  # one of planes and samples is 1
    planes *= imagej
    assert page.dtype is not None  # for pyright
    top, left, bottom, right = region
    if page.is_final:  # uncompressed and in one piece. It is mapped again for each region, so that memory is freed
        dtype = page.dtype.newbyteorder(page.parent.byteorder)
        end = page.dataoffsets[0] + planes * height * width * samples * dtype.itemsize
        if end > os.fstat(file.fileno()).st_size:
            raise BadImage("truncated")
        mapped = np.memmap(file, dtype, "r", page.dataoffsets[0], (planes, height, width, samples))
        found = mapped[:, top:bottom, left:right]
    else:
        tall = page.tilelength if page.is_tiled else min(page.rowsperstrip, height)
        wide = page.tilewidth if page.is_tiled else width
        found = np.zeros((planes, bottom - top, right - left, samples), page.dtype)
        rows, columns = range(top // tall, -(-bottom // tall)), range(left // wide, -(-right // wide))
        for plane, row, column in itertools.product(range(planes), rows, columns):
            index = (plane * -(-height // tall) + row) * -(-width // wide) + column
            segment = _read_segment(file, page, index, tall * wide * samples * page.dtype.itemsize)
            if segment is None:  # the writer left it out: zeros
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
    if page.compression == JPEG and data.count(b"\xff\xda") > MAX_SCANS:
        raise BadImage(f"a JPEG of more than {MAX_SCANS} scans in a TIFF: store it anew")
    if page.compression in DEFLATE and not IMAGECODECS and _inflates_beyond(data, size):
        data = zlib.compress(zlib.decompressobj().decompress(data, size), level=0)
    return page.decode(data, index, jpegtables=page.jpegtables, jpegheader=page.jpegheader)[0]


def _inflates_beyond(data: bytes, size: int) -> bool:
    """Whether the data are larger than `size` once inflated. tifffile alone would inflate them without a limit."""
    inflater, length = zlib.decompressobj(), 0
    while data and not inflater.eof:
        length += len(inflater.decompress(data, min(2**20, size + 1 - length)))
        if length > size:
            return True
        data = inflater.unconsumed_tail
    return False
