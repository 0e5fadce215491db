"""`densecl embed`: images through a backbone, into a file of vectors."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from rich.console import Console
from torch import Tensor
from torch.utils.data import Dataset

from densecl.allocator import keep_freed_memory
from densecl.config.automatic import workers as usual_workers
from densecl.cores import available_cores
from densecl.embedding.checks import check_numbers, check_out, device_of_name, sides_of
from densecl.embedding.duplicates import THRESHOLD, find_duplicates, tell_duplicates, write_kept
from densecl.embedding.formats import format_of
from densecl.embedding.plan import Plan, digest_of
from densecl.embedding.work import Reading, make_file, parts_folder
from densecl.errors import UserError
from densecl.evaluation.weights import open_weights
from densecl.images.decode import MAX_PIXELS
from densecl.images.loader import READ_TIMEOUT
from densecl.images.sources import DatasetSource, open_source
from densecl.names import counted, shown
from densecl.progress import Screen

#: Side of the square that images are resized to. What most networks were made for.
IMAGE_SIZE = 224

#: Images at a time, where there is no GPU and where there is one.
BATCH_SIZE, GPU_BATCH_SIZE = 32, 128


class Embedded(NamedTuple):
    """What `embed` has written."""

    out: Path
    images: int  # rows of the file
    skipped: int  # images that could not be used
    groups: int | None  # of near-duplicates; None: not looked for
    kept: int | None  # images in the list of `duplicates`


def embed(
    weights: str | Path,
    data: str | Path | Dataset[Any] | Sequence[Any] | np.ndarray | Tensor,
    out: str | Path,
    *,
    dense: bool = False,
    dtype: str = "float32",
    image_size: int | tuple[int, int] = IMAGE_SIZE,
    output_stride: int | None = None,
    tile: int | None = None,
    backbone: str | None = None,
    batch_size: int | None = None,
    device: str = "auto",
    workers: int | None = None,
    max_image_pixels: int = MAX_PIXELS,
    read_timeout: float = READ_TIMEOUT,
    resume: bool = False,
    duplicates: str | Path | None = None,
    threshold: float = THRESHOLD,
) -> Embedded:
    """Write a vector for each image, or with `dense` for each cell of its feature map.

    The rows are in the order of the images. An image that cannot be used has no row; it is listed, with the reason, in
    a file beside `out` that ends with ``.skipped.csv``. Meanwhile, what is done lies in a folder beside `out`.

    Args:
        weights: a run folder, a file of weights, "random", "imagenet", or a name of timm's such as "resnet50.a1_in1k".
        data: as for `pretrain`.
        out: the file. Its name ends with .safetensors, .npy or .parquet.
        dense: cell vectors "rows cols dim" instead of their mean.
        dtype: of the numbers, "float32" or "float16".
        image_size: images are resized to (width, height), or a square.
        output_stride: pixels per cell, where the backbone can have another stride than its own.
        tile: cut images into squares with this side, each an image of its own.
        backbone: timm's name, for weights that do not say it.
        batch_size: images at a time. None: 32, on a GPU 128.
        device: "auto" (a GPU if there is one), "cpu", "cuda", "cuda:1".
        workers: data-loading workers. None: by the cores.
        max_image_pixels: larger images are skipped.
        read_timeout: seconds after which the reading of an image counts as stuck.
        resume: go on with what an earlier call has left; without any, begin.
        duplicates: a file for a list of the images without near-duplicates, which `pretrain` takes as data.
        threshold: the cosine from which images count as near-duplicates.

    Raises:
        UserError: whatever the caller can put right.
        KeyboardInterrupt: on Ctrl-C, after a part was saved.
        SystemExit: on SIGTERM and other signals that ask to stop, after a part was saved.
    """
    out = Path(out).expanduser()
    format = format_of(out)
    listed = None if duplicates is None else Path(duplicates).expanduser()
    size = sides_of(image_size)
    check_numbers(dtype, batch_size, workers, read_timeout, threshold)
    if listed is not None and (dense or tile is not None):
        raise UserError("--duplicates compares whole images. Leave out --dense and --tile.")
    target = device_of_name(device)
    check_out(out, format, listed, resume=resume)
    if target.type == "cpu":
        keep_freed_memory()
    console = Console(file=Screen(), highlight=False, soft_wrap=True, markup=False, emoji=False)  # pyright: ignore[reportArgumentType]
    (opened,) = open_weights([weights], backbone)
    for warning in opened.warnings:
        console.print(f"{shown(opened.name)}: {warning}")
    network = opened.backbone(output_stride, usual=None).to(target)
    rows, cols = network.grid_at(size[1], size[0])
    source = open_source(
        data, channels=opened.in_channels, tile=tile, least_side=max(size), max_pixels=max_image_pixels
    )
    source.check()
    if listed is not None and isinstance(source, DatasetSource):
        raise UserError("--duplicates writes a list of files; it cannot be used with a data set in Python.")
    for note in source.notes():
        console.print(note)
    plan = Plan(
        content="cells" if dense else "images",
        dtype=dtype,
        dim=network.channels,
        grid=(rows, cols),
        image_size=size,
        stride=network.stride,
        backbone=opened.architecture,
        weights=str(weights),
        mean=opened.normalization.mean,
        std=opened.normalization.std,
        digest=digest_of(network.model.state_dict()),
        data=str(data) if isinstance(data, str | Path) else type(data).__name__,
        tile=tile,
        images=len(source),
        fingerprint=source.fingerprint(),
    )
    what = f"{rows}x{cols} vectors" if dense else "a vector"
    console.print(
        f"{counted(len(source), 'image')}, {what} of {plan.dim} numbers each:"
        f" {opened.architecture} at {size[0]}x{size[1]} px"
    )
    if resume and out.exists():
        stored = format.read(out)
        difference = "something else" if stored is None else plan.difference(stored.plan)
        if stored is None or difference is not None:
            raise UserError(f"--out {shown(out)} exists already and holds {difference}. Choose another name.")
        count = len(stored.names.ends)
        console.print(f"{shown(out)} is complete.")
        shutil.rmtree(parts_folder(out), ignore_errors=True)  # killed when all was done but this
    else:
        on_gpu = target.type != "cpu"
        reading = Reading(
            batch_size=batch_size or (GPU_BATCH_SIZE if on_gpu else BATCH_SIZE),
            workers=usual_workers(available_cores(), 1, on_gpu=on_gpu) if workers is None else workers,
            timeout=read_timeout,
        )
        count = make_file(out, format, network, source, plan, target, reading, console, resume=resume)
    found = None
    if listed is not None:
        stored = format.read(out)
        if stored is None:
            raise UserError(f"{shown(out)} cannot be read back. Remove it and begin anew.")
        found = find_duplicates(stored, threshold, target, out.absolute().parent)
        left_out = write_kept(listed, stored, found)
        tell_duplicates(stored, found, left_out, threshold, listed, console)
    return Embedded(
        out,
        count,
        len(source) - count,
        None if found is None else found.groups,
        None if found is None else found.kept,
    )
