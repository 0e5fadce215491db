"""What a report draws of a run: the same few view pairs at several moments, in small files in ``RUN/moments``."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float, Shaped, UInt8
from torch import Tensor

from densecl.images.decode import BadImage
from densecl.model.correspondence import correspondence
from densecl.model.weights.result import write_tensors
from densecl.names import shown
from densecl.normalization import Normalization
from densecl.training.fixed_pairs import FirstPairs

#: View pairs that are drawn.
PAIRS = 6

#: Numbers that are kept of a cell's vector.
DIMS = 64

#: Cells along a side that are kept. A finer map is averaged. With `DIMS` a moment then has at most 1.3 MB.
SIDE = 28

#: Longer sides of the views' pictures are reduced to this, in pixels.
PICTURE = 192

#: The file of the views, beside one for each moment.
VIEWS = "views.safetensors"


class Moments:
    """Keeps what the backbone makes of the first fixed pairs, at several steps of a run.

    ``views.safetensors`` has the views once: ``before`` and ``after`` the change of colors, where they lie in their
    image (``box``, ``flipped``), and in its metadata the names of the images. Of pair 3 it has the image itself,
    reduced, as ``whole_3``, and its true height and width as ``sides_3``. ``000000120.safetensors`` has of step 120
    the ``vectors`` of all cells and each query cell's most similar key cell (``match``). First come the query views of
    all pairs, then the key views.

    A run never ends because such a file cannot be written.

    Args:
        folder: for the files.
        normalization: of the run, to show the views as pictures.
        name: gives the name of an image by its index.
        read: gives an image by its index, or raises `BadImage`. None: no image is kept but its views.
        start_step: where the run goes on. Moments after it are removed: it comes to them again.
    """

    def __init__(
        self,
        folder: Path,
        normalization: Normalization,
        name: Callable[[int], str],
        read: Callable[[int], Shaped[Tensor, "channels height width"]] | None = None,
        *,
        start_step: int = 0,
    ) -> None:
        self.folder = folder
        self.normalization = normalization
        self.name = name
        self.read = read
        with contextlib.suppress(OSError):
            for path in folder.glob("*.safetensors"):
                if path.stem.isdigit() and int(path.stem) > start_step:
                    path.unlink()

    def keep(self, step: int, seen: FirstPairs | None) -> None:
        """Write the moment after this step; with the first one, the views.

        Args:
            step: steps done.
            seen: the views, and what the backbone made of them. None, and features that are not finite, are nothing to
                draw.
        """
        if seen is None:
            return
        query, key = (_small(each[:PAIRS]) for each in (seen.query_features, seen.key_features))
        if not (query.isfinite().all() and key.isfinite().all()):
            return
        first, second = (type(views)(*(some[:PAIRS] for some in views)) for views in (seen.first, seen.second))
        match = correspondence(query, key, first, second).match
        with contextlib.suppress(OSError):
            self.folder.mkdir(exist_ok=True)
            if not (self.folder / VIEWS).is_file():
                self._write_views(seen)
            tensors = {"vectors": shortened(torch.cat([query, key]).cpu()).half(), "match": match.to(torch.int16)}
            write_tensors(tensors, self.folder / f"{step:09}.safetensors", {"step": str(step)})

    def _write_views(self, seen: FirstPairs) -> None:
        after, before = [], []
        mean, std = (torch.tensor(values)[:, None, None] for values in self.normalization)
        for crop, views in ((seen.pair.first, seen.first), (seen.pair.second, seen.second)):
            raw = crop.pixels[:PAIRS].cpu()
            before.append(raw.float() / _largest(raw))
            after.append(views.pixels[:PAIRS].float().cpu() * std + mean)
        tensors = {
            "before": _picture(torch.cat(before)),
            "after": _picture(torch.cat(after)),
            "box": torch.cat([views.box[:PAIRS].float() for views in (seen.first, seen.second)]),
            "flipped": torch.cat([views.flipped[:PAIRS] for views in (seen.first, seen.second)]).to(torch.uint8),
        }
        places = seen.pair.index[:PAIRS].tolist()
        if self.read is not None:
            for pair, index in enumerate(places):
                with contextlib.suppress(BadImage):  # it was read a moment ago
                    tensors |= _whole(pair, self.read(index))
        write_tensors(tensors, self.folder / VIEWS, {"names": json.dumps([shown(self.name(one)) for one in places])})


def _whole(pair: int, image: Shaped[Tensor, "channels height width"]) -> dict[str, Tensor]:
    """The image of a pair as a small picture, and its sides."""
    sides = image.shape[1:]
    skip = max(1, max(sides) // (4 * PICTURE))  # before anything is computed of an image that may fill the memory
    few = image[:, ::skip, ::skip].float() / _largest(image)
    return {f"whole_{pair}": _picture(few[None])[0], f"sides_{pair}": torch.tensor(sides, dtype=torch.float32)}


def _largest(raw: Tensor) -> int:
    """The value of white."""
    return 255 if raw.dtype == torch.uint8 else 65535


def _small(features: Float[Tensor, "images channels rows cols"]) -> Float[Tensor, "images channels _ _"]:
    """The feature map with at most `SIDE` cells along a side."""
    rows, cols = (min(SIDE, side) for side in features.shape[2:])
    return features if (rows, cols) == features.shape[2:] else F.adaptive_avg_pool2d(features, (rows, cols))


def _picture(values: Float[Tensor, "images channels height width"]) -> UInt8[Tensor, "images shown _ _"]:
    """Images from 0 to 1 as bytes, of three channels or one. Those that use little of the range are stretched."""
    values = values[:, :3] if values.shape[1] >= 3 else values[:, :1]
    low, high = values.min(), values.max()
    if high - low < 0.25:  # such as elevation in 16 bits, which would be black
        values = (values - low) / (high - low).clamp(min=1e-6)
    longest = max(values.shape[2:])
    if longest > PICTURE:
        height, width = (max(1, round(side * PICTURE / longest)) for side in values.shape[2:])
        values = F.interpolate(values, (height, width), mode="bilinear", antialias=True, align_corners=False)
    return (values.clamp(0, 1) * 255).round().to(torch.uint8)


def shortened(features: Float[Tensor, "images channels rows cols"]) -> Float[Tensor, "images kept rows cols"]:
    """The cells' L2-normalized vectors in at most `DIMS` numbers that keep the similarities as well as possible.

    These are the leading singular directions of all cells together, the strongest one first (Eckart and Young 1936),
    found by a randomized range finder with two power iterations (Halko, Martinsson and Tropp 2011, algorithm 4.4). The
    same features give the same numbers, and the run's random numbers stay as they were.
    """
    images, channels, rows, cols = features.shape
    vectors = F.normalize(features.float().movedim(1, -1).reshape(-1, channels), dim=1)
    dims = min(DIMS, channels)
    if channels > 2 * DIMS:
        width = min(DIMS + 8, len(vectors))
        probe = torch.randn(channels, width, generator=torch.Generator().manual_seed(0))
        basis = torch.linalg.qr(vectors @ probe).Q
        for _ in range(2):
            basis = torch.linalg.qr(vectors @ torch.linalg.qr(vectors.mT @ basis).Q).Q
        left, size, _ = torch.linalg.svd(basis.mT @ vectors, full_matrices=False)
        scores = basis @ (left * size)
    else:
        scores = vectors @ torch.linalg.svd(vectors, full_matrices=False).Vh.mT
    scores = scores[:, :dims]
    return scores.reshape(images, rows, cols, -1).movedim(-1, 1).contiguous()
