"""Images from Pillow, and the orientation in their metadata."""

from __future__ import annotations

import contextlib
import re
import struct

import numpy as np
from jaxtyping import Shaped
from PIL import ExifTags, Image
from torch import Tensor

from densecl.images.decode.canvas import Canvas, Wanted
from densecl.images.decode.limits import NoBrightness

#: Bytes that Pillow takes for a pixel of each mode; 4 for all others.
IN_PILLOW = {"1": 1, "L": 1, "P": 1, "I;16": 2, "I;16L": 2, "I;16B": 2}


def from_pillow(image: Image.Image, channels: int) -> Shaped[Tensor, "channels height width"]:
    """An image from one of Pillow's, turned upright.

    Raises:
        BadImage: its data are damaged or its channels cannot be made `channels`.
    """
    # Pillow turns a TIFF itself. In a PNG it would decode all pixels to look for metadata behind them.
    behind = image.format == "PNG" and not image.info.keys() & {"exif", "Raw profile type exif"}
    orientation = 1
    if image.format != "TIFF" and not behind:
        with contextlib.suppress(Exception):  # broken metadata do not make the image unusable
            orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
    image.load()
    return paint(image, Canvas(image.height, image.width, Wanted(channels), orientation))


def paint(image: Image.Image, canvas: Canvas) -> Shaped[Tensor, "channels height width"]:
    """The pixels of Pillow's image, put on a canvas of its size.

    Raises:
        BadImage: its data are damaged or its channels cannot be made those of the canvas.
    """
    image.load()
    _, left, _, right = canvas.part
    for upper, lower in canvas.bands(per_pixel=4):
        whole = (left, upper, right, lower) == (0, 0, *image.size)
        band = _plain(image if whole else image.crop((left, upper, right, lower)))
        values = np.asarray(band)
        canvas.put(values[None] if values.ndim == 2 else values.transpose(2, 0, 1), alpha=band.mode in ("LA", "RGBA"))
    return canvas.tensor()


def orientation(exif: bytes | None, xmp: bytes | None = None) -> int:
    """The orientation, from EXIF or else from XMP. 1 if there is none or it cannot be read."""
    if exif and (found := _in_exif(exif)) is not None:
        return found
    match = re.search(rb'tiff:Orientation(?:="|>)([1-8])', xmp or b"")
    return int(match[1]) if match else 1


def _in_exif(exif: bytes) -> int | None:
    """The orientation, read by hand. Pillow would read every entry, each of which may refer to all the metadata."""
    start = re.match(rb"(?:Exif\0\0)*(?=II|MM)", exif)
    if start is None:
        return None
    data = exif[start.end() :]
    order = "<" if data.startswith(b"II") else ">"
    with contextlib.suppress(struct.error, KeyError):  # broken metadata do not make the image unusable
        (place,) = struct.unpack_from(order + "I", data, 4)
        (count,) = struct.unpack_from(order + "H", data, place)
        for entry in range(place + 2, place + 2 + 12 * count, 12):
            tag, kind = struct.unpack_from(order + "HH", data, entry)
            if tag == ExifTags.Base.Orientation:
                return struct.unpack_from(order + {1: "B", 3: "H", 4: "I"}[kind], data, entry + 8)[0]
    return None


def _plain(image: Image.Image) -> Image.Image:
    """The image in a mode whose values are the picture's own: gray or colors, with or without opacity, or deep gray."""
    if image.mode == "P":
        return image.convert("RGBA" if image.has_transparency_data else "RGB")
    if image.mode in ("PA", "La", "RGBa"):
        return image.convert("RGBA" if image.mode != "La" else "LA")
    if image.mode in ("L", "RGB") and "transparency" in image.info:
        return image.convert(image.mode + "A")
    if image.mode == "1":
        return image.convert("L")
    if image.mode == "I":
        values = np.asarray(image)
        if values.min() < 0 or values.max() > 65535:
            raise NoBrightness("32-bit integer pixels: store them as uint8 or uint16")
        return image.convert("I;16")
    if image.mode in ("L", "LA", "RGB", "RGBA", "F") or image.mode.startswith("I;16"):
        return image
    return image.convert("RGB")
