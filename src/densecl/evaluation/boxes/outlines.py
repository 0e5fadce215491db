"""Outlines of objects: the polygons or the run lengths of an annotation, and how they become masks of any size.

Run lengths are COCO's: of a mask's pixels column by column, in turn of the ground and of the object.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import UInt8
from torch import Tensor

from densecl.evaluation.boxes.annotated import Fail, excerpt, number

#: Points of one object's polygons, and run lengths of one mask, that are read. Real ones have some hundreds.
MOST_NUMBERS = 1_000_000


class Outline(NamedTuple):
    """Where an object is, to the pixel."""

    size: tuple[int, int]  # (width, height) of the image
    polygons: tuple[np.ndarray, ...] = ()  # float64 "points 2", x and y in pixels
    runs: np.ndarray | None = None  # int64; None: it has polygons

    def draw(self, width: int, height: int) -> UInt8[Tensor, "{height} {width}"]:
        """The mask, 0 and 1, in an image that was resized to this size."""
        from faster_coco_eval import mask

        if self.runs is None:
            scale = np.array([width / self.size[0], height / self.size[1]])
            rings = [(ring * scale).ravel().tolist() for ring in self.polygons]
            found: Any = mask.frPyObjects(rings, height, width)
            return torch.from_numpy(np.ascontiguousarray(mask.decode(mask.merge(found))))
        values = np.arange(len(self.runs), dtype=np.uint8) % 2
        drawn = torch.from_numpy(np.repeat(values, self.runs).reshape(self.size).T.copy())
        if self.size == (width, height):
            return drawn
        exact = F.interpolate(drawn[None, None].float(), size=(height, width), mode="bilinear", antialias=True)
        return (exact[0, 0] >= 0.5).to(torch.uint8)


def read_outline(given: object, size: tuple[int, int], fail: Fail, *, relative: bool = False) -> Outline | None:
    """The outline that a file gives of an object; None if it gives none.

    Args:
        given: what stands in the file: a list of polygons, or a mapping with COCO's run lengths.
        size: (width, height) of the image.
        fail: makes the error.
        relative: coordinates are fractions of the image's sides.

    Raises:
        UserError: it is no outline, or one of an image of another size.
    """
    if given is None or given == []:
        return None
    if isinstance(given, Mapping):
        return Outline(size, runs=_runs(given, size, fail))
    if not isinstance(given, list):
        raise fail(f"its segmentation is {excerpt(given)}; expected polygons, or size and counts")
    scale = np.array(size if relative else (1, 1), np.float64)
    rings = tuple(_ring(ring, fail) * scale for ring in given)
    # Points outside are moved to the edge, because the memory for drawing grows with the length of the outline.
    return Outline(size, tuple(ring.clip((0, 0), size) for ring in rings))


def _ring(given: object, fail: Fail) -> np.ndarray:
    numbers = [number(each) for each in given] if isinstance(given, list) and len(given) <= MOST_NUMBERS else []
    if len(numbers) < 6 or len(numbers) % 2 or None in numbers:
        raise fail(f"of its segmentation, {excerpt(given)} is no polygon; expected [x, y, x, y, x, y, ...]")
    return np.array(numbers, np.float64).reshape(-1, 2)


def _runs(given: Mapping[Any, Any], size: tuple[int, int], fail: Fail) -> np.ndarray:
    sides, counts = given.get("size"), given.get("counts")
    if sides != [size[1], size[0]]:
        raise fail(f"its mask has the size {excerpt(sides)}, but [height, width] of the image is {[size[1], size[0]]}")
    runs = _unpacked(counts) if isinstance(counts, str) else counts
    if (
        not isinstance(runs, list)
        or len(runs) > MOST_NUMBERS
        or not all(type(run) is int and 0 <= run <= size[0] * size[1] for run in runs)
    ):
        raise fail(f"the counts of its mask are {excerpt(counts)}; expected run lengths, or COCO's text of them")
    if sum(runs) != size[0] * size[1]:
        raise fail(f"the counts of its mask are {sum(runs)} pixels, but the image has {size[0] * size[1]}")
    return np.array(runs, np.int64)


def _unpacked(text: str) -> list[int] | None:
    """The run lengths in COCO's text. None: it is none.

    A character holds five bits, the lowest first, and a sixth that says whether more follow; the last of them has the
    sign. From the fourth run on, the difference to the run two before it is stored.
    """
    runs: list[int] = []
    value = shift = 0
    for character in text[: 8 * MOST_NUMBERS]:
        bits = ord(character) - 48
        if not 0 <= bits < 64 or shift > 60:
            return None
        value |= (bits & 31) << shift
        shift += 5
        if not bits & 32:
            value -= (bits & 16) << (shift - 4)
            runs.append(value + runs[-2] if len(runs) > 2 else value)
            value = shift = 0
    return None if shift else runs


def packed(mask: UInt8[Tensor, "height width"]) -> dict[str, Any]:
    """A mask of 0 and 1 as COCO's JSON has it: its size, and its run lengths as a text."""
    from faster_coco_eval import mask as coding

    found = coding.encode(np.asfortranarray(mask.numpy()))
    counts = found["counts"]
    return {"size": list(mask.shape), "counts": counts.decode() if isinstance(counts, bytes) else counts}


def unpacked(found: Mapping[str, Any]) -> UInt8[Tensor, "height width"]:
    """The mask of what `packed` returned."""
    from faster_coco_eval import mask as coding

    return torch.from_numpy(np.ascontiguousarray(coding.decode(dict(found))))


def drawn(outlines: Sequence[Outline], width: int, height: int) -> UInt8[Tensor, "objects {height} {width}"]:
    """The masks of an image's objects, in the image resized to this size."""
    if not outlines:
        return torch.zeros(0, height, width, dtype=torch.uint8)
    return torch.stack([each.draw(width, height) for each in outlines])
