"""The batch of one step: samples put together, and handed from a worker to the main process."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.utils.data import default_collate

from densecl.images.pairs import BadRecord, Sample
from densecl.views import Crop, CropPair, Photometrics

#: Workers send tensors of up to this many bytes by value, and larger ones through shared memory.
SMALL_BYTES = 65_536


class Batch(NamedTuple):
    """The samples of one step. Give `bad` to `Quarantine.record` before using `pairs`."""

    pairs: CropPair
    bad: tuple[BadRecord, ...]

    def __reduce__(self) -> tuple[Callable[..., Batch], tuple[Any, ...]]:
        """How a worker sends it. Small tensors go by value, because sharing one opens a connection for it.

        A batch has 19 tensors beside the pixels. To share them took longer than to read the images from the cache.
        """
        return _from_arrays, (_map(self.pairs, _small_to_array), self.bad)


def _from_arrays(pairs: CropPair, bad: tuple[BadRecord, ...]) -> Batch:
    return Batch(_map(pairs, lambda leaf: torch.from_numpy(leaf) if isinstance(leaf, np.ndarray) else leaf), bad)


def _small_to_array(tensor: torch.Tensor) -> torch.Tensor | np.ndarray:
    return tensor.numpy() if tensor.nbytes <= SMALL_BYTES else tensor


def _map(tree: Any, function: Callable[[Any], Any]) -> Any:
    """The same lists, tuples and named tuples with other leaves."""
    if not isinstance(tree, list | tuple):
        return function(tree)
    leaves = [_map(branch, function) for branch in tree]
    return type(tree)(*leaves) if hasattr(tree, "_fields") else type(tree)(leaves)


def collate(samples: list[Sample]) -> Batch:
    """One batch of the samples. If any view has sixteen bits, all get sixteen (255 becomes 65535).

    Samples without a usable image are left out, so `pairs` may be shorter than `samples`, even empty. In that case
    `Quarantine.record` stops the run.
    """
    bad = tuple(record for sample in samples for record in sample.bad)
    pairs = [sample.pair for sample in samples if sample.pair is not None]
    if not pairs:
        return Batch(_NO_PAIRS, bad)
    if any(pair.first.pixels.dtype == torch.uint16 for pair in pairs):
        pairs = [
            pair._replace(
                first=_to_16_bit(pair.first),
                second=_to_16_bit(pair.second),
                local=tuple(map(_to_16_bit, pair.local)),
            )
            for pair in pairs
        ]
    return Batch(default_collate(pairs), bad)


def _to_16_bit(crop: Crop) -> Crop:
    if crop.pixels.dtype == torch.uint16:
        return crop
    return crop._replace(pixels=(crop.pixels.to(torch.int32) * 257).to(torch.uint16))


_NO_VALUES = torch.empty(0)
_NO_CROPS = Crop(
    torch.empty(0, 0, 0, 0, dtype=torch.uint8),
    torch.empty(0, 4),
    torch.empty(0, dtype=torch.bool),
    Photometrics(
        brightness=_NO_VALUES,
        contrast=_NO_VALUES,
        saturation=_NO_VALUES,
        hue=_NO_VALUES,
        order=torch.empty(0, 4, dtype=torch.int64),
        grayscale=torch.empty(0, dtype=torch.bool),
        blur_sigma=_NO_VALUES,
    ),
)
_NO_PAIRS = CropPair(_NO_CROPS, _NO_CROPS, torch.empty(0, dtype=torch.int64))
