"""Parquet: a table with the columns path, width, height and vector (or cells). The plan is its metadata."""

from __future__ import annotations

import importlib
import importlib.util
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from densecl.embedding.formats import Rows, Stored
from densecl.embedding.plan import Plan
from densecl.errors import UserError
from densecl.files import replacing
from densecl.images.paths import Strings
from densecl.names import from_cell, to_cell

#: The name of the column with the vectors.
COLUMNS = {"images": "vector", "cells": "cells"}


def check() -> None:
    if importlib.util.find_spec("pyarrow") is None:
        raise UserError(
            "Parquet needs pyarrow: pip install pyarrow, or give --out a name that ends with .safetensors or .npy."
        )


def companions(path: Path) -> tuple[Path, ...]:
    return ()


def write(path: Path, rows: Rows) -> None:
    """Names are written as in the CSV files of densecl (`names.to_cell`), because Parquet's texts are UTF-8."""
    pyarrow, parquet = _pyarrow()
    numbers = math.prod(rows.plan.shape)
    kind = pyarrow.list_(pyarrow.float16() if rows.plan.dtype == "float16" else pyarrow.float32(), numbers)
    column = COLUMNS[rows.plan.content]
    schema = pyarrow.schema(
        [("path", pyarrow.string()), ("width", pyarrow.int32()), ("height", pyarrow.int32()), (column, kind)],
        metadata=rows.plan.as_metadata(),
    )
    at = 0
    with (
        replacing(path) as file,
        # Vectors hardly become smaller.
        parquet.ParquetWriter(file, schema, compression="none", use_dictionary=False) as writer,
    ):
        for vectors in rows.vectors():
            end = at + len(vectors)
            flat = pyarrow.array(vectors.contiguous().numpy().reshape(-1))
            writer.write_table(
                pyarrow.table(
                    [
                        pyarrow.array([to_cell(rows.name(index)) for index in rows.index[at:end].tolist()]),
                        pyarrow.array(rows.sides[at:end, 1]),
                        pyarrow.array(rows.sides[at:end, 0]),
                        pyarrow.FixedSizeListArray.from_arrays(flat, numbers),
                    ],
                    schema=schema,
                )
            )
            at = end


def read(path: Path) -> Stored | None:
    pyarrow, parquet = _pyarrow()
    try:
        with parquet.ParquetFile(path) as file:
            said = {key.decode(): value.decode() for key, value in (file.schema_arrow.metadata or {}).items()}
            plan = Plan.from_metadata(said)
            if plan is None:
                return None
            names = Strings.pack(
                os.fsencode(from_cell(name.as_py()))
                for batch in file.iter_batches(columns=["path"])
                for name in batch.column(0)
            )
    except (OSError, pyarrow.ArrowException, ValueError):
        return None

    def vectors() -> Iterator[Tensor]:
        with parquet.ParquetFile(path) as file:
            for group in range(file.num_row_groups):
                for batch in file.read_row_group(group, columns=[COLUMNS[plan.content]]).to_batches():
                    flat = batch.column(0).flatten().to_numpy(zero_copy_only=False)
                    yield torch.from_numpy(flat.copy()).reshape(-1, *plan.shape)

    return Stored(plan, names, vectors)


def _pyarrow() -> tuple[Any, Any]:
    """pyarrow and its part for Parquet. An extra, so imported only when they are needed."""
    return importlib.import_module("pyarrow"), importlib.import_module("pyarrow.parquet")
