"""The folder of a run: whether it is free, what a run in it began with, and that only one run writes to it."""

from __future__ import annotations

import contextlib
import dataclasses
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from filelock import Timeout

from densecl.config.checks import LAUNCHED
from densecl.config.files import read_recipe
from densecl.config.recipe import Resolved
from densecl.config.rules import resting
from densecl.config.setting import meaning_of
from densecl.config.settings import Settings, setting_fields
from densecl.errors import UserError, flag
from densecl.files import free_bytes, lock
from densecl.model import DenseCL, Distillation
from densecl.training.checkpoints import writing
from densecl.training.vacant import check_free

#: Seconds to wait for the folder's lock; workers of a killed run may still hold it.
LEAVING = 10.0


def agree_with_past(recipe: Settings[Any], out: Path, resume: bool) -> Settings[Any]:
    """The recipe. If the run in `out` is resumed, what is "auto" comes from there.

    Raises:
        UserError: if `out` is taken, or the run in it has other settings.
    """
    if not resume:
        check_free(out)
        return recipe
    if not (out / "recipe.yaml").is_file():
        return recipe
    past = read_recipe(out / "recipe.yaml")
    inherited = {name: getattr(past, name) for name in resting() if getattr(recipe, name) == "auto"}
    same = {name for name in past.settled if inherited.get(name, getattr(recipe, name)) == getattr(past, name)}
    same |= set(LAUNCHED).intersection(recipe.settled)
    recipe = dataclasses.replace(recipe, **inherited, settled=tuple(sorted(same)))
    differences = [
        f"{flag(name)} {_shown(getattr(past, name))} -> {_shown(getattr(recipe, name))}"
        for name, field in setting_fields().items()
        if not meaning_of(field).free and getattr(past, name) != getattr(recipe, name)
    ]
    if differences:
        begun = (out / "checkpoints" / "last.ckpt").is_file()
        other = f"start a new run with --init {out}" if begun else "begin it anew without --resume"
        raise UserError(f"The run in {out} has other settings: {'; '.join(differences)}. Give its own, or {other}.")
    return recipe


def _shown(value: object) -> str:
    return " ".join(map(str, value)) if isinstance(value, tuple) else str(value)


@contextlib.contextmanager
def claimed(out: Path) -> Iterator[bool]:
    """Makes the run's folder, and keeps other runs from writing there at the same time.

    Gives:
        Whether it does; some file systems have no locks.

    Raises:
        UserError: if another run already writes there, or the folder cannot be made.
    """
    with contextlib.ExitStack() as held:
        with writing(out):
            out.mkdir(parents=True, exist_ok=True)
            try:
                locked = held.enter_context(lock(out / ".lock", timeout=LEAVING))
            except Timeout as error:
                raise UserError(
                    f"--out {out}: another process is at work on this run. Wait for it, or stop it."
                ) from error
        yield locked


def clear(out: Path) -> None:
    """Removes what a run that never reached a checkpoint has left."""
    if (out / "recipe.yaml").is_file():
        for path in out.iterdir():
            if path.name != ".lock":
                shutil.rmtree(path) if path.is_dir() else path.unlink()


def check_space(model: DenseCL | Distillation, recipe: Resolved, out: Path) -> None:
    """Nobody should learn after an hour of training that the disk has no room for a checkpoint.

    Raises:
        UserError: if it has none.
    """
    state = sum(tensor.nbytes for tensor in model.state_dict().values() if isinstance(tensor, torch.Tensor))
    trained = sum(parameter.nbytes for parameter in model.parameters() if parameter.requires_grad)
    backbone = sum(tensor.nbytes for tensor in model.backbone.state_dict().values())
    moments = 2 if recipe.optimizer == "adamw" else 1
    # Each is written beside the one before.
    needed = 2 * (state + moments * trained + backbone * (2 if recipe.keep_best else 1))
    standing = sum(file.stat().st_size for file in out.glob("checkpoints/last.ckpt"))
    free = free_bytes(out)
    if free is not None and free < needed - standing:
        raise UserError(
            f"--out {out}: {free / 2**20:.0f} MiB are free on this disk, but a run of this model needs"
            f" {needed / 2**20:.0f} MiB for its checkpoints. Free some, or choose another disk."
        )
