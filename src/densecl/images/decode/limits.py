"""How much memory one image may take, and the error for an image that cannot be used."""

from __future__ import annotations

#: Images with more pixels are refused. Pillow's own guard against decompression bombs has the same limit.
MAX_PIXELS = 178_956_970

#: Bytes of memory that an image may take for each *allowed* pixel: for the file, the decoder's work, and the result. So
#: a small image may take more for each of its own pixels.
BYTES_PER_PIXEL = 8

#: Bytes that every image may take in addition.
FREE_BYTES = 2**26


class BadImage(Exception):
    """An image that cannot be used. The message is the reason, in one short line."""


class NoBrightness(BadImage):
    """Its values are measurements, such as meters: floats outside 0 to 1, or integers that are not uint8 or uint16."""


def check_cost(height: int, width: int, max_pixels: int, *, per_pixel: int | float, beside: int = 0) -> None:
    """Refuse an image that is too large, before memory of its size is allocated.

    Args:
        height, width: of the part that will be decoded.
        max_pixels: an image may have this many pixels, and take `BYTES_PER_PIXEL` times as many bytes.
        per_pixel: bytes that decoding and the result take for each pixel.
        beside: further bytes, such as those of the file.

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
