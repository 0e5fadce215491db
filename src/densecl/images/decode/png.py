"""PNG. Only the chunks of the picture are decoded, so damage in any other cannot make it unreadable.

Pillow gets the header, the palette, the transparency and the pixels. Left out are texts, color profiles, the further
frames of an animation, and whatever follows the end. Of the metadata only the orientation is read, and only if it
stands before the pixels.
"""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Iterator
from typing import BinaryIO, NamedTuple

import numpy as np
from jaxtyping import Shaped, UInt16
from PIL import Image
from torch import Tensor

from densecl.images.decode.canvas import Canvas, Region, Wanted
from densecl.images.decode.limits import BadImage, check_cost
from densecl.images.decode.pillow import orientation, paint

SIGNATURE = b"\x89PNG\r\n\x1a\n"
END = b"\0\0\0\0IEND\xae\x42\x60\x82"

#: No writer makes this many chunks, even for the largest picture that is read.
MAX_CHUNKS = 1_000_000

#: Longer chunks of metadata are not read.
MAX_METADATA = 2**20

GRAY, RGB, PALETTE, GRAY_ALPHA, RGBA = 0, 2, 3, 4, 6  # color types


class Header(NamedTuple):
    """What stands before the pixels."""

    height: int
    width: int
    bits: int
    color_type: int
    key: tuple[int, ...]  # the gray or the color that is transparent; empty if there is none
    orientation: int

    @property
    def deep(self) -> bool:
        """Whether Pillow alone would cut the values to eight bits."""
        return self.bits == 16 and self.color_type in (RGB, GRAY_ALPHA, RGBA)

    @property
    def in_pillow(self) -> int:
        """Bytes that Pillow takes for a pixel. (Deep colors take two pictures, see `_deep_bands`.)"""
        if self.deep:
            return 4 if self.color_type == GRAY_ALPHA else 8
        if self.color_type in (GRAY, PALETTE):
            return 2 if self.bits == 16 else 1
        return 4


def read(file: BinaryIO, wanted: Wanted) -> Shaped[Tensor, "channels height width"]:
    """The picture. Of an animation, the one that viewers show if they cannot play it.

    Raises:
        BadImage, or what Pillow raises: it is damaged, or too large.
    """
    picture = io.BytesIO()
    header = _read_header(file, picture)
    pixels = file.tell()
    check_cost(
        header.height,
        header.width,
        wanted.max_pixels,
        per_pixel=header.in_pillow + wanted.channels * (2 if header.bits == 16 else 1),
        beside=file.seek(0, io.SEEK_END),
    )
    file.seek(pixels)
    _copy_pixels(file, picture)
    picture.seek(0)
    canvas = Canvas(header.height, header.width, wanted, header.orientation)
    if header.bits == 16 and (header.deep or header.key):
        for band in _deep_bands(picture, header, canvas):
            canvas.put(band, alpha=bool(header.key) or header.color_type in (GRAY_ALPHA, RGBA))
        return canvas.tensor()
    with Image.open(picture, formats=("PNG",)) as image:
        if header.key and header.bits < 8:  # Pillow scales grays of few bits to eight, but not the transparent one
            image.load()
            image = image.convert("L")
            image.info["transparency"] = header.key[0] * 255 // (2**header.bits - 1)
        return paint(image, canvas)


def without_metadata(file: BinaryIO | io.BytesIO) -> io.BytesIO:
    """The file without anything but the picture.

    Raises:
        BadImage: its header is damaged.
    """
    picture = io.BytesIO()
    _read_header(file, picture)
    _copy_pixels(file, picture)
    picture.seek(0)
    return picture


def measure(file: BinaryIO, channels: int) -> tuple[int, int, int]:
    """Height, width and orientation, from the chunks before the pixels.

    Raises:
        BadImage: the header is damaged.
    """
    header = _read_header(file, io.BytesIO())
    return header.height, header.width, header.orientation


def _read_header(file: BinaryIO | io.BytesIO, picture: io.BytesIO) -> Header:
    """Read up to the first pixels, and copy the chunks of the picture into `picture`."""
    picture.write(file.read(len(SIGNATURE)))
    size, turned, key, palette = b"", 1, b"", b""
    for length, name in _chunks(file):
        if name == b"IDAT":
            file.seek(-8, io.SEEK_CUR)
            break
        if name in (b"IHDR", b"PLTE", b"tRNS"):
            if length > 65536:
                raise BadImage("the header of the PNG is damaged")
            chunk = length.to_bytes(4, "big") + name + file.read(length + 4)
            if name == b"IHDR":
                size = size or chunk
            elif name == b"PLTE":
                palette = palette or chunk
            elif zlib.crc32(chunk[4:-4]) == int.from_bytes(chunk[-4:], "big"):
                key = chunk
        elif name in (b"eXIf", b"tEXt", b"zTXt") and length <= MAX_METADATA:
            content = file.read(length + 4)
            if zlib.crc32(name + content[:-4]) == int.from_bytes(content[-4:], "big"):
                turned = orientation(_exif(name, content[:-4])) if turned == 1 else turned
        else:
            file.seek(length + 4, io.SEEK_CUR)
    if len(size) < 25:
        raise BadImage("the header of the PNG is damaged")
    width, height, bits, color_type = struct.unpack_from(">IIBB", size, 8)
    if color_type == PALETTE and not palette:
        raise BadImage("a PNG of palette colors without the palette")
    content = key[8:-4]
    # Transparency that does not fit the colors is ignored, as every viewer does.
    fits = len(content) == {GRAY: 2, RGB: 6}.get(color_type) or (color_type == PALETTE and 0 < len(content) <= 256)
    picture.write(size + (palette if color_type == PALETTE else b"") + (key if fits else b""))
    values = struct.unpack(f">{len(content) // 2}H", content) if fits and color_type in (GRAY, RGB) else ()
    return Header(height, width, bits, color_type, values, turned)


def _copy_pixels(file: BinaryIO | io.BytesIO, picture: io.BytesIO) -> None:
    """Copy the pixels. If some are missing, Pillow will say so."""
    for length, name in _chunks(file):
        if name == b"IDAT":
            picture.write(length.to_bytes(4, "big") + name)
            picture.write(file.read(length + 4))
        elif name == b"IEND":
            break
        else:
            file.seek(length + 4, io.SEEK_CUR)
    picture.write(END)


def _chunks(file: BinaryIO | io.BytesIO) -> Iterator[tuple[int, bytes]]:
    """Length and name of each chunk. The file then stands at its content; the caller moves it behind the content."""
    for _ in range(MAX_CHUNKS):
        head = file.read(8)
        if len(head) < 8:
            return
        yield int.from_bytes(head[:4], "big"), head[4:]
    raise BadImage(f"a PNG of more than {MAX_CHUNKS} chunks")


def _exif(name: bytes, content: bytes) -> bytes | None:
    """EXIF from its own chunk, or from a text as ImageMagick writes it: in hexadecimal, after three lines."""
    if name == b"eXIf":
        return content
    keyword, _, text = content.partition(b"\0")
    if keyword != b"Raw profile type exif":
        return None
    try:
        if name == b"zTXt":
            text = zlib.decompressobj().decompress(text[1:], MAX_METADATA)
        return bytes.fromhex(b"".join(text.split(b"\n")[3:]).decode("ascii"))
    except (zlib.error, ValueError):
        return None


def _deep_bands(
    picture: io.BytesIO, header: Header, canvas: Canvas
) -> Iterator[UInt16[np.ndarray, "bands rows width"]]:
    """Values of sixteen bits, and their opacity.

    Pillow would keep only the first byte of each value. Here it is told to unpack every byte. (torchvision's decoder
    keeps sixteen bits, but a damaged file can crash the process.)
    """
    modes = {GRAY: ("I;16B",), GRAY_ALPHA: ("RGBA",), RGB: ("RGB;16B", "RGB;16L"), RGBA: ("RGBA;16B", "RGBA;16L")}
    images = [_unpacked(picture, mode) for mode in modes[header.color_type]]
    for top, bottom in canvas.bands(per_pixel=4):
        part = Region(top, canvas.part.left, bottom, canvas.part.right)
        first, *second = (np.asarray(image.crop((part.left, top, part.right, bottom))) for image in images)
        if header.color_type == GRAY:
            values = first[..., None]
        elif header.color_type == GRAY_ALPHA:  # gray and opacity: Pillow takes their four bytes for RGBA
            values = first.view(">u2")
        else:
            values = first * np.uint16(256) + second[0]
        if header.key:
            opaque = (values != np.array(header.key)).any(axis=2, keepdims=True)
            values = np.concatenate([values, opaque * np.uint16(65535)], axis=2)
        yield values.transpose(2, 0, 1)


def _unpacked(picture: io.BytesIO, rawmode: str) -> Image.Image:
    picture.seek(0)
    image = Image.open(picture, formats=("PNG",))
    image.tile = [image.tile[0]._replace(args=rawmode)]
    image.load()
    return image
