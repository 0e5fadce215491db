"""The verbs of the command line as Python functions: same names, same settings, same defaults."""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from densecl.architectures import understood
from densecl.config.compose import make_recipe
from densecl.config.teacher import teaches_itself
from densecl.errors import UserError
from densecl.names import few, shown
from densecl.training.early import check_early
from densecl.training.world import find_world

if TYPE_CHECKING:
    from torch import nn
    from torch.utils.data import Dataset

    from densecl.checking.check import Checked
    from densecl.config.recipe import Recipe
    from densecl.training.fit import RunResult


def pretrain(
    data: str | Path | Sequence[str | Path] | Dataset[Any] | None,
    out: str | Path,
    *,
    resume: bool = False,
    config: str | Path | None = None,
    backbone: str | nn.Module | None = None,
    **settings: Any,
) -> RunResult:
    """Pre-train a backbone on unlabeled images and leave the result in the folder `out`.

    On a CPU the process keeps the memory of freed tensors from then on, which saves a fifth of the time.

    Args:
        data: A folder, a text file of paths, a glob, several of these, or a map-style dataset whose items are images
            (or tuples that begin with one). None: what `config` names, or with `resume` the run's own.
        out: The folder of the run; made here, and refused when it already holds a run and `resume` is not set.
        resume: Go on from the last checkpoint in `out`. Settings that are not given are those of the run.
        config: A YAML file with some or all settings, for instance another run's ``recipe.yaml``.
        backbone: The name of a timm model, or any module that returns a feature map
            "batch channels rows cols" for "batch channels height width".
        settings: Any field of `densecl.Recipe`, such as ``image_size=128``. They beat `config`.

    Returns:
        Where the result lies and how the run ended.

    Raises:
        UserError: whatever the caller can put right, in one or two lines.
    """
    out = Path(out).expanduser()
    recorded = out / "recipe.yaml"
    layers = [recorded] if resume and recorded.is_file() else []
    if resume and data is None and config is None and not layers:
        raise UserError(f"--resume: there is no run in {out} yet. Give --data to begin one.")
    if config is not None:
        layers.append(Path(config))

    if resume and recorded.is_file() and config is None and find_world() is not None:
        settings = {"devices": "auto", "nodes": "auto"} | settings  # it may have other processes than before
    recipe, dataset, module = _asked(data, backbone, layers, settings)
    if find_world() is None:  # else the processes tell it once, together
        check_early(recipe, out, resume=resume)
        _say_reading(recipe, dataset)
    recipe = _located(recipe, dataset, module)

    from densecl.training import run

    result = run.pretrain(recipe, out, resume=resume, dataset=dataset, backbone=module)
    _leave_report(recipe, out)
    return result


def _leave_report(recipe: Recipe, out: Path) -> None:
    """``report.html`` in the run's folder, by the first process. `densecl report` says why if there is none."""
    with contextlib.suppress(Exception):  # a page is not worth a run
        from densecl.reporting.report import write_page
        from densecl.training.environment import settle_devices
        from densecl.training.world import node_rank

        world = find_world()
        if (node_rank(settle_devices(recipe).nodes) if world is None else world.rank) == 0:
            write_page([out.absolute()], out / "report.html")


def check(
    data: str | Path | Sequence[str | Path] | Dataset[Any] | None = None,
    *,
    config: str | Path | None = None,
    backbone: str | nn.Module | None = None,
    usable: str | Path | None = None,
    **settings: Any,
) -> Checked:
    """Read every image once, and say what a run would do and what should be put right before it.

    Args:
        data: As for `pretrain`.
        config: A YAML file with some or all settings.
        backbone: As for `pretrain`.
        usable: A file for a list of the images that are of use: they can be read, are no copies, have more than one
            color and are not tiny. `pretrain` takes it as data.
        settings: Any setting of `pretrain`.

    Returns:
        What was found. Its `problems` has a line for each thing to put right.

    Raises:
        UserError: a wrong setting, no images at all, or a list that cannot be written.
    """
    layers = [] if config is None else [Path(config)]
    recipe, dataset, module = _asked(data, backbone, layers, settings)
    check_early(recipe)
    _say_reading(recipe, dataset)
    recipe = _located(recipe, dataset, module)

    from densecl.checking import check as checking

    return checking.check(recipe, None if usable is None else Path(usable).expanduser(), dataset, module)


def _asked(
    data: Any, backbone: str | nn.Module | None, layers: Sequence[Path], settings: dict[str, Any]
) -> tuple[Recipe, Dataset[Any] | None, nn.Module | None]:
    """The recipe of files and settings, and what Python gives instead of a path and a name."""
    paths = _paths(data)
    dataset = None if paths else data
    module = None if backbone is None or isinstance(backbone, str) else backbone
    if data is not None:
        settings["data"] = tuple(map(_absolute, paths)) if paths else f"dataset:{type(dataset).__name__}"
    if backbone is not None:
        settings["backbone"] = backbone if module is None else f"module:{type(module).__name__}"
    recipe = make_recipe(layers, **settings)
    if dataset is None and recipe.sources[0].startswith("dataset:"):
        raise UserError(f"This recipe was made in Python with a dataset ({recipe.data}): give it again as data=....")
    if module is None and recipe.backbone.startswith("module:"):
        raise UserError(f"This recipe was made in Python with a module ({recipe.backbone}): give it as backbone=....")
    return dataclasses.replace(recipe, backbone=understood(recipe.backbone)), dataset, module


def _say_reading(recipe: Recipe, dataset: Dataset[Any] | None) -> None:
    """Now, because torch takes seconds to load."""
    from densecl.progress import Screen

    screen = Screen()
    screen.write(f"Reading {few([shown(each) for each in recipe.sources]) if dataset is None else 'the images'} ...\n")
    screen.flush()


def _located(recipe: Recipe, dataset: Dataset[Any] | None, module: nn.Module | None) -> Recipe:
    """The recipe with paths that are the same from everywhere. Loads torch, to look at the module."""
    from torch import nn

    if module is not None and not isinstance(module, nn.Module):
        raise UserError(f"backbone takes a name or a module, not {module!r}. (A class? Then an instance of it.)")
    if dataset is None:
        there = tuple(map(_absolute, recipe.sources))
        recipe = dataclasses.replace(recipe, data=there if len(there) != 1 else there[0])
    if recipe.init is not None:
        recipe = dataclasses.replace(recipe, init=_absolute(recipe.init))
    if recipe.probe is not None:
        recipe = dataclasses.replace(recipe, probe=_absolute(recipe.probe))
    teacher = None if teaches_itself(recipe) else recipe.teacher
    if teacher is not None and os.path.exists(os.path.expanduser(teacher)):  # else a name of timm's
        recipe = dataclasses.replace(recipe, teacher=_absolute(teacher))
    return recipe


def _paths(data: Any) -> tuple[str, ...]:
    """The paths that `data` names; none if it is a data set."""
    several = data if isinstance(data, (list, tuple)) else (data,)
    return tuple(map(str, several)) if all(isinstance(each, (str, Path)) for each in several) else ()


def _absolute(path: str) -> str:
    """The path as seen from anywhere, so that a run need not be resumed from the same folder."""
    return path if path in ("", "imagenet") or "://" in path else os.path.abspath(os.path.expanduser(path))
