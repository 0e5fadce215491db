"""JPEG. Only the segments of the picture are decoded, so damage in any other cannot make it unreadable.

Pillow gets the tables, the frame, the scans, and the two segments that say what the colors are. Left out are metadata
(apart from the orientation), stray bytes between segments, and whatever follows the end, such as the second picture of
an MPO or a phone's video.
"""

from __future__ import annotations

import io
import re
from typing import BinaryIO, NamedTuple

from jaxtyping import Shaped
from PIL import Image
from torch import Tensor

from densecl.images.decode.canvas import Canvas, Wanted
from densecl.images.decode.limits import BadImage, check_cost
from densecl.images.decode.pillow import orientation, paint

#: Each scan passes over the whole picture and refines it. Progressive files have about ten.
MAX_SCANS = 100

#: Limit of scans times pixels, so that a large picture may have fewer scans than a small one: 20 for the largest.
MAX_SCANNED = 3_600_000_000

#: Segments before the first scan. Ordinary files have a few dozen; with large metadata, a few hundred.
MAX_SEGMENTS = 10_000

#: Bytes of EXIF metadata that are read at most. The orientation stands near their beginning.
MAX_EXIF = 2**20

#: Bytes that are read when only the size of the picture is wanted.
HEADER = 2**18

#: Frames that libjpeg-turbo decodes: baseline, extended and progressive, with Huffman or arithmetic coding.
FRAMES = {0xC0, 0xC1, 0xC2, 0xC9, 0xCA}
OTHER_FRAMES = {0xC3, 0xC5, 0xC6, 0xC7, 0xCB, 0xCD, 0xCE, 0xCF, 0xF7}
PROGRESSIVE = {0xC2, 0xCA}

APP0, APP1, APP14, COMMENT = 0xE0, 0xE1, 0xEE, 0xFE
START, END, SCAN = 0xD8, 0xD9, 0xDA
ALONE = {*range(0xC0), *range(0xD0, 0xD8), START}  # markers without a segment, and bytes that are no marker

#: A marker among coded values. A 255 that is a value is followed by 0. Restart marks (D0 to D7) belong to the values.
MARKER = re.compile(rb"\xff[\x01-\xcf\xd8-\xfe]")


class Header(NamedTuple):
    """What stands before the first scan."""

    segments: list[bytes]  # of the picture
    height: int
    width: int
    components: int
    progressive: bool
    orientation: int
    scan: int  # where the first one begins


def read(file: BinaryIO, wanted: Wanted) -> Shaped[Tensor, "channels height width"]:
    """The picture. With `wanted.least_side` and no region, at a half, a quarter or an eighth if that is large enough.

    Raises:
        BadImage, or what Pillow raises: it is damaged, of a kind that is not read, or too large.
    """
    data = file.read()
    header = _read_header(data)
    height, width = header.height, header.width
    shrink = 1
    if wanted.region is None and wanted.least_side is not None:
        fitting = (scale for scale in (2, 4, 8) if min(height, width) // scale >= wanted.least_side)
        shrink = max(fitting, default=1)
    # Pillow takes 1 or 4 bytes for a pixel. A picture in several scans also takes coefficients of 2 bytes.
    in_pillow = 1 if header.components == 1 else 4
    coefficients = 2 * header.components
    check_cost(
        height,
        width,
        wanted.max_pixels,
        per_pixel=(in_pillow + wanted.channels) / shrink**2 + (coefficients if header.progressive else 0),
        beside=2 * len(data),
    )
    scans, end = _follow(data, header.scan, most=min(MAX_SCANS, MAX_SCANNED // (height * width)))
    if scans > 1 and not header.progressive:  # it has a scan for each component
        per_pixel = in_pillow + wanted.channels + coefficients
        check_cost(height, width, wanted.max_pixels, per_pixel=per_pixel, beside=2 * len(data))
    picture = io.BytesIO(b"".join([*header.segments, memoryview(data)[header.scan : end]]))
    del data
    with Image.open(picture, formats=("JPEG",)) as image:
        if shrink > 1:
            image.draft(None, (image.width // shrink, image.height // shrink))
        return paint(image, Canvas(image.height, image.width, wanted, header.orientation))


def measure(file: BinaryIO, channels: int) -> tuple[int, int, int]:
    """Height, width and orientation, from the beginning of the file if they stand there.

    Raises:
        BadImage: the header is damaged.
    """
    start = file.read(HEADER)
    try:
        header = _read_header(start)
    except BadImage:
        rest = file.read()
        if not rest:
            raise
        header = _read_header(start + rest)
    return header.height, header.width, header.orientation


def _read_header(data: bytes) -> Header:
    segments, frame, progressive = [data[:2]], b"", False
    exif, xmp = b"", b""
    position = 2
    for _ in range(MAX_SEGMENTS):
        position = data.find(b"\xff", position)
        if position < 0 or position + 4 > len(data):
            raise BadImage("truncated: the JPEG ends before its picture begins")
        marker = data[position + 1]
        if marker == 0xFF:  # a fill byte
            position += 1
            continue
        if marker in ALONE:
            position += 2
            continue
        if marker == END:
            raise BadImage("a JPEG without a picture")
        end = position + 2 + int.from_bytes(data[position + 2 : position + 4], "big")
        segment = data[position:end]
        content = segment[4:]
        if marker == SCAN:
            if not frame:
                raise BadImage("a JPEG without a picture: it has no size")
            height, width = int.from_bytes(frame[1:3], "big"), int.from_bytes(frame[3:5], "big")
            turned = orientation(exif, xmp)
            return Header(segments, height, width, frame[5], progressive, turned, position)
        if end > len(data):
            raise BadImage("truncated: the JPEG ends before its picture begins")
        if marker in OTHER_FRAMES:
            raise BadImage("a JPEG of a rare kind (lossless or hierarchical), which is not read: store it as PNG")
        if marker in FRAMES:
            if len(content) < 6:
                raise BadImage("the header of the JPEG is damaged")
            if content[0] != 8:
                raise BadImage(f"a JPEG of {content[0]} bits a value, which is not read: store it as PNG")
            frame, progressive = content, marker in PROGRESSIVE
        if marker == APP1 and content.startswith(b"Exif\0\0") and len(exif) < MAX_EXIF:
            exif += content[6:] if exif else content  # long metadata are continued in further segments
        elif marker == APP1 and content.startswith(b"http://ns.adobe.com/xap/1.0/\0"):
            xmp = xmp or content
        of_colors = (marker == APP0 and content.startswith(b"JFIF\0") and len(content) >= 14) or (
            marker == APP14 and content.startswith(b"Adobe") and len(content) >= 12
        )
        if of_colors or marker < APP0:
            segments.append(segment)
        position = max(end, position + 2)
    raise BadImage(f"a JPEG of more than {MAX_SEGMENTS} segments")


def _follow(data: bytes, position: int, most: int) -> tuple[int, int]:
    """The number of scans, and where the picture ends.

    libjpeg fills in missing parts. A half-written file that was padded would pass as an image with a gray lower half.
    So the end marker must be there. It cannot occur by chance among the coded values.

    Raises:
        BadImage: the end is missing, or there are more than `most` scans.
    """
    scans = 0
    while True:
        found = MARKER.search(data, position)
        if found is None:
            raise BadImage("truncated: the end of the JPEG is missing")
        position, marker = found.start(), data[found.start() + 1]
        if marker == END:
            return scans, found.end()
        scans += marker == SCAN
        if scans > most:
            raise BadImage(f"a JPEG of more than {most} scans, where ten are usual: store it anew")
        # A known marker is followed by a length. An unknown one is a damaged value.
        known = marker in (0xC4, 0xCC, SCAN, 0xDB, 0xDC, 0xDD, COMMENT) or APP0 <= marker <= 0xEF
        position += 2 + (int.from_bytes(data[position + 2 : position + 4], "big") if known else 0)
