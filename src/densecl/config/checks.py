"""What settings must fulfil: each its range, and together that they do not contradict each other."""

from __future__ import annotations

import dataclasses
from typing import Any

from densecl.config.optimization import LENGTHS
from densecl.config.rules import resting
from densecl.config.setting import check_range
from densecl.config.settings import Settings
from densecl.config.teacher import distills_alone, teaches_itself
from densecl.errors import UserError, flag
from densecl.names import counted, listing

#: What a run takes from whoever launched it (torchrun, srun, mpirun).
LAUNCHED = ("devices", "nodes")


def check(settings: Settings[Any]) -> None:
    """
    Raises:
        UserError: for the first value out of its range, or the first settings that contradict each other.
    """
    for field in dataclasses.fields(settings):
        check_range(field, getattr(settings, field.name))
    if not set(settings.settled) <= {*resting(), *LAUNCHED}:
        raise UserError("--settled names only settings that a run may choose.")
    _check_data(settings)
    _check_local_crops(settings)
    _check_teacher(settings)
    _check_probe(settings)
    if settings.recipe == "paper" and settings.method not in ("auto", "moco"):
        raise UserError(f"--recipe paper is that of moco, not of {settings.method}. Leave it out.")
    lowest = settings.temperature
    if settings.temperature_max is not None and isinstance(lowest, float) and settings.temperature_max < lowest:
        raise UserError(f"--temperature-max must be at least --temperature {lowest}, not {settings.temperature_max}.")
    lengths = [name for name in LENGTHS if getattr(settings, name) is not None]
    if len(lengths) > 1:
        raise UserError(f"Give only one of {listing(map(flag, lengths), 'and')}: each says how long the run is.")
    if settings.batch_size != "auto":
        _check_shares(settings, settings.batch_size)


def _check_data(settings: Settings[Any]) -> None:
    if not all(settings.sources) or not settings.sources:
        raise UserError("--data is empty: give a folder of images, a text file of paths, or a quoted glob.")
    if (settings.mean == "auto") != (settings.std == "auto"):
        raise UserError("Give --mean and --std together, or neither.")
    if settings.use_size is not None and settings.use_size < settings.image_size:
        raise UserError(
            f"--use-size {settings.use_size}: a view of --image-size {settings.image_size} shows more than a whole"
            f" image of that size. Give --image-size {settings.use_size} or less."
        )
    for name in ("mean", "std"):
        values = getattr(settings, name)
        if values != "auto" and len(values) != settings.channels:
            raise UserError(f"{flag(name)} takes one number a channel: {settings.channels}, not {len(values)}.")


def _check_local_crops(settings: Settings[Any]) -> None:
    size = settings.local_crop_size
    if settings.local_crops and size is None:
        raise UserError("--local-crop-size none: --local-crops need a size. Leave it out for auto.")
    if isinstance(size, int) and not settings.local_crops and "local_crop_size" not in settings.settled:
        raise UserError(f"--local-crop-size {size} does nothing without --local-crops. Give how many.")


def _check_teacher(settings: Settings[Any]) -> None:
    channels = settings.teacher_channels
    if channels is not None and max(channels) >= settings.channels:
        raise UserError(
            f"--teacher-channels: the images have {counted(settings.channels, 'channel')}, counted from 0, so"
            f" there is no {max(channels)}."
        )
    if distills_alone(settings) and settings.local_crops:
        raise UserError(
            "--local-crops belong to the self-supervised loss, and with --teacher-weight 1 there is none."
            " Leave them out, or give --teacher-weight 0.5."
        )
    if teaches_itself(settings) and settings.init is None:
        raise UserError("--teacher init follows the weights of --init. Give that, too.")
    if teaches_itself(settings) and settings.teacher_backbone is not None:
        raise UserError("--teacher-backbone: --teacher init is of the network that is trained. Leave it out.")
    if teaches_itself(settings) and settings.teacher_cache is not None:
        raise UserError(
            "--teacher-cache keeps maps of whole images, and --teacher init is to see each view at twice its size. Give"
            " one of the two."
        )
    if settings.anchor and settings.init is None:
        raise UserError(f"--anchor {settings.anchor:g} keeps the features near those of --init. Give that, too.")


def _check_probe(settings: Settings[Any]) -> None:
    for name in ("probe_ignore", "probe_classes"):
        if settings.probe is None and getattr(settings, name) is not None:
            raise UserError(f"{flag(name)} says something of the labels of --probe. Give that, too.")


def _check_shares(settings: Settings[Any], batch_size: int) -> None:
    """Raises UserError if the batch cannot be shared out to the devices and parts."""
    processes = settings.processes
    if batch_size % processes:
        raise UserError(f"--batch-size {batch_size} cannot be shared evenly by {counted(processes, 'device')}.")
    images = batch_size // processes
    if images % settings.accumulate:
        raise UserError(
            f"--accumulate {settings.accumulate}: {counted(images, 'image')} a device cannot be divided into"
            " equal parts."
        )
    images //= settings.accumulate
    if settings.key_norm == "split" and "key_norm" not in settings.settled and images <= settings.key_split:
        raise UserError(
            f"--key-norm split has nothing to split: {counted(images, 'image')} at a time are at most --key-split"
            f" {settings.key_split}. Take a smaller one, such as {max(2, images // 2)}, or a larger --batch-size."
        )
