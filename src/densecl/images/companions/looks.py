"""What the pixels say: whether an image looks like a label map, a depth map or a photograph."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Int64, Shaped
from torch import Tensor

from densecl.images.decode import BadImage, NoBrightness, decode

#: Side of the window in the middle of an image that is looked at, and pixels beyond which an image is not opened.
WINDOW, MAX_PIXELS = 512, 50_000_000

#: Fraction of neighboring pixels that are equal in a label map, not counting the background. It is 0.85 to 0.98 in
#: CamVid, nuclei and aerial images, 0.64 to 0.81 where only borders are drawn, and at most 0.4 in photographs, also
#: those from a microscope.
FLAT = 0.6

#: Fraction of pixels near black or white in a mask that was stored as JPEG, which blurs its edges.
ALMOST_ALL = 0.95

#: A label map has at most this many colors; an image with even fewer passes for one although its lines are thin.
FEW, VERY_FEW = 64, 16

#: A JPEG with a smaller range of values is dim, not flat: JPEG rounds small differences away.
DIM = 32 / 255

#: Formats that store labels unchanged.
LOSSLESS = (".png", ".bmp", ".tif", ".tiff", ".npy", ".webp")


class Look(NamedTuple):
    """What the middle of an image looks like."""

    areas: bool  # areas of equal pixels, or nothing at all
    flat: bool  # that, or too few colors for a photograph
    empty: bool  # all pixels are equal
    gray: bool
    deep: bool  # sixteen bits, or measured values
    colors: int


def look_at(path: str) -> Look | None:
    """What an image looks like; None if it cannot be read."""
    try:
        pixels = decode(path, 3, max_pixels=MAX_PIXELS)
    except NoBrightness:
        return Look(areas=False, flat=False, empty=False, gray=True, deep=True, colors=WINDOW**2)
    except BadImage:
        return None
    return look_of(pixels, lossless=path.lower().endswith(LOSSLESS))


def middle(pixels: Shaped[Tensor, "3 _ _"]) -> Int64[np.ndarray, "rows cols"]:
    """The middle of an image, with one number for each color."""
    top, left = (max(0, (side - WINDOW) // 2) for side in pixels.shape[1:])
    red, green, blue = pixels[:, top : top + WINDOW, left : left + WINDOW].numpy().astype(np.int64)
    return (red << 32) + (green << 16) + blue


def look_of(pixels: Shaped[Tensor, "3 _ _"], *, lossless: bool = True) -> Look:
    """What an image looks like.

    Args:
        pixels: uint8 or uint16.
        lossless: whether its format stores labels unchanged.
    """
    values = middle(pixels)
    red, green, blue = values >> 32, values >> 16 & 0xFFFF, values & 0xFFFF
    colors, counts = np.unique(values, return_counts=True)
    background = colors[counts.argmax()]
    across, down = values[:, 1:] == values[:, :-1], values[1:] == values[:-1]
    inside = max(
        equal[part].mean() if (part := ahead != background).any() else 1.0
        for equal, ahead in ((across, values[:, 1:]), (down, values[1:]))
    )
    few = len(colors) <= VERY_FEW and across.size > 0 and across.mean() > FLAT  # an image may be one pixel wide
    gray = bool((red == green).all() and (green == blue).all())
    white = 65535 if pixels.element_size() == 2 else 255
    bright, dark = (red > white * 15 / 16).mean(), (red < white / 16).mean()
    mask = gray and bright > 0 and dark > 0 and bright + dark > ALMOST_ALL and bright > FLAT * (1 - dark)
    dim = not lossless and np.ptp(pixels.numpy()) < DIM * white and len(colors) > 1
    return Look(
        areas=bool(inside >= FLAT and not dim),
        flat=bool((inside >= FLAT or few or mask) and not dim),
        empty=len(colors) == 1,
        gray=gray,
        deep=pixels.element_size() == 2,
        colors=len(colors),
    )
