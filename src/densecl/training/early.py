"""Mistakes that can be told before torch is loaded, which takes seconds: paths, and the name of the backbone.

All of it is checked once more where it is used. Here it is only told sooner.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from densecl.architectures import check_backbone
from densecl.choices import STARTING_WEIGHTS
from densecl.config.settings import Settings
from densecl.config.teacher import teaches_itself
from densecl.errors import UserError, flag, nearest
from densecl.evaluation.split_places import check_splits
from densecl.images.early import check_data
from densecl.names import shown
from densecl.training.vacant import check_folder, check_free, check_makeable

#: How files of weights end.
WEIGHTS = (".safetensors", ".pth", ".pth.tar", ".pt", ".ckpt", ".bin")


def check_early(settings: Settings[Any], out: Path | None = None, *, resume: bool = False) -> None:
    """
    Args:
        settings: of the run. Images and backbone that were given in Python are not looked at.
        out: its folder, if it has one.
        resume: whether it goes on from there.

    Raises:
        UserError: for the first mistake.
    """
    if not settings.backbone.startswith("module:"):
        check_backbone(settings.backbone)
    if not settings.sources[0].startswith("dataset:"):
        for each in settings.sources:
            check_data(each)
    goes_on = resume and out is not None and (out / "checkpoints" / "last.ckpt").is_file()
    # The weights of a run that goes on are in its checkpoint.
    needs_init = not goes_on or settings.anchor or teaches_itself(settings)
    for name in ("init", "teacher") if needs_init else ("teacher",):
        source = getattr(settings, name)
        if source is not None and is_path(source) and not Path(source).expanduser().exists():
            raise UserError(f"{flag(name)} {shown(source)}: no such run or file of weights.")
    if teaches_itself(settings) and settings.backbone.startswith("module:"):
        raise UserError("--teacher init needs a backbone of timm's.")
    named = None if teaches_itself(settings) else settings.teacher
    if named is not None and re.fullmatch(r"[\w.]+", named, re.ASCII):
        _check_teacher(named)
    if settings.probe is not None:
        with told_as_probe(settings.probe):
            check_splits(Path(settings.probe).expanduser())
    for name in settings.loggers:
        if name in ("wandb", "mlflow") and name not in sys.modules and importlib.util.find_spec(name) is None:
            raise UserError(f"--loggers {name} needs a package that is not here: pip install {name}.")
    if settings.teacher_cache is not None:
        check_makeable(Path(settings.teacher_cache).expanduser(), flag("teacher_cache"))
    if out is None:
        return
    check_folder(out)
    if not resume:
        check_free(out)
    check_makeable(out)


def _check_teacher(source: str) -> None:
    """
    Raises:
        UserError: there is no such file, and timm has no such model.
    """
    if Path(source).expanduser().exists():
        return
    try:
        check_backbone(source)
    except UserError as error:
        hint = nearest(source, [STARTING_WEIGHTS]) or error.args[0].partition("no such model.")[2]
        raise UserError(
            f"--teacher {shown(source)}: no such run or file of weights, and no model of timm's.{hint}"
        ) from error


def check_weights(source: str) -> None:
    """
    Raises:
        UserError: there is no such file or folder, and it can be no name of a model either.
    """
    if source in ("random", "imagenet") or Path(source).expanduser().exists():
        return
    if not is_path(source):
        try:
            return check_backbone(source.partition(":")[0])
        except UserError:
            pass
    raise UserError(f"{shown(source)}: no such run folder or file of weights.{nearest(source, ['random', 'imagenet'])}")


def is_path(source: str) -> bool:
    """Whether it can be no name of a model."""
    return os.sep in source or source.endswith(WEIGHTS)


@contextlib.contextmanager
def told_as_probe(probe: str) -> Iterator[None]:
    """Mistakes are told with the flags of this command, not with those of `evaluate`.

    Raises:
        UserError: as it was raised in this block, but so worded.
    """
    try:
        yield
    except UserError as error:
        text = error.args[0].replace(" Name one with --test-split.", "")
        for name in ("ignore", "classes"):
            text = text.replace(f"--{name} ", f"--probe-{name} ")
        told = text if shown(probe) in text else f"{shown(probe)}: {text}"
        raise UserError(f"--probe {told}") from error
