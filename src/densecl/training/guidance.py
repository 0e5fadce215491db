"""The frozen networks of a run: opened, measured, and put beside the model."""

from __future__ import annotations

import copy
from typing import Any, NamedTuple

from densecl.borrowed import seeded
from densecl.config import facts
from densecl.config.recipe import Resolved
from densecl.config.settings import Settings
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
    teacher = None if asked.teacher is None else load_teacher(asked.teacher, asked.teacher_backbone)
    start = None
    if asked.anchor and asked.init is not None:
        start = copy.deepcopy(backbone)
        if resumed:
            try:
                initialize_from(start, asked.init)
            except UserError as error:
                raise UserError(f"--anchor needs the weights that the run started from. {error.args[0]}") from error
    return Guides(teacher, start)


def facts_of(teacher: Teacher | None, asked: Settings[Any]) -> facts.Teacher | None:
    """
    Raises:
        UserError: if the teacher does not take images of that size.
    """
    if teacher is None:
        return None
    network, size = teacher.network, asked.teacher_size or asked.image_size
    try:
        grid = network.grid_at(size)
    except UserError as error:
        fitting = _fitting_size(network, size)
        advice = "" if fitting is None else f" Give --teacher-size {fitting}."
        raise UserError(f"The teacher {error.args[0]}{advice}") from error
    return facts.Teacher(
        name=network.name,
        channels=network.in_channels,
        grid=grid,
        license=teacher.license,
        whose_license=teacher.whose_license,
    )


def _fitting_size(network: Backbone, wanted: int) -> int | None:
    """The nearest size in whole cells of the network, if it takes that."""
    size = max(1, round(wanted / network.stride)) * network.stride
    try:
        network.grid_at(size)
    except UserError:
        return None
    return size


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
            objective = TEACHER_OBJECTIVES[resolved.teacher_objective]
            teacher = Follower(frozen, backbone.channels, objective, head=True, name=f"--teacher {resolved.teacher}")
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
        lines.append(
            f"follows {network.name} at {size} px: {rows}x{cols} cells, objective {resolved.teacher_objective}, weight"
            f" {resolved.teacher_weight:g}; license of its weights: {resolved.teacher_license}"
        )
    if guides.start is not None:
        lines.append(f"anchored to the starting weights: {resolved.anchor_form}, weight {resolved.anchor:g}")
    return lines
