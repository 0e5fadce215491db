"""Whether resolved settings go with the facts: what cannot work is an error, what is likely not meant a warning."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator

from densecl.config import automatic
from densecl.config.facts import Facts, Network, Teacher, Traits
from densecl.config.method import MethodSettings
from densecl.config.presets import PRESETS
from densecl.config.recipe import Resolved
from densecl.config.rules import cells_to_follow, has_enough_cells, in_cells, steps_of_run
from densecl.config.settings import defaults
from densecl.config.teacher import TeacherSettings, distills_alone, teaches_itself
from densecl.errors import UserError, flag
from densecl.names import counted


def check_feasible(resolved: Resolved, facts: Facts) -> None:
    """
    Raises:
        UserError: for the first thing that cannot work.
    """
    method = facts.methods[resolved.method]
    if resolved.time_limit is not None and resolved.schedule_per == "epoch":
        raise UserError("--schedule-per epoch needs a length in --epochs or --steps; with --time-limit take 'step'.")
    _check_batch(resolved, method, facts.images)
    _check_traits(resolved, method)
    _check_key_norm(resolved, method, facts.network)
    _check_grid(resolved, facts.network)
    _check_local_crops(resolved, facts.network)
    _check_teacher(resolved, facts)
    _check_pace(resolved, facts)
    if facts.network.statistics_frozen and not resolved.freeze_norm_statistics:
        raise UserError(
            f"--no-freeze-norm-statistics: those of this {facts.network.name} are frozen. Give a new Backbone."
        )


def _check_batch(resolved: Resolved, method: Traits, images: int) -> None:
    size, parts = resolved.batch_size, resolved.processes * resolved.accumulate
    if size > images:
        raise UserError(
            f"--batch-size {size} is larger than the data set of {images} images. Take {automatic.power_below(images)}."
        )
    if distills_alone(resolved):  # an image is learned from by itself
        return
    if resolved.images_at_once < method.least_batch:
        accumulated = f" in {resolved.accumulate} parts" if resolved.accumulate > 1 else ""
        raise UserError(
            f"--batch-size {size} on {counted(resolved.processes, 'device')}{accumulated}: {method.name}"
            f" takes statistics over the batch {method.needs_batch_in} and needs at least {method.least_batch} images"
            f" on each. Give at least {method.least_batch * parts}."
        )
    if resolved.dense_negatives == "others" and size < 2 * resolved.accumulate:
        raise UserError(
            "--dense-negatives others: computed one image at a time there are no others. Give --batch-size"
            f" {2 * resolved.accumulate} or more."
        )


def _check_traits(resolved: Resolved, method: Traits) -> None:
    """What the method does not have cannot be given, and what it needs cannot be "none"."""
    for name, has in (("temperature_max", method.temperature), ("key_momentum_end", method.key_momentum)):
        value = getattr(resolved, name)
        if has is None and value is not None:
            what = name.removesuffix("_max").removesuffix("_end").replace("_", " ")
            raise UserError(f"{flag(name)} {value}: {method.name} has no {what}. Leave it out.")
    needed = {
        "temperature": method.temperature,
        "teacher_temperature": method.teacher_temperature,
        "key_momentum": method.key_momentum,
        "queue_length": method.queue,
        "dense_negatives": method.dense_negatives,
        "dense_statistics": method.statistics,
    }
    for name, has in needed.items():
        if has and getattr(resolved, name) is None:
            raise UserError(f"{flag(name)} none: {method.name} does not go without. Leave it out.")


def _check_key_norm(resolved: Resolved, method: Traits, network: Network) -> None:
    """With a queue, plain batch norm would tell the network which keys are of the same batch."""
    given = "key_norm" not in resolved.settled
    if given and resolved.key_norm is None and method.queue and network.batch_statistics:
        raise UserError(f"--key-norm none: {method.name} does not go without where there is batch norm. Leave it out.")


def _check_grid(resolved: Resolved, network: Network) -> None:
    rows, cols = network.grid
    if resolved.grid is not None and resolved.grid > min(rows, cols):
        raise UserError(
            f"--grid {resolved.grid}: the feature map has only {rows}x{cols} cells. Give at most {min(rows, cols)}."
        )
    if min(rows, cols) == 1 and resolved.dense_weight > 0 and not distills_alone(resolved):
        raise UserError(
            f"The feature map of {network.name} at {resolved.image_size} px is {rows}x{cols}: dense learning would mean"
            f" nothing. Use {_more_cells(resolved, network)}."
        )


def _more_cells(resolved: Resolved, network: Network) -> str:
    """What to give for enough cells."""
    enough = automatic.SMALL_GRID
    finer = [stride for stride in (16, 8) if stride < network.stride and resolved.image_size // stride >= enough]
    return f"--image-size {enough * network.stride}" + (f" or --output-stride {finer[0]}" if finer else "")


def _check_local_crops(resolved: Resolved, network: Network) -> None:
    """The dense loss needs some cells in a local crop, too."""
    if network.local_grid is None or resolved.dense_weight == 0:
        return
    rows, cols = network.local_grid
    least = max(automatic.SMALL_GRID, resolved.grid or 0)
    if min(rows, cols) < least:
        raise UserError(
            f"--local-crop-size {resolved.local_crop_size}: the feature map of {network.name} is then {rows}x{cols},"
            f" and the dense loss needs {least}x{least} cells. Give at least {least * network.stride}."
        )


def _check_teacher(resolved: Resolved, facts: Facts) -> None:
    teacher, (rows, cols) = facts.teacher, facts.network.followed_grid
    if resolved.anchor and resolved.anchor_form == "gram" and rows * cols == 1:
        raise UserError(
            f"--anchor-form gram compares the cells of an image, but at {resolved.image_size} px there is one. Use"
            f" {_more_cells(resolved, facts.network)}, or --anchor-form cells."
        )
    if teacher is None:
        return
    _check_teacher_channels(resolved, teacher)
    if 1 in (rows * cols, math.prod(_teacher_grid(resolved, teacher))) and resolved.teacher_objective != "cosine":
        whose, advice = "teacher's", "a larger --teacher-size"
        if rows * cols == 1:
            whose, advice = "student's", _more_cells(resolved, facts.network)
        raise UserError(
            f"--teacher-objective {resolved.teacher_objective} compares the cells of an image, but the {whose} feature"
            f" map has one alone. Use {advice}, or --teacher-objective cosine."
        )
    images = resolved.batch_size // resolved.accumulate
    if resolved.teacher_standardize and images * math.prod(_teacher_grid(resolved, teacher)) == 1:
        raise UserError(
            "--teacher-standardize: the teacher makes one cell of a batch, which deviates from nothing. Give a larger"
            " --batch-size or --teacher-size, or --no-teacher-standardize."
        )


def _check_pace(resolved: Resolved, facts: Facts) -> None:
    """Whether the backbone learns at all, heads have something to learn, and layers can be told apart."""
    frozen, steps = resolved.freeze_backbone_steps, steps_of_run(resolved, facts)
    if frozen and steps is not None and frozen >= steps:
        raise UserError(
            f"--freeze-backbone-steps {frozen}: the run has {counted(steps, 'step')}, so that the backbone would never"
            " learn. Give fewer."
        )
    if frozen and distills_alone(resolved) and resolved.teacher_objective == "relational":
        raise UserError(
            f"--freeze-backbone-steps {frozen}: with --teacher-weight 1 and --teacher-objective relational there is no"
            " head that could learn alone. Leave it out."
        )
    if resolved.layer_decay < 1 and facts.network.layers < 2:
        raise UserError(
            f"--layer-decay {resolved.layer_decay:g}: {facts.network.name} does not say which of its layers come first."
            " (timm's networks do, with group_matcher.) Leave it out."
        )


def _teacher_grid(resolved: Resolved, teacher: Teacher) -> tuple[int, int]:
    return teacher.grids[resolved.teacher_size or resolved.image_size]


def _check_teacher_channels(resolved: Resolved, teacher: Teacher) -> None:
    given = resolved.teacher_channels
    if given is not None and len(given) != teacher.channels:
        raise UserError(
            f"--teacher-channels names {counted(len(given), 'channel')}, but the teacher {teacher.name} takes"
            f" {teacher.channels}."
        )
    if given is None and resolved.channels != teacher.channels:
        example = " ".join(str(number % resolved.channels) for number in range(teacher.channels))
        raise UserError(
            f"The teacher {teacher.name} takes images of {counted(teacher.channels, 'channel')}, and these have"
            f" {resolved.channels}. Say with --teacher-channels which ones it shall see, such as {example}."
        )


def warnings(resolved: Resolved, facts: Facts) -> Iterator[str]:
    """A line for each thing that is likely not meant."""
    network, pixels, images = facts.network, facts.pixels, facts.images
    if resolved.brightness == "scale" and pixels.offset > automatic.NARROW_BAND:
        yield (
            f"the values of an image lie {pixels.offset:.3g} of their standard deviations from 0, so that the jitter of"
            " brightness outweighs the picture; --brightness shift goes by its own contrast"
        )
    if resolved.freeze_norm_statistics and not (network.batch_statistics or network.statistics_frozen):
        yield f"--freeze-norm-statistics does nothing: {network.name} has no batch norm"
    elif resolved.freeze_norm_statistics and not network.statistics_seen:
        yield (
            f"the batch norm of {network.name} has seen no images, so that the statistics that --freeze-norm-statistics"
            " keeps are those of none: means of 0, variances of 1"
        )
    scale = pixels.scale
    if scale is not None and scale.use is not None and scale.mean > automatic.OFF_SCALE * scale.use:
        yield (
            f"most images are too narrow for crops at the scale of --use-size {resolved.use_size}: views show things"
            f" {scale.mean / scale.use:.2g} times larger than in use; a smaller --image-size fits"
        )
    rows, cols = network.grid
    dense = resolved.dense_weight > 0 and not distills_alone(resolved)
    if 1 < min(rows, cols) < automatic.SMALL_GRID and dense:
        advice = _more_cells(resolved, network)
        yield f"only {rows}x{cols} cells, on which the dense loss means little; use {advice}"
    fields = [stage.receptive_field for stage in network.stages]
    field = min(fields, default=network.receptive_field) / resolved.image_size
    # Trained weights look at less than they could: with them the dense loss paid at 6.6 views, too.
    if automatic.WIDE_FIELD < field < math.inf and dense and resolved.init is None:
        yield (
            f"the receptive field of {network.name} is {field:.2g} times the view (in the paper 1.9 times), so that all"
            " cells see the same pixels; a larger --image-size or an earlier --dense-stage makes them differ"
        )
    if teaches_itself(resolved) and (resolved.teacher_size or resolved.image_size) <= resolved.image_size:
        advice = "it takes no larger view" if "teacher_size" in resolved.settled else "leave out --teacher-size"
        yield (
            f"--teacher init at {resolved.teacher_size or resolved.image_size} px: the copy sees no more of a view than"
            f" the student, and teaches it little; {advice}"
        )
    if facts.teacher is not None:
        grid, followed = _teacher_grid(resolved, facts.teacher), cells_to_follow(resolved, network.followed_grid)
        if not has_enough_cells(grid, followed):
            more = "leave out --teacher-size, or give a larger one"
            advice = "it takes no size with more" if "teacher_size" in resolved.settled else more
            where = "" if resolved.teacher_cache is None else " in its smallest crop"
            yield (
                f"the teacher's feature map has {in_cells(grid)} cells, fewer than the student's"
                f" {in_cells(followed)}{where}; {advice}"
            )
    length = resolved.queue_length
    if length is not None and length > images and "queue_length" not in resolved.settled:
        yield (
            f"--queue-length {length} is longer than the data set of {images} images, which then are their own"
            f" negatives; {min(images, automatic.longest_queue(images))} would fit"
        )
    machine = facts.machine
    if machine.gpus == 0 and resolved.devices > machine.cores:
        cores = "core" if machine.cores == 1 else "cores"
        yield (
            f"--devices {resolved.devices}: without a GPU these are processes on {machine.cores} {cores}, which wait"
            " for each other. Take fewer"
        )
    yield from _idle(resolved)
    yield from _idle_beside_a_teacher(resolved)


def _idle(resolved: Resolved) -> Iterator[str]:
    """A setting that was given a value, but does nothing beside the others."""
    needs = {
        "dense_stage": (resolved.dense_weight > 0, "--dense-weight"),
        "dense_softening": (resolved.dense_weight > 0, "--dense-weight"),
        "local_crop_scale": (resolved.local_crops > 0, "--local-crops"),
        "temperature_period": (resolved.temperature_max is not None, "--temperature-max"),
        "teacher_warmup": (resolved.method == "dino", "--method dino"),
        "key_split": (resolved.key_norm == "split", "--key-norm split"),
        "match_radius": (
            resolved.matching in ("geometry", "both") or resolved.dense_negatives == "batch",
            "--matching geometry or both, or --dense-negatives batch",
        ),
        "momentum": (resolved.optimizer in ("sgd", "lars"), "--optimizer sgd or lars"),
    }
    for name, (used, needed) in needs.items():
        if not used and getattr(resolved, name) != defaults()[name]:
            yield f"{flag(name)} does nothing without {needed}"


def _idle_beside_a_teacher(resolved: Resolved) -> Iterator[str]:
    """The same for the settings of a teacher and an anchor, and for those of the method where there is none."""
    preset = {**defaults(), **PRESETS[resolved.recipe]}
    groups: list[tuple[type, bool, str]] = [
        (TeacherSettings, resolved.teacher is not None, "without --teacher"),
        (MethodSettings, not distills_alone(resolved), "with --teacher-weight 1, distillation alone"),
    ]
    for group, used, when in groups:
        for name in (field.name for field in dataclasses.fields(group)):
            given = getattr(resolved, name) not in (preset[name], None) and name not in resolved.settled
            if given and not used and not name.startswith("anchor"):
                yield f"{flag(name)} does nothing {when}"
    if not resolved.anchor and resolved.anchor_form != preset["anchor_form"]:
        yield "--anchor-form does nothing without --anchor"
