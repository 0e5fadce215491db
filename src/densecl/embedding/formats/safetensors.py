"""safetensors: one file, which any language maps into memory. The plan is its metadata.

Tensors: `vectors`; `sizes` with height and width of each image; `names`, the bytes of all names with a zero byte
between two (no file name has one).
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import safetensors
import torch
from torch import Tensor

from densecl.embedding.formats import Rows, Stored
from densecl.embedding.plan import Plan
from densecl.files import replacing
from densecl.images.paths import Strings

_DTYPES = {"float32": "F32", "float16": "F16"}

#: Numbers of a block that is read.
BLOCK = 2**22


def check() -> None:
    pass


def companions(path: Path) -> tuple[Path, ...]:
    return ()


def write(path: Path, rows: Rows) -> None:
    """The library would want all values in memory, so the header is made here. The sizes stand first and the vectors
    second, so that each number lies at a multiple of its bytes.
    """
    count = len(rows.index)
    names = sum(len(os.fsencode(name)) + 1 for name in rows.names()) - 1 if count else 0
    header: dict[str, object] = {"__metadata__": rows.plan.as_metadata()}
    at = 0
    for name, dtype, shape, item in (
        ("sizes", "I32", (count, 2), 4),
        (
            "vectors",
            _DTYPES[rows.plan.dtype],
            (count, *rows.plan.shape),
            rows.plan.row_bytes // math.prod(rows.plan.shape),
        ),
        ("names", "U8", (names,), 1),
    ):
        end = at + math.prod(shape) * item
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [at, end]}
        at = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with replacing(path) as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.write(np.ascontiguousarray(rows.sides).data)
        for vectors in rows.vectors():
            file.write(vectors.contiguous().numpy().data)
        for number, name in enumerate(rows.names()):
            file.write(b"\0" * (number > 0) + os.fsencode(name))


def read(path: Path) -> Stored | None:
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            plan = Plan.from_metadata(file.metadata())
            if plan is None or set(file.keys()) != {"sizes", "vectors", "names"}:
                return None
            text = file.get_tensor("names").numpy()
            count = file.get_slice("vectors").get_shape()[0]
    except (OSError, safetensors.SafetensorError):
        return None
    ends = np.append(np.flatnonzero(text == 0), len(text)) if count else np.empty(0, np.int64)
    if len(ends) != count:
        return None
    kept = text[text != 0]
    names = Strings(kept, ends - np.arange(count))

    def vectors() -> Iterator[Tensor]:
        with safetensors.safe_open(path, framework="pt") as file:
            rows = file.get_slice("vectors")
            step = max(1, BLOCK // math.prod(plan.shape))
            for start in range(0, count, step):
                yield torch.as_tensor(rows[start : min(start + step, count)])

    return Stored(plan, names, vectors)
