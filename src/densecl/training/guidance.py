"""The frozen networks of a run: opened, measured, and put beside the model."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterable
from typing import Any, NamedTuple

import torch

from densecl.borrowed import seeded
from densecl.config import automatic, facts
from densecl.config.recipe import Resolved
from densecl.config.rules import cells_to_follow, has_enough_cells
from densecl.config.settings import Settings
from densecl.config.teacher import teaches_itself
from densecl.errors import UserError
from densecl.model import Backbone, Follower, Guidance, create_backbone
from densecl.model.distillation import ANCHOR_FORMS, TEACHER_OBJECTIVES
from densecl.model.frozen import Frozen
from densecl.model.weights import Start, Teacher, initialize_from, load_teacher
from densecl.names import counted
from densecl.normalization import Normalization


class Guides(NamedTuple):
    """What a run follows."""

    teacher: Teacher | None = None
    start: Backbone | None = None  # the network as the run began, for the anchor


def open_guides(asked: Settings[Any], backbone: Backbone, start: Start | None) -> Guides:
    """Opens the teacher, and copies the backbone for the anchor.

    Args:
        asked: the settings.
        backbone: of the run.
        start: its starting weights, if it holds them. A run that is resumed has to read them again.

    Raises:
        UserError: if there is no such teacher, the starting weights cannot teach, or those of a resumed run are gone.
    """
    teacher = anchor = None
    if teaches_itself(asked):
        teacher = _itself(asked, backbone, start)
    elif asked.teacher is not None:
        teacher = load_teacher(asked.teacher, asked.teacher_backbone)
    if asked.anchor and asked.init is not None:
        anchor = copy.deepcopy(backbone)
        if start is None:
            _read_again(anchor, asked.init, "--anchor")
    return Guides(teacher, anchor)


def _itself(asked: Settings[Any], backbone: Backbone, start: Start | None) -> Teacher:
    """The starting weights as a teacher, at the network's own stride: it sees twice as many pixels."""
    with torch.random.fork_rng(devices=[]):
        network = create_backbone(asked.backbone, channels=asked.channels)
    if start is None:
        start = _read_again(network, str(asked.init), "--teacher init")
    else:
        network.model.load_state_dict(backbone.model.state_dict())
    if start.missing:
        raise UserError(
            f"--teacher init needs whole weights, and {asked.init} lacks {counted(len(start.missing), 'tensor')}, such"
            f" as {start.missing[0]}."
        )
    return Teacher(network, None, start.license.name, start.license.whose, ())


def _read_again(network: Backbone, init: str, whose: str) -> Start:
    try:
        return initialize_from(network, init)
    except UserError as error:
        raise UserError(f"{whose} needs the weights that the run started from. {error.args[0]}") from error


def facts_of(teacher: Teacher | None, asked: Settings[Any], student: facts.Network) -> facts.Teacher | None:
    """
    Raises:
        UserError: if the teacher does not take images of the size that is asked, or of none that would do.
    """
    if teacher is None:
        return None
    network = teacher.network
    return facts.Teacher(
        name=network.name,
        channels=network.in_channels,
        grids=_grids(network, asked, student),
        license=teacher.license,
        whose_license=teacher.whose_license,
    )


def _grids(network: Backbone, asked: Settings[Any], student: facts.Network) -> dict[int, tuple[int, int]]:
    """The teacher's grid at the size that was asked for, or at those among which a rule chooses."""
    view, cells = asked.image_size, cells_to_follow(asked, student.followed_grid)
    if asked.teacher_size != "auto":
        return _grid_at(network, asked.teacher_size or view)
    if teaches_itself(asked):
        twice = (2 * view, automatic.teacher_size(2 * view, network.stride, cells))
        if grids := _taken(network, twice):
            return grids
    grids = _taken(network, [view])
    if any(has_enough_cells(grid, cells) for grid in grids.values()):
        return grids
    grids |= _taken(network, [automatic.teacher_size(view, network.stride, cells)])
    larger = (size for size in network.usual_sizes() if size > view)
    while not grids and (size := next(larger, None)) is not None:  # a network for one size alone
        grids = _taken(network, [size])
    return grids or _grid_at(network, view)


def _grid_at(network: Backbone, size: int) -> dict[int, tuple[int, int]]:
    """The same for one size.

    Raises:
        UserError: the teacher does not take it; with one that it takes, if there is any.
    """
    try:
        return {size: network.grid_at(size)}
    except UserError as error:
        fitting = max(1, round(size / network.stride)) * network.stride
        advice = f" Give --teacher-size {fitting}." if _taken(network, [fitting]) else ""
        raise UserError(f"The teacher {error.args[0]}{advice}") from error


def _taken(network: Backbone, sizes: Iterable[int]) -> dict[int, tuple[int, int]]:
    """The grids at those of the sizes that the network takes."""
    grids = {}
    for size in sizes:
        with contextlib.suppress(UserError):
            grids[size] = network.grid_at(size)
    return grids


def make_guidance(resolved: Resolved, backbone: Backbone, guides: Guides) -> Guidance | None:
    """The frozen networks beside a backbone; None if there are none.

    What is drawn for the head leaves torch's random numbers as they were. So the rest of the model starts as it would
    without a teacher.
    """
    views = Normalization(resolved.mean, resolved.std)
    teacher = anchor = None
    if guides.teacher is not None:
        frozen = Frozen(
            guides.teacher.network,
            normalization=guides.teacher.normalization or views,
            views=views,
            channels=resolved.teacher_channels,
            size=resolved.teacher_size,
        )
        with seeded(resolved.seed):
            teacher = Follower(
                frozen,
                backbone.channels,
                TEACHER_OBJECTIVES[resolved.teacher_objective],
                head=True,
                name=f"--teacher {resolved.teacher}",
                standardize=resolved.teacher_standardize,
            )
    if guides.start is not None:
        frozen = Frozen(guides.start, normalization=views, views=views)
        form = ANCHOR_FORMS[resolved.anchor_form]
        anchor = Follower(frozen, backbone.channels, form, head=False, name=f"--init {resolved.init}")
    if teacher is None and anchor is None:
        return None
    return Guidance(
        teacher=teacher, teacher_weight=resolved.teacher_weight, anchor=anchor, anchor_weight=resolved.anchor
    )


def described(resolved: Resolved, guides: Guides) -> list[str]:
    """Lines for the user: which networks the run follows, and how."""
    lines = []
    if guides.teacher is not None:
        network = guides.teacher.network
        size = resolved.teacher_size or resolved.image_size
        rows, cols = network.grid_at(size)
        on = "" if resolved.teacher_cache is None else " on whole images"
        whom = "its own starting weights" if teaches_itself(resolved) else network.name
        lines.append(
            f"follows {whom}{on} at {size} px: {rows}x{cols} cells, objective {resolved.teacher_objective},"
            f" weight {resolved.teacher_weight:g}; license of its weights: {resolved.teacher_license}"
        )
    if guides.start is not None:
        lines.append(f"anchored to the starting weights: {resolved.anchor_form}, weight {resolved.anchor:g}")
    return lines
