"""WebP. Only the chunks of the picture are decoded, so damage in any other cannot make it unreadable.

Pillow gets the pixels, their opacity, and the first frame of an animation. Left out are metadata (apart from the
orientation), and whatever follows the end.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import BinaryIO

from jaxtyping import Shaped
from PIL import Image
from torch import Tensor

from densecl.images.decode.canvas import Canvas, Wanted
from densecl.images.decode.limits import BadImage, check_cost
from densecl.images.decode.pillow import orientation, paint

#: Bytes of memory for each pixel while decoding: libwebp's two canvases, its work, its output, and Pillow's picture.
IN_DECODING = 20

#: The flags of opacity and animation in the extended header.
FLAGS = 0x12

#: No picture has this many chunks, even with all its metadata.
MAX_CHUNKS = 10_000


def read(file: BinaryIO, wanted: Wanted) -> Shaped[Tensor, "channels height width"]:
    """The picture. Of an animation, the first.

    Raises:
        BadImage, or what Pillow raises: it is damaged, or too large.
    """
    data = file.read()
    picture, turned = _picture(data)
    height, width = _size(picture)
    per_pixel = IN_DECODING + wanted.channels
    check_cost(height, width, wanted.max_pixels, per_pixel=per_pixel, beside=len(data) + 2 * len(picture))
    del data
    with Image.open(io.BytesIO(picture), formats=("WEBP",)) as image:
        return paint(image, Canvas(image.height, image.width, wanted, turned))


def measure(file: BinaryIO, channels: int) -> tuple[int, int, int]:
    """Height, width and orientation.

    Raises:
        BadImage: the file is damaged.
    """
    picture, turned = _picture(file.read())
    return *_size(picture), turned


def _picture(data: bytes) -> tuple[bytes, int]:
    """The file with nothing but the picture, and the orientation.

    Raises:
        BadImage: the file is truncated, or its end is zeros.
    """
    kept, exif, xmp = [], b"", b""
    whole = False
    for name, chunk in _chunks(data):
        content = chunk[8:]
        if name == b"VP8X":
            kept.append(chunk[:8] + bytes([content[0] & FLAGS]) + content[1:])
        elif name in (b"ANIM", b"ALPH") and not whole:
            kept.append(chunk)
        elif name in (b"VP8 ", b"VP8L", b"ANMF") and not whole:
            whole = True
            # Even a plain color ends in zeros, which make up 6 % of it.
            zeros = len(content) // 8 + 64
            if len(content) >= zeros and content.count(0, -zeros) == zeros:
                raise BadImage("truncated: the last part of the WebP is zeros")
            kept.append(chunk)
        elif name == b"EXIF":
            exif = exif or content
        elif name == b"XMP ":
            xmp = xmp or content
    if not whole:
        raise BadImage("truncated: the picture of the WebP is missing")
    body = b"WEBP" + b"".join(kept)
    return b"RIFF" + len(body).to_bytes(4, "little") + body, orientation(exif, xmp)


def _chunks(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Name and bytes of each chunk, up to the end that the file's header gives."""
    end = min(len(data), 8 + int.from_bytes(data[4:8], "little"))
    position = 12
    for _ in range(MAX_CHUNKS):
        if position + 8 > end:
            return
        name = data[position : position + 4]
        length = int.from_bytes(data[position + 4 : position + 8], "little")
        if position + 8 + length > len(data):
            if name in (b"EXIF", b"XMP ", b"ICCP"):
                return
            raise BadImage("truncated: the end of the WebP is missing")
        chunk = data[position : position + 8 + length]
        yield name, chunk + b"\0" * (length % 2)
        position += 8 + length + length % 2
    raise BadImage(f"a WebP of more than {MAX_CHUNKS} chunks")


def _size(picture: bytes) -> tuple[int, int]:
    """Height and width, from the header of the first chunk."""
    name, content = picture[12:16], picture[20:]
    if name == b"VP8X":
        return 1 + int.from_bytes(content[7:10], "little"), 1 + int.from_bytes(content[4:7], "little")
    if name == b"VP8L":
        bits = int.from_bytes(content[1:5], "little")
        return 1 + (bits >> 14 & 0x3FFF), 1 + (bits & 0x3FFF)
    return int.from_bytes(content[8:10], "little") & 0x3FFF, int.from_bytes(content[6:8], "little") & 0x3FFF
