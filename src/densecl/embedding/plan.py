"""What a file of vectors holds, and how it was made. Two calls with equal plans make the same file."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Shaped
from torch import Tensor

from densecl.normalization import Normalization

#: Part of every plan. Increase it whenever equal settings would give other vectors.
VERSION = 1

#: The types that numbers of vectors may have, by name.
DTYPES = {"float32": torch.float32, "float16": torch.float16}


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is computed, of what.

    Attributes:
        content: "images": a vector for each image, the mean over its cells. "cells": a vector for each cell.
        dtype: of the numbers, a key of `DTYPES`.
        dim: numbers of a vector.
        grid: rows and columns of the feature map.
        image_size: (width, height) to which the images were resized.
        stride: pixels of the resized image per cell.
        backbone: timm's name of the network.
        weights: as they were named.
        mean, std: what the pixels were normalized by.
        digest: of the weights.
        data: as it was named.
        tile: side of the tiles that the images were cut into.
        images: how many there are, those that cannot be read included.
        fingerprint: of their names.
        version: of the way in which all this becomes vectors.
    """

    content: Literal["images", "cells"]
    dtype: str
    dim: int
    grid: tuple[int, int]
    image_size: tuple[int, int]
    stride: int
    backbone: str
    weights: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    digest: str
    data: str
    tile: int | None
    images: int
    fingerprint: str
    version: int = VERSION

    @property
    def shape(self) -> tuple[int, ...]:
        """Of what there is for one image: (dim,) or (rows, cols, dim)."""
        return (self.dim,) if self.content == "images" else (*self.grid, self.dim)

    @property
    def row_bytes(self) -> int:
        """Of what there is for one image."""
        return math.prod(self.shape) * DTYPES[self.dtype].itemsize

    @property
    def normalization(self) -> Normalization:
        return Normalization(self.mean, self.std)

    def as_metadata(self) -> dict[str, str]:
        """The fields as texts in JSON, for files."""
        return {name: json.dumps(value) for name, value in dataclasses.asdict(self).items()}

    @classmethod
    def from_metadata(cls, said: Mapping[str, str] | None) -> Plan | None:
        """The plan that a file says; None if it says none."""
        try:
            values: dict[str, Any] = {
                field.name: json.loads((said or {})[field.name]) for field in dataclasses.fields(cls)
            }
            values = {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}
            plan = cls(**values)
            return plan if plan.content in ("images", "cells") and plan.dtype in DTYPES else None
        except (KeyError, ValueError, TypeError, RecursionError):
            return None

    def difference(self, other: Plan) -> str | None:
        """The first thing, in words, that makes `other` give other vectors; None if nothing does."""
        for name, what in _WORDS.items():
            mine, its = getattr(self, name), getattr(other, name)
            if mine != its:
                return what.format(mine=_said(mine), its=_said(its))
        return None


#: How a difference is told: what is there, what is asked for now. Names of weights and data may differ.
_WORDS = {
    "version": "another version of densecl",
    "content": "vectors of {its} and not of {mine}",
    "dtype": "--dtype {its} and not {mine}",
    "backbone": "a {its} and not a {mine}",
    "digest": "other weights",
    "image_size": "--image-size {its} and not {mine}",
    "stride": "--output-stride {its} and not {mine}",
    "tile": "--tile {its} and not {mine}",
    "images": "{its} images and not {mine}",
    "fingerprint": "images of other names",
    "mean": "another mean",
    "std": "another standard deviation",
    "grid": "a grid of {its} and not {mine}",
    "dim": "{its} numbers a vector and not {mine}",
}


def _said(value: object) -> str:
    if isinstance(value, tuple):
        return "x".join(map(str, value))
    return "none" if value is None else str(value)


def digest_of(state: Mapping[str, Shaped[Tensor, "..."]]) -> str:
    """A hash of weights: names, types, shapes and values."""
    digest = hashlib.sha256()
    for name, tensor in sorted(state.items()):
        values = tensor.detach().cpu().contiguous()
        digest.update(f"{name} {values.dtype} {tuple(values.shape)}\0".encode())
        digest.update(values.flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()
