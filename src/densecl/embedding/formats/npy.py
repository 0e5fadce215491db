"""NumPy's .npy: the vectors alone. Beside FILE.npy lie FILE.csv, a row for each vector, and FILE.json, the plan."""

from __future__ import annotations

import csv
import json
import math
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from densecl.embedding.formats import Rows, Stored
from densecl.embedding.plan import Plan
from densecl.files import replacing
from densecl.images.paths import Strings
from densecl.names import from_cell, to_csv

HEADER = ("row", "path", "width", "height")

#: Rows of the table that are put together at a time; numbers of a block of vectors that is read.
LINES, BLOCK = 4096, 2**22


def check() -> None:
    pass


def companions(path: Path) -> tuple[Path, ...]:
    return path.with_suffix(".csv"), path.with_suffix(".json")


def write(path: Path, rows: Rows) -> None:
    table, plan = companions(path)
    count = len(rows.index)
    with replacing(table) as file:
        file.write(to_csv([HEADER]))
        for start in range(0, count, LINES):
            stop = min(start + LINES, count)
            lines = zip(rows.index[start:stop].tolist(), rows.sides[start:stop].tolist(), strict=True)
            file.write(
                to_csv(
                    (str(row), rows.name(index), str(width), str(height))
                    for row, (index, (height, width)) in enumerate(lines, start)
                )
            )
    with replacing(plan) as file:
        file.write(json.dumps(rows.plan.as_metadata(), indent=1).encode())
    dtype = np.dtype(rows.plan.dtype)
    header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": (count, *rows.plan.shape)}
    with replacing(path) as file:
        np.lib.format.write_array_header_2_0(file, header)
        for vectors in rows.vectors():
            file.write(vectors.contiguous().numpy().data)


def read(path: Path) -> Stored | None:
    table, beside = companions(path)
    try:
        said = json.loads(beside.read_bytes())
        plan = Plan.from_metadata(said if isinstance(said, dict) else None)
        values = np.load(path, mmap_mode="r", allow_pickle=False)
        with table.open(newline="", encoding="utf-8") as file:
            names = Strings.pack(os.fsencode(from_cell(row["path"])) for row in csv.DictReader(file))
    except (OSError, ValueError, KeyError):
        return None
    if plan is None or values.shape != (len(names.ends), *plan.shape) or values.dtype != plan.dtype:
        return None

    def vectors() -> Iterator[Tensor]:
        step = max(1, BLOCK // math.prod(plan.shape))
        for start in range(0, len(values), step):
            yield torch.from_numpy(np.array(values[start : start + step]))

    return Stored(plan, names, vectors)
