"""PPM, PGM and PBM, binary or in digits, with any largest value."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import BinaryIO, NamedTuple

import numpy as np
from jaxtyping import Shaped
from torch import Tensor

from densecl.images.decode.canvas import Canvas, Wanted
from densecl.images.decode.limits import BadImage, check_cost

#: How a file may begin: its kind, then a blank or a comment.
SIGNATURES = tuple(b"P%d%c" % (kind, gap) for kind in range(1, 7) for gap in b" \t\r\n#")

#: A header: the kind, then numbers. Comments between them run from # to the end of the line.
_GAP = rb"(?:\s|#[^\r\n]*[\r\n])+"
_HEADER = re.compile(rb"P([1-6])" + _GAP + rb"(\d{1,9})" + _GAP + rb"(\d{1,9})")
_LARGEST = re.compile(_GAP + rb"(\d{1,5})")

#: Limit for the bytes of a header, with its comments.
MAX_HEADER = 65536


class Header(NamedTuple):
    """What stands before the pixels."""

    kind: int  # bits, grays or colors: 1 to 3 in digits, 4 to 6 binary
    height: int
    width: int
    largest: int
    pixels: int  # where they begin

    @property
    def bands(self) -> int:
        """Values of each pixel."""
        return 3 if self.kind in (3, 6) else 1


def read(file: BinaryIO, wanted: Wanted) -> Shaped[Tensor, "channels height width"]:
    """The picture, in eight bits if its largest value is at most 255, else in sixteen.

    Raises:
        BadImage: it is damaged, or too large.
    """
    header = _read_header(file)
    deep = 2 if header.largest > 255 else 1
    in_digits = header.kind <= 3
    # Digits are in memory as text and as numbers of eight bytes.
    per_pixel = wanted.channels * deep + (8 * header.bands if in_digits else 0)
    size = file.seek(0, 2)
    check_cost(header.height, header.width, wanted.max_pixels, per_pixel=per_pixel, beside=3 * size if in_digits else 0)
    canvas = Canvas(header.height, header.width, wanted)
    left, right = canvas.part.left, canvas.part.right
    white = 65535 if deep == 2 else 255
    for rows in _in_digits(file, header, canvas) if in_digits else _binary(file, header, canvas):
        values = rows[:, left:right]
        if values.max(initial=0) > header.largest:
            raise BadImage("a value above the largest that its header names")
        if header.kind in (1, 4):  # 1 is ink, so black
            values = 1 - values
        if header.largest != white:
            values = (values.astype(np.uint32) * white + header.largest // 2) // header.largest
        canvas.put(values.astype(np.uint16 if deep == 2 else np.uint8).transpose(2, 0, 1))
    return canvas.tensor()


def measure(file: BinaryIO, channels: int) -> tuple[int, int, int]:
    """Height, width and orientation, from the header.

    Raises:
        BadImage: it is damaged.
    """
    header = _read_header(file)
    return header.height, header.width, 1


def _read_header(file: BinaryIO) -> Header:
    head = file.read(MAX_HEADER)
    match = _HEADER.match(head)
    if match is None:
        raise BadImage("the header of the PPM, PGM or PBM is damaged")
    kind, width, height = map(int, match.groups())
    largest, end = 1, match.end()
    if kind not in (1, 4):
        found = _LARGEST.match(head, end)
        if found is None or not 0 < int(found[1]) <= 65535:
            raise BadImage("the header of the PPM or PGM is damaged")
        largest, end = int(found[1]), found.end()
    return Header(kind, height, width, largest, end + 1)


def _binary(file: BinaryIO, header: Header, canvas: Canvas) -> Iterator[Shaped[np.ndarray, "rows width bands"]]:
    bytes_per_row = -(-header.width // 8) if header.kind == 4 else header.width * header.bands
    deep = header.largest > 255
    for top, bottom in canvas.bands(per_pixel=header.bands):
        file.seek(header.pixels + top * bytes_per_row * (2 if deep else 1))
        count = (bottom - top) * bytes_per_row
        data = file.read(count * (2 if deep else 1))
        if len(data) < count * (2 if deep else 1):
            raise BadImage("truncated")
        values = np.frombuffer(data, ">u2" if deep else np.uint8).reshape(bottom - top, -1)
        if header.kind == 4:
            values = np.unpackbits(values, axis=1)[:, : header.width]
        yield values.reshape(bottom - top, header.width, header.bands)


def _in_digits(file: BinaryIO, header: Header, canvas: Canvas) -> Iterator[Shaped[np.ndarray, "rows width bands"]]:
    file.seek(header.pixels - 1)
    text = re.sub(rb"#[^\r\n]*", b"", file.read())
    if header.kind == 1:  # its digits need no space between them
        values = np.frombuffer(re.sub(rb"\s+", b"", text), np.uint8) - np.uint8(ord("0"))
    else:
        if re.search(rb"[^\d\s]", text):
            raise BadImage("the values of the PPM or PGM are no numbers")
        values = np.fromstring(text, np.int64, sep=" ")
    if len(values) < header.height * header.width * header.bands:
        raise BadImage("truncated")
    image = values[: header.height * header.width * header.bands].reshape(header.height, header.width, header.bands)
    for top, bottom in canvas.bands(per_pixel=header.bands):
        yield image[top:bottom]
