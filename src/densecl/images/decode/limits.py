"""What one image may cost, and how a reader says that it may not."""

from __future__ import annotations

#: Images of more pixels are refused. Pillow's own guard against decompression bombs stands at the same place.
MAX_PIXELS = 178_956_970

#: Bytes of memory that an image may take for each pixel that is allowed: the file as it is held, what the decoder works
#: on, and the result. An image of the largest number of pixels may take this much a pixel, a smaller one more.
BYTES_PER_PIXEL = 8

#: Bytes that every image may take besides.
FREE_BYTES = 2**26


class BadImage(Exception):
    """An image that cannot be used; the message is the reason, in one short line."""


class NoBrightness(BadImage):
    """Its values are measured ones, such as metres: floats outside 0 to 1, or integers that are not uint8 or uint16."""


def check_cost(height: int, width: int, max_pixels: int, *, per_pixel: int | float, beside: int = 0) -> None:
    """Refuse an image before anything of its size is allocated.

    Args:
        height, width: of what is to be decoded.
        max_pixels: how many pixels an image may have; `BYTES_PER_PIXEL` times as many bytes are allowed.
        per_pixel: bytes of memory that decoding and the result take for each pixel.
        beside: bytes that do not follow from the number of pixels, such as those of the file.

    Raises:
        BadImage: it has no pixels, too many, or would take too many bytes.
    """
    if height < 1 or width < 1:
        raise BadImage(f"its size is {width}x{height}")
    enlarge = "a decompression bomb? If not: --tile (TIFF, .npy), or --max-image-pixels"
    if height * width > max_pixels:
        raise BadImage(f"{width}x{height} is more than {max_pixels} pixels: {enlarge} {height * width}")
    cost = height * width * per_pixel + beside
    if cost > BYTES_PER_PIXEL * max_pixels + FREE_BYTES:
        needed = int(cost / BYTES_PER_PIXEL) + 1
        raise BadImage(f"{width}x{height} would take {cost / 1e9:.1f} GB of memory: {enlarge} {needed}")
