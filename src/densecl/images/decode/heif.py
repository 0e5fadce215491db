"""AVIF, read by Pillow, and HEIC, read by Pillow with the package pi-heif (``pip install pi-heif``)."""

from __future__ import annotations

import functools
import importlib
import importlib.util
from typing import BinaryIO

from jaxtyping import Shaped
from PIL import Image, features
from torch import Tensor

from densecl.images.decode.canvas import Canvas, Wanted
from densecl.images.decode.limits import BadImage, check_cost
from densecl.images.decode.pillow import orientation, paint

AVIF = bool(features.check("avif"))
HEIC = importlib.util.find_spec("pi_heif") is not None

#: What of it this installation reads, by extension and as `formats.kind_of` names the files.
EXTENSIONS = (*((".avif",) if AVIF else ()), *((".heic", ".heif", ".hif") if HEIC else ()))
KINDS = (*(("an AVIF image",) if AVIF else ()), *(("a HEIC image",) if HEIC else ()))

#: Extensions that this installation does not read, and what it takes to read them.
MISSING = {
    **({} if AVIF else {".avif": "Pillow 11.3 or newer"}),
    **({} if HEIC else dict.fromkeys((".heic", ".heif", ".hif"), "pip install pi-heif")),
}

#: Bytes of memory for each pixel while decoding: the decoder's planes and colors, its output, and Pillow's picture.
IN_DECODING = 20

#: Brands (the names in a file's header) of AVIF and of HEIC pictures.
AVIF_BRANDS = {b"avif", b"avis"}
HEIC_BRANDS = {b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis", b"hevm", b"hevs"}


def read(file: BinaryIO, wanted: Wanted) -> Shaped[Tensor, "channels height width"]:
    """The picture, in eight bits a value.

    Raises:
        BadImage, or what Pillow raises: it is damaged, too large, or a package for it is missing.
    """
    kind = _kind(file)
    with Image.open(file, formats=(kind,)) as image:
        per_pixel = IN_DECODING + wanted.channels
        check_cost(image.height, image.width, wanted.max_pixels, per_pixel=per_pixel)
        return paint(image, Canvas(image.height, image.width, wanted, orientation(image.info.get("exif"))))


def measure(file: BinaryIO, channels: int) -> tuple[int, int, int]:
    """Height, width and orientation.

    Raises:
        BadImage: a package for it is missing.
    """
    with Image.open(file, formats=(_kind(file),)) as image:
        return image.height, image.width, orientation(image.info.get("exif"))


def _kind(file: BinaryIO) -> str:
    """The name of Pillow's reader.

    Raises:
        BadImage: it is a film or the like, or a package for it is missing.
    """
    head = file.read(64)
    file.seek(0)
    end = min(len(head), max(16, int.from_bytes(head[:4], "big")))
    brands = {head[8:12], *(head[place : place + 4] for place in range(16, end, 4))}
    if brands & AVIF_BRANDS:
        if not AVIF:
            raise BadImage("an AVIF image, for which Pillow 11.3 or newer is needed")
        return "AVIF"
    if brands & HEIC_BRANDS or head[8:12] in (b"mif1", b"msf1"):
        if not HEIC:
            raise BadImage("a HEIC image: pip install pi-heif, or convert it to JPEG")
        _register_heif()
        return "HEIF"
    raise BadImage("a film (MP4 or the like), whatever its name says")


@functools.cache
def _register_heif() -> None:
    importlib.import_module("pi_heif").register_heif_opener()
