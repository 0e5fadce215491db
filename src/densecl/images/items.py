"""Items of the user's data set in Python: the image in an item, or a message on what the item is instead."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Sized
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Shaped
from PIL import Image
from torch import Tensor
from torch.utils.data import IterableDataset

from densecl.errors import UserError
from densecl.images.decode import BadImage, from_array, from_pillow
from densecl.names import shown

#: What an item must be, for messages.
NEEDED = (
    "An item has to be an image (Pillow's, or an array or tensor of uint8, uint16 or floats in 0 to 1), a tuple that"
    ' begins with one, or a mapping with one under "image".'
)

FOR_FILES = "For files give their folder, a glob, or a text file with a path per line."

#: Items that are tried before a run. One that can be used is enough.
TRIED = 8


def image_of(item: Any, channels: int) -> Shaped[Tensor, "channels height width"]:
    """The image in an item.

    Raises:
        BadImage: there is no image, or it cannot be used.
    """
    image = _candidate(item)
    if isinstance(image, Image.Image):
        try:
            return from_pillow(image, channels)
        except (OSError, SyntaxError, ValueError) as error:  # a lazily opened file
            raise BadImage(f"{type(error).__name__}: {shown(error)}") from error
    if isinstance(image, Tensor):
        image = image.float() if image.dtype == torch.bfloat16 else image  # NumPy has no bfloat16
        return from_array(image.detach().cpu().numpy(), channels, channels_first=True)
    if isinstance(image, np.ndarray):
        return from_array(image, channels)
    raise BadImage(f"the item is no image but {type(image).__name__}")


def _candidate(item: Any) -> Any:
    """The part of an item that must be the image."""
    if isinstance(item, Mapping):
        return item.get("image")
    if isinstance(item, Sequence) and not isinstance(item, str | bytes) and item:
        return item[0]
    return item


def check_data_set(dataset: Any) -> None:
    """Check that this can be a data set of images, as far as possible without reading an item.

    Raises:
        UserError: it cannot.
    """
    kind = type(dataset).__name__
    if hasattr(dataset, "dataset") and hasattr(dataset, "batch_sampler"):
        raise UserError(f"data is a {kind}, which gives batches. Give its data set: loader.dataset.")
    if hasattr(dataset, "iloc"):
        raise UserError(f"data is a {kind} of pandas. Write its column of paths into a text file, a path per line.")
    if isinstance(dataset, Mapping):
        keys = _names(dataset)
        raise UserError(
            f"data is a {kind} of {keys}, not a data set. Give one of these, such as data[{keys.split(',')[0]}]."
        )
    if not isinstance(dataset, Sized) or not hasattr(dataset, "__getitem__") or isinstance(dataset, IterableDataset):
        raise UserError(f"a data set needs a length and items by number; {kind} has not")
    if isinstance(dataset, np.ndarray | Tensor):
        shape = "x".join(map(str, dataset.shape))
        single = len(dataset.shape) == 3 and (dataset.shape[0] in (1, 3, 4) or dataset.shape[-1] in (1, 3, 4))
        if len(dataset.shape) not in (3, 4) or single:
            layout = "images channels height width" if isinstance(dataset, Tensor) else "images height width channels"
            one = ", as if of one image" if single else ""
            raise UserError(f'data is of shape {shape}{one}. It has to be "{layout}", or a folder.')
    if len(dataset) == 0:
        raise UserError("the data set is empty")


def check_items(dataset: Any, channels: int) -> None:
    """Check that at least one of a few items is an image. If none is, a run would reject every one.

    Raises:
        UserError: what the first item is, and what is needed instead.
    """
    first = None
    for index in np.linspace(0, len(dataset) - 1, min(TRIED, len(dataset))).astype(int).tolist():
        try:
            item = dataset[index]
        except Exception as error:  # the user's data set may raise anything
            reason = f"cannot be read: {type(error).__name__}: {shown(error)}. Items are asked for by number, from 0."
        else:
            try:
                image_of(item, channels)
            except BadImage as error:
                reason = _reason(item, error)
            else:
                return
        first = first or reason
    raise UserError(f"item 0 of the data set ({type(dataset).__name__}) {first}")


def _reason(item: Any, error: BadImage) -> str:
    if not isinstance(_candidate(item), Image.Image | Tensor | np.ndarray):
        text = isinstance(item, str | bytes | Path)
        return f"is {described(item)}. {FOR_FILES if text else NEEDED}"
    outside = "outside 0 to 1" in str(error)
    return f"is {described(item)}: {error}.{' Leave out the normalization, which is done here.' if outside else ''}"


def described(item: Any) -> str:
    """What an item is, in words: "a tuple of int, Image", "a float32 tensor of 3x32x32 from -2.1 to 2.6"."""
    kind = type(item).__name__
    if isinstance(item, Tensor | np.ndarray):
        dtype = str(item.dtype).removeprefix("torch.")
        what = f"{dtype} {'tensor' if isinstance(item, Tensor) else 'array'}"
        values = np.asarray(item.detach().cpu().float() if isinstance(item, Tensor) else item)
        told = f" from {values.min():.4g} to {values.max():.4g}" if values.size and values.dtype.kind in "fiu" else ""
        return f"{'an' if dtype[0] in 'aio' else 'a'} {what} of {'x'.join(map(str, item.shape)) or 'one value'}{told}"
    if isinstance(item, Mapping):
        inner = f", under 'image' {described(item['image'])}" if "image" in item else ""
        return f"a {kind} with {_names(item)}{inner}"
    if isinstance(item, str | bytes | Path):
        return f"of type {kind}, '{shown(item, 60)}'"
    if isinstance(item, Sequence) and item:
        inner = described(item[0]) if isinstance(item[0], Tensor | np.ndarray) else type(item[0]).__name__
        others = [type(each).__name__ for each in item[1:4]]
        return f"a {kind} of {', '.join([inner, *others])}{', ...' * (len(item) > 4)}"
    return "None" if item is None else f"of type {kind}"


def _names(mapping: Mapping[Any, Any]) -> str:
    names = [shown(repr(key), 40) for key in list(mapping)[:6]]
    return ", ".join(names + ["..."] * (len(mapping) > 6)) or "nothing"
