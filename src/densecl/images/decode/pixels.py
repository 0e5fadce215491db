"""The values of an image: which types are accepted, and how they become the wanted number of channels."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Shaped
from torch import Tensor

from densecl.images.decode.limits import BadImage, NoBrightness


def to_channels(
    pixels: Shaped[Tensor, "bands height width"], channels: int, *, alpha: bool = False, premultiplied: bool = False
) -> Shaped[Tensor, "channels height width"]:
    """The same image with the wanted number of channels, by the table at the top of `densecl.images.decode`.

    Args:
        pixels: the image.
        channels: that are wanted.
        alpha: the last band is the opacity.
        premultiplied: the colors are already multiplied by the opacity.

    Raises:
        BadImage: the number of bands cannot be turned into `channels`.
    """
    if len(pixels) == channels:
        return pixels
    if alpha:
        pixels = _over_white(pixels, premultiplied)
        if len(pixels) == channels:
            return pixels
    if len(pixels) == 1 and channels == 3:
        return pixels.permute(1, 2, 0).repeat(1, 1, 3).permute(2, 0, 1)
    if len(pixels) == 3 and channels == 1:
        red, green, blue = pixels.to(torch.int64)
        luma = (19595 * red + 38470 * green + 7471 * blue + 0x8000) >> 16  # Pillow's fixed-point ITU-R 601
        return luma.to(pixels.dtype)[None]
    raise BadImage(f"has {len(pixels)} channel{'s' * (len(pixels) != 1)}, not {channels}")


def from_array(
    array: np.ndarray, channels: int, *, channels_first: bool = False
) -> Shaped[Tensor, "channels height width"]:
    """A copy of an array as an image: "height width", "height width channels" or "channels height width".

    The axis of the channels is the one whose length is `channels` (or 1 or 3, if these can be turned into `channels`).
    If both ends fit, it is the last axis, or with `channels_first` the first.

    Raises:
        BadImage: no axis fits, or the values are neither bool, uint8, uint16 nor floats in 0 to 1.
    """
    axis = layout(array.shape, channels, channels_first=channels_first)[2]
    array = array[None] if axis is None else np.moveaxis(array, axis, 0)
    return to_channels(to_tensor(array), channels)


def layout(shape: tuple[int, ...], channels: int, *, channels_first: bool = False) -> tuple[int, int, int | None]:
    """Height, width and the axis of the channels of an array. The axis is None if there is none.

    Raises:
        BadImage: no axis fits.
    """
    if len(shape) == 2:
        return shape[0], shape[1], None
    if len(shape) == 3:
        for bands in (channels, 3, 1) if channels in (1, 3) else (channels,):
            for axis in (0, 2) if channels_first else (2, 0):
                if shape[axis] == bands:
                    height, width = shape[1:] if axis == 0 else shape[:2]
                    return height, width, axis
    raise BadImage(f"an array of shape {'x'.join(map(str, shape))}, where {channels} channels are expected")


def to_tensor(array: Shaped[np.ndarray, "bands height width"]) -> Shaped[Tensor, "bands height width"]:
    """A copy as uint8 or uint16, channels last in memory, which is faster to resize. Floats 0 to 1 become uint16.

    Raises:
        NoBrightness: the values are neither bool, uint8, uint16 nor floats in 0 to 1.
    """
    if array.dtype.kind == "f":
        if not (np.min(array, initial=0) >= 0 and np.max(array, initial=0) <= 1):  # false for NaN too
            raise NoBrightness(f"floats outside 0 to 1{_range(array)}: {_SCALE}")
        array = np.rint(array.astype(np.float64) * 65535)
    elif array.dtype.kind == "b":
        array = array.astype(np.uint8) * np.uint8(255)
    elif array.dtype.kind != "u" or array.dtype.itemsize > 2:
        raise NoBrightness(f"{array.dtype.newbyteorder('=')} pixels{_range(array)}: {_SCALE}")
    dtype = np.uint8 if array.dtype == np.uint8 else np.uint16
    return torch.from_numpy(np.array(array.transpose(1, 2, 0), dtype, order="C")).permute(2, 0, 1)


#: What the user can do with other values.
_SCALE = "scale all images alike to float32, (x - LOW) / (HIGH - LOW), or to uint16"


def _range(array: np.ndarray) -> str:
    """The range of the values, for a message. Empty if they have no order."""
    if array.dtype.kind not in "iuf" or array.size == 0:
        return ""
    low, high = array.min(), array.max()
    return f" ({low:g} to {high:g})" if np.isfinite(low) and np.isfinite(high) else " (not all finite)"


def _over_white(
    pixels: Shaped[Tensor, "bands height width"], premultiplied: bool
) -> Shaped[Tensor, "colors height width"]:
    white = torch.iinfo(pixels.dtype).max
    colors, opacity = pixels[:-1], pixels[-1:]
    if bool((opacity == white).all()):
        return colors
    opacity = opacity.to(torch.float32) / white
    colors = colors.to(torch.float32) * (1 if premultiplied else opacity)
    return (colors + white * (1 - opacity)).round().clamp(0, white).to(pixels.dtype)
