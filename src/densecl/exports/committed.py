"""Names and shapes of other libraries' backbones: lists in the package, for where the library is not installed.

A list is a text file ``lists/TARGET-VERSION/ARCHITECTURE.txt`` with a line for each tensor, its name and its shape,
such as "stem.conv1.weight 64x3x7x7". `benchmarks/exports.py --lists` writes them from the libraries themselves.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

#: Where the lists are.
LISTS = Path(__file__).with_name("lists")


def committed_shapes(target: str, version: str, architecture: str) -> dict[str, tuple[int, ...]] | None:
    """The shape of each tensor of a backbone, by its name in that library. None if there is no such list."""
    path = _path(target, version, architecture)
    if not path.is_file():
        return None
    lines = [line.split() for line in path.read_text().splitlines()]
    return {name: tuple(int(side) for side in shape.split("x") if side) for name, shape in map(_two, lines)}


def write_shapes(target: str, version: str, architecture: str, tensors: Mapping[str, Tensor]) -> Path:
    """Writes a list, from a library that is installed."""
    path = _path(target, version, architecture)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{name} {'x'.join(map(str, one.shape))}".rstrip() + "\n" for name, one in tensors.items()))
    return path


def _path(target: str, version: str, architecture: str) -> Path:
    return LISTS / f"{target}-{version}" / f"{architecture}.txt"


def _two(words: list[str]) -> tuple[str, str]:
    return words[0], words[1] if len(words) > 1 else ""  # a single number has no sides
