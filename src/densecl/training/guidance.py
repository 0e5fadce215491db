"""The frozen networks of a run: opened, measured, and put beside the model."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterable
from typing import Any, NamedTuple

from densecl.borrowed import seeded
from densecl.config import automatic, facts
from densecl.config.recipe import Resolved
from densecl.config.rules import cells_to_follow, has_enough_cells
from densecl.config.settings import Settings
from densecl.config.teacher import STARTING_WEIGHTS, sees_twice
from densecl.errors import UserError
from densecl.model import Backbone, Follower, Guidance
from densecl.model.distillation import ANCHOR_FORMS, TEACHER_OBJECTIVES
from densecl.model.frozen import Frozen
from densecl.model.weights import Teacher, initialize_from, load_teacher
from densecl.normalization import Normalization


class Guides(NamedTuple):
    """What a run follows."""

    teacher: Teacher | None = None
    start: Backbone | None = None  # the network as the run began, for the anchor


def open_guides(asked: Settings[Any], backbone: Backbone, *, resumed: bool) -> Guides:
    """Opens the teacher, and copies the backbone for the anchor.

    Args:
        asked: the settings.
        backbone: with its starting weights, unless the run is resumed.
        resumed: the starting weights have to be read again.

    Raises:
        UserError: if there is no such teacher, or the starting weights of a resumed run are gone.
    """
    teacher = start = None
    if asked.teacher == STARTING_WEIGHTS and asked.init is not None:
        imagenet = asked.init == "imagenet"
        teacher = load_teacher(asked.backbone) if imagenet else load_teacher(asked.init, asked.backbone)
    elif asked.teacher is not None:
        teacher = load_teacher(asked.teacher, asked.teacher_backbone)
    if asked.anchor and asked.init is not None:
        start = copy.deepcopy(backbone)
        if resumed:
            try:
                initialize_from(start, asked.init)
            except UserError as error:
                raise UserError(f"--anchor needs the weights that the run started from. {error.args[0]}") from error
    return Guides(teacher, start)


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
    if sees_twice(asked) and (twice := _taken(network, [2 * view])):
        return twice
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
            normalization=guides.teacher.normalization,
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
        lines.append(
            f"follows {network.name}{on} at {size} px: {rows}x{cols} cells, objective {resolved.teacher_objective},"
            f" weight {resolved.teacher_weight:g}; license of its weights: {resolved.teacher_license}"
        )
    if guides.start is not None:
        lines.append(f"anchored to the starting weights: {resolved.anchor_form}, weight {resolved.anchor:g}")
    return lines
