"""BMP, read by Pillow."""

from __future__ import annotations

from typing import BinaryIO

from jaxtyping import Shaped
from PIL import Image
from torch import Tensor

from densecl.images.decode.canvas import Canvas, Wanted
from densecl.images.decode.limits import BadImage, check_cost
from densecl.images.decode.pillow import IN_PILLOW, paint

#: Pillow decodes run lengths in Python, about one each microsecond. A larger picture would take minutes.
MAX_RUN_LENGTH_PIXELS = 16_000_000


def read(file: BinaryIO, wanted: Wanted) -> Shaped[Tensor, "channels height width"]:
    """The picture.

    Raises:
        BadImage, or what Pillow raises: it is damaged, or too large.
    """
    with Image.open(file, formats=("BMP",)) as image:
        per_pixel = IN_PILLOW.get(image.mode, 4) + wanted.channels
        check_cost(image.height, image.width, wanted.max_pixels, per_pixel=per_pixel)
        if image.tile and image.tile[0].codec_name == "bmp_rle" and image.width * image.height > MAX_RUN_LENGTH_PIXELS:
            raise BadImage(f"a run-length coded BMP of more than {MAX_RUN_LENGTH_PIXELS} pixels: store it as PNG")
        return paint(image, Canvas(image.height, image.width, wanted))


def measure(file: BinaryIO, channels: int) -> tuple[int, int, int]:
    """Height, width and orientation, from the header."""
    with Image.open(file, formats=("BMP",)) as image:
        return image.height, image.width, 1
