"""What a run is made of: data, model, and every setting that was left to us."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.data import Dataset

from densecl.errors import UserError
from densecl.images.cache import CachedSource
from densecl.images.crops import least_side
from densecl.images.sources import ImageSource, open_source
from densecl.images.statistics import measure_mean_std, measure_offset
from densecl.model import Backbone, DenseCL, create_backbone
from densecl.model.methods import Method, find_method
from densecl.model.weights import Start, initialize_from
from densecl.names import shown
from densecl.normalization import IMAGENET, Normalization
from densecl.recipe import OF_THE_KEYS, Recipe, flag, parse_time, resolve_queue_length
from densecl.training import automatic
from densecl.training.automatic import SMALL_GRID
from densecl.training.checkpoints import load_checkpoint
from densecl.training.cores import available_cores
from densecl.training.environment import settle_devices
from densecl.training.processor import fast_in_bf16
from densecl.training.timeline import Timeline

Value = TypeVar("Value")


@dataclasses.dataclass(frozen=True)
class Parts:
    """What a run is made of. The same recipe gives the same parts in every process."""

    recipe: Recipe  # every setting resolved
    source: ImageSource
    model: DenseCL
    normalization: Normalization
    grid: tuple[int, int]  # rows and columns of the feature map
    timeline: Timeline  # how long it is, and where it goes on
    optimizer_state: dict[str, Any] | None = None


def build(
    recipe: Recipe, resume_from: Path | None, dataset: Dataset[Any] | None, module: nn.Module | None
) -> tuple[Parts, list[str]]:
    """Opens the data, makes the model, settles what is "auto", and loads the checkpoint if there is one.

    Returns:
        The parts, and a line for each choice that was made for the user.

    Raises:
        UserError: for wrong data, an unknown backbone, settings that do not go together, a damaged checkpoint.
    """
    recipe = settle_devices(recipe)
    torch.manual_seed(recipe.seed)
    if module is None:
        backbone = create_backbone(recipe.backbone, channels=recipe.channels, output_stride=recipe.output_stride)
    elif isinstance(module, Backbone):
        backbone = module
    else:
        backbone = Backbone(module, in_channels=recipe.channels)
    _check_trainable(backbone)
    source = open_source(
        recipe.data if dataset is None else dataset,
        channels=recipe.channels,
        tile=recipe.tile,
        least_side=_least_side(recipe, backbone.stride),
        max_pixels=recipe.max_image_pixels,
    )
    source.check()
    reasons = list(source.notes())
    if not backbone.model.training:
        reasons.append(
            f"warning: {backbone.name} is in evaluation mode and stays so: its batch norm keeps its statistics, and"
            " nothing is dropped at random. If that is not meant, call its train() first."
        )
    if recipe.cache is not None:
        source = CachedSource(source, recipe.cache, recipe.max_image_pixels)
        reasons.append(source.forecast())
    images = len(source)
    if recipe.batch_size == "auto":
        recipe, reason = _with_batch_size(recipe, images)
        reasons.append(reason)
    assert isinstance(recipe.batch_size, int)
    if recipe.batch_size > images:
        raise UserError(
            f"--batch-size {recipe.batch_size} is larger than the data set of {images} images."
            f" Take {automatic.power_below(images)}."
        )

    checkpoint = start = None
    if resume_from is not None and (resume_from / "checkpoints" / "last.ckpt").is_file():
        checkpoint = load_checkpoint(resume_from / "checkpoints" / "last.ckpt")
        if checkpoint["fingerprint"] != source.fingerprint():
            raise UserError(
                f"--data {shown(recipe.data)} holds other images ({images}) than the run in {resume_from} began with"
                f" ({checkpoint['images']}). Give the same, or start a new run with --init {resume_from}."
            )
    elif recipe.init is not None:
        start = initialize_from(backbone, recipe.init)
        reasons += [f"start: {start.report}", *start.warnings]
    recipe, reason = _with_norm_statistics(recipe, backbone)
    reasons += reason
    if checkpoint is None and backbone.norm_statistics_frozen and not backbone.has_norm_statistics:
        reasons.append(
            f"warning: the batch norm of {backbone.name} has seen no images, so that the statistics that"
            " --freeze-norm-statistics keeps are those of none: means of 0, variances of 1"
        )
    if recipe.checkpoint_activations:
        backbone.checkpoint_activations()
    name, reason = chosen_method(recipe)
    method = find_method(name)
    if reason:
        reasons.append(f"--method {name} ({reason})")
    _check_batch(recipe, method)
    grid, warning = _check_grid(recipe, backbone)
    reasons += warning

    resolved = _resolve(recipe, method, source, backbone, start, reasons)
    if resolved.key_norm == "auto" and _is_split(resolved, backbone):
        resolved = _settle(resolved, key_norm="split")
        reasons.append(f"--key-norm split (into {resolved.key_split} images, as on each of the paper's devices)")
    reasons += _idle(resolved)
    _check_local_crops(resolved, backbone)
    model = DenseCL(
        backbone,
        method=method,
        dim=_given(resolved.dim),
        hidden_dim=resolved.hidden_dim,
        grid=resolved.grid,
        queue_length=_given(resolved.queue_length),
        temperature=_given(resolved.temperature),
        teacher_temperature=resolved.teacher_temperature[0]
        if isinstance(resolved.teacher_temperature, tuple)
        else None,
        key_momentum=_given(resolved.key_momentum),
        dense_weight=resolved.dense_weight,
        key_norm=_given(resolved.key_norm),
        key_split=resolved.key_split,
        matching=resolved.matching,
        match_radius=resolved.match_radius,
        match_top_k=resolved.match_top_k,
        dense_negatives=_given(resolved.dense_negatives),
        dense_statistics=_given(resolved.dense_statistics),
        symmetric=_given(resolved.symmetric),
        seed=resolved.seed,
    )
    if resolved.key_norm == "auto" and model.key_norm is not None:
        resolved = _settle(resolved, key_norm=model.key_norm)
        alone = ", which on one device has nothing to mix" if recipe.processes == 1 else ""
        reasons.append(f"--key-norm {model.key_norm}{alone if model.key_norm == 'shuffle' else ''}")
    if checkpoint is not None:
        try:
            model.load_state_dict(checkpoint["model"])
        except (RuntimeError, TypeError) as error:
            problem = " ".join(str(error).split())[:160]
            raise UserError(f"The checkpoint in {resume_from} does not fit the recipe: {problem}") from error
    assert resolved.mean is not None and resolved.std is not None
    timeline = _timeline(resolved, images)
    if checkpoint is not None:
        timeline = timeline.going_on(checkpoint["step"], checkpoint["seconds"])
    state = None if checkpoint is None else checkpoint["optimizer"]
    normalization = Normalization(resolved.mean, resolved.std)
    return Parts(resolved, source, model, normalization, grid, timeline, state), reasons


def _timeline(recipe: Recipe, images: int) -> Timeline:
    assert isinstance(recipe.batch_size, int)
    limit = None if recipe.time_limit is None else parse_time(recipe.time_limit, "time_limit")
    return Timeline.plan(images, recipe.batch_size, epochs=recipe.epochs, steps=recipe.steps, time_limit=limit)


def _least_side(recipe: Recipe, stride: int) -> int:
    """The shorter side that an image needs for views none of which is enlarged."""
    large = least_side(recipe.image_size, recipe.crop_scale)
    local = _local_crop_size(recipe, stride)
    return large if local is None else max(large, least_side(local, recipe.local_crop_scale))


def _local_crop_size(recipe: Recipe, stride: int) -> int | None:
    """The side of a small view, None without any."""
    if not recipe.local_crops:
        return None
    if isinstance(recipe.local_crop_size, int):
        return recipe.local_crop_size
    return automatic.local_crop_size(recipe.image_size, stride, recipe.grid)


def _settle(recipe: Recipe, **chosen: Any) -> Recipe:
    """The recipe with the values that the run chose itself, on record as such."""
    return dataclasses.replace(recipe, **chosen, settled=tuple(sorted({*recipe.settled, *chosen})))


def _with_batch_size(recipe: Recipe, images: int) -> tuple[Recipe, str]:
    """The recipe with a batch size for this many images, and the reason for it.

    Raises:
        UserError: if there are fewer images than parts of a batch.
    """
    on_gpu = torch.cuda.is_available()
    parts = recipe.processes * recipe.accumulate
    if images < parts:
        raise UserError(
            f"{images} images cannot be shared by {recipe.processes} device(s) in {recipe.accumulate}"
            " part(s). Take fewer --devices, or less --accumulate."
        )
    least = automatic.ENOUGH_NEGATIVES if recipe.method == "auto" else find_method(recipe.method).least_batch
    if recipe.key_norm == "split":
        least = max(least, 2 * recipe.key_split)
    if recipe.dense_negatives == "others":
        least = max(least, 2)
    size = automatic.batch_size(images, recipe.epochs, parts=parts, least=least, on_gpu=on_gpu)
    length = "" if recipe.epochs is None else f"{recipe.epochs} {'epoch' if recipe.epochs == 1 else 'epochs'} of "
    reason = f"--batch-size {size} (for {length}{images} images on a {'GPU' if on_gpu else 'CPU'})"
    return _settle(recipe, batch_size=size), reason


def _with_norm_statistics(recipe: Recipe, backbone: Backbone) -> tuple[Recipe, list[str]]:
    """Freezes the statistics of the backbone's batch norm if they are to be, and says so.

    Raises:
        UserError: if they are not to be, but are.
    """
    asked = recipe.freeze_norm_statistics
    before = backbone.norm_statistics_frozen  # of a Backbone that was given
    if asked is False and before:
        raise UserError(f"--no-freeze-norm-statistics: those of this {backbone.name} are frozen. Give a new Backbone.")
    if not before and not backbone.uses_batch_statistics:
        warning = f"warning: --freeze-norm-statistics does nothing: {backbone.name} has no batch norm"
        return _settle_open(recipe, freeze_norm_statistics=False), [warning] if asked is True else []
    recipe = _settle_open(recipe, freeze_norm_statistics=before or recipe.init is not None)
    if before or not recipe.freeze_norm_statistics:
        return recipe, []
    backbone.freeze_norm_statistics()
    why = "those of the starting weights are better than those of small crops"
    return recipe, [f"--freeze-norm-statistics ({why})"] if asked == "auto" else []


def _settle_open(recipe: Recipe, **chosen: Any) -> Recipe:
    """The recipe with these values where it says "auto"."""
    return _settle(recipe, **{name: value for name, value in chosen.items() if getattr(recipe, name) == "auto"})


def _check_trainable(backbone: Backbone) -> None:
    """
    Raises:
        UserError: if there is nothing to train, or not in float32, in which images come.
    """
    trained = [parameter for parameter in backbone.parameters() if parameter.requires_grad]
    if not trained:
        raise UserError(f"{backbone.name} has no parameters to train: all have requires_grad=False.")
    others = {str(parameter.dtype).removeprefix("torch.") for parameter in trained} - {"float32"}
    if others:
        raise UserError(
            f"{backbone.name} has parameters in {', '.join(sorted(others))}. Give it in float32: module.float();"
            " --precision bf16 computes in half precision."
        )


def _is_split(recipe: Recipe, backbone: Backbone) -> bool:
    """Whether the paper's recipe splits the keys, in place of the many devices that it was made on."""
    return (
        recipe.recipe == "paper"
        and recipe.processes == 1
        and recipe.images_at_once > recipe.key_split
        and backbone.uses_batch_statistics
    )


def _given(value: Value | Literal["auto"] | None) -> Value | None:
    """What is left at "auto" after `_resolve` is the model's to choose."""
    return None if value == "auto" else value  # pyright: ignore[reportReturnType]


def _resolve(
    recipe: Recipe,
    method: Method,
    source: ImageSource,
    backbone: Backbone,
    start: Start | None,
    reasons: list[str],
) -> Recipe:
    """Settles every "auto" but those that the model settles, and says why in `reasons`."""
    chosen: dict[str, Any] = {}
    own = {
        "method": method.name,
        "temperature": method.temperature,
        "teacher_temperature": method.teacher_temperature,
        "key_momentum_end": method.key_momentum_end,
        "dense_negatives": "batch" if method.dense_negatives else None,
        "dense_statistics": "cells" if method.statistics else None,
        "symmetric": method.symmetric,
        "local_crop_size": _local_crop_size(recipe, backbone.stride),
    }
    chosen |= {name: value for name, value in own.items() if getattr(recipe, name) == "auto"}
    brightness = recipe.brightness
    if brightness == "auto":
        chosen["brightness"] = brightness = "scale"
        offset, deep = measure_offset(source)
        if offset > automatic.NARROW_BAND and deep:
            chosen["brightness"] = brightness = "shift"
            reasons.append(
                f"--brightness shift (the values of an image lie {offset:.3g} of their standard deviations from 0)"
            )
        elif offset > automatic.NARROW_BAND:
            reasons.append(
                f"warning: the values of an image lie {offset:.3g} of their standard deviations from 0, so that the"
                " jitter of brightness outweighs the picture; --brightness shift goes by its own contrast"
            )
    if recipe.mean is None:
        if start is not None and start.normalization is not None and brightness == "scale":
            mean, std = start.normalization
            reasons.append(f"--mean {_numbers(mean)} --std {_numbers(std)} ({start.whose})")
        elif recipe.channels == 3 and brightness == "scale":
            mean, std = IMAGENET
        else:
            mean, std = measure_mean_std(source, recipe.seed)
            reasons.append(f"--mean {_numbers(mean)} --std {_numbers(std)} (measured)")
        chosen |= {"mean": mean, "std": std}
    assert isinstance(recipe.batch_size, int)
    timeline = _timeline(recipe, len(source))
    steps = timeline.total_steps
    for name, has in (("temperature_max", method.temperature), ("key_momentum_end", method.key_momentum)):
        if has is None and getattr(recipe, name) not in (None, "auto"):
            what = name.removesuffix("_max").removesuffix("_end").replace("_", " ")
            raise UserError(f"{flag(name)} {getattr(recipe, name)}: {method.name} has no {what}. Leave it out.")
    needed = {
        "temperature": method.temperature,
        "teacher_temperature": method.teacher_temperature,
        "key_momentum": method.key_momentum,
        "queue_length": method.queue,
        "dense_negatives": method.dense_negatives,
        "dense_statistics": method.statistics,
    }
    for name, has in needed.items():
        if has and getattr(recipe, name) is None:
            raise UserError(f"{flag(name)} none: {method.name} does not go without. Leave it out.")
    momentum = recipe.key_momentum
    if momentum == "auto" and method.key_momentum is None:
        chosen["key_momentum"] = momentum = None
    elif momentum == "auto":
        chosen["key_momentum"] = momentum = automatic.key_momentum(steps, method.key_momentum or 1.0)
        length = "an unknown number of" if steps is None else steps
        reasons.append(f"--key-momentum {momentum:.4g} (for {length} steps)")
    if recipe.queue_length == "auto" and not method.queue:
        chosen["queue_length"] = None
    elif recipe.queue_length == "auto":
        assert isinstance(momentum, float)
        chosen["queue_length"] = automatic.queue_length(len(source), recipe.batch_size, momentum)
        reasons.append(f"--queue-length {chosen['queue_length']} (for {len(source)} images and this key momentum)")
    elif recipe.queue_length is not None and recipe.queue_length > len(source) and "queue_length" not in recipe.settled:
        reasons.append(
            f"warning: --queue-length {recipe.queue_length} is longer than the data set of {len(source)} images, which"
            f" then are their own negatives; {min(len(source), resolve_queue_length(len(source)))} would fit"
        )
    base = recipe.base_learning_rate
    if base == "auto":
        batch_norm = any(isinstance(module, _BatchNorm) for module in backbone.modules())
        chosen["base_learning_rate"] = base = automatic.base_learning_rate(recipe.optimizer, batch_norm, method)
    if recipe.learning_rate == "auto":
        chosen["learning_rate"] = automatic.scaled_learning_rate(base, recipe.batch_size, recipe.optimizer)
        rule = "the square root of " if recipe.optimizer == "adamw" else ""
        reasons.append(
            f"--learning-rate {chosen['learning_rate']:.4g} (base {base:g} for {recipe.optimizer} x {rule}batch size"
            f" {recipe.batch_size} / {automatic.REFERENCE_BATCH})"
        )
    if recipe.weight_decay == "auto":
        chosen["weight_decay"] = automatic.weight_decay(recipe.optimizer, method)
    if recipe.warmup_epochs == "auto":
        chosen["warmup_epochs"] = automatic.warmup_epochs(timeline.total_epochs)
        reasons.append(f"--warmup-epochs {chosen['warmup_epochs']:.4g}")
    precision = recipe.precision
    if precision == "auto":
        fast, reason = fast_in_bf16()
        chosen["precision"] = precision = "bf16" if fast else "32"
        reasons.append(f"--precision {precision} ({reason})")
    if recipe.channels_last == "auto":
        chosen["channels_last"] = channels_last = torch.cuda.is_available() or precision == "bf16"
        reasons.append("--channels-last" if channels_last else "--no-channels-last (of little use in float32 on a CPU)")
    if recipe.workers == "auto":
        cores = available_cores()
        assert isinstance(recipe.devices, int)
        chosen["workers"] = automatic.workers(cores, recipe.devices, on_gpu=torch.cuda.is_available())
        reasons.append(f"--workers {chosen['workers']} ({cores} cores)")
    return _settle(recipe, **chosen)


def chosen_method(recipe: Recipe) -> tuple[str, str]:
    """The name of the method that a recipe asks for, and if the recipe leaves it open, why it is this one."""
    if recipe.method != "auto":
        return recipe.method, ""
    given = [flag(name) for name in OF_THE_KEYS if getattr(recipe, name) not in ("auto", None)]
    if recipe.dense_negatives == "cells":
        given.append("--dense-negatives cells")
    if recipe.recipe == "paper":
        given.append("--recipe paper")
    name = automatic.method(recipe.images_at_once, keys_given=bool(given))
    if given:
        return name, f"for {given[0]}"
    where = "queue" if name == "moco" else "batch"
    return name, f"negatives from a {where}, for {recipe.images_at_once} images a device"


def _idle(recipe: Recipe) -> list[str]:
    """A warning for each setting that was given a value but does nothing beside the others."""
    needs = {
        "local_crop_scale": (recipe.local_crops > 0, "--local-crops"),
        "temperature_period": (recipe.temperature_max is not None, "--temperature-max"),
        "teacher_warmup": (recipe.method == "dino", "--method dino"),
        "key_split": (recipe.key_norm == "split", "--key-norm split"),
        "match_radius": (
            recipe.matching in ("geometry", "both") or recipe.dense_negatives == "batch",
            "--matching geometry or both, or --dense-negatives batch",
        ),
        "momentum": (recipe.optimizer in ("sgd", "lars"), "--optimizer sgd or lars"),
    }
    return [
        f"warning: {flag(name)} does nothing without {needed}"
        for name, (used, needed) in needs.items()
        if not used and getattr(recipe, name) != getattr(Recipe, name)
    ]


def _check_batch(recipe: Recipe, method: Method) -> None:
    """Raises UserError if there would be fewer images than the method can learn from."""
    parts = recipe.processes * recipe.accumulate
    accumulated = f" in {recipe.accumulate} parts" if recipe.accumulate > 1 else ""
    if recipe.images_at_once < method.least_batch:
        raise UserError(
            f"--batch-size {recipe.batch_size} on {recipe.processes} device(s){accumulated}:"
            f" {method.name} takes statistics over the batch {method.needs_batch_in} and needs"
            f" at least {method.least_batch} images on each."
            f" Give at least {method.least_batch * parts}."
        )
    assert isinstance(recipe.batch_size, int)
    if recipe.dense_negatives == "others" and recipe.batch_size < 2 * recipe.accumulate:
        raise UserError(
            "--dense-negatives others: computed one image at a time there are no others."
            f" Give --batch-size {2 * recipe.accumulate} or more."
        )


def _check_local_crops(recipe: Recipe, backbone: Backbone) -> None:
    """Raises UserError if the dense loss has too few cells in the small views."""
    if not recipe.local_crops:
        return
    assert isinstance(recipe.local_crop_size, int)
    rows, cols = backbone.grid_at(recipe.local_crop_size)
    if recipe.dense_weight > 0 and min(rows, cols) < max(SMALL_GRID, recipe.grid or 0):
        least = max(SMALL_GRID, recipe.grid or 0)
        raise UserError(
            f"--local-crop-size {recipe.local_crop_size}: the feature map of {backbone.name} is then {rows}x{cols}, and"
            f" the dense loss needs {least}x{least} cells. Give at least {least * backbone.stride}."
        )


def _check_grid(recipe: Recipe, backbone: Backbone) -> tuple[tuple[int, int], list[str]]:
    """The size of the feature map, and a warning if it is too small for dense learning.

    Raises:
        UserError: if it is a single cell, or smaller than the grid it is to be pooled to.
    """
    rows, cols = backbone.grid_at(recipe.image_size)
    smallest = min(rows, cols)
    if recipe.grid is not None and recipe.grid > smallest:
        raise UserError(f"--grid {recipe.grid}: the feature map has only {rows}x{cols} cells. Give at most {smallest}.")
    if smallest >= SMALL_GRID or recipe.dense_weight == 0:
        return (rows, cols), []
    advice = f"--image-size {SMALL_GRID * backbone.stride}"
    finer = [stride for stride in (16, 8) if stride < backbone.stride and recipe.image_size // stride >= SMALL_GRID]
    if finer:
        advice += f" or --output-stride {finer[0]}"
    if smallest == 1:
        raise UserError(
            f"The feature map of {backbone.name} at {recipe.image_size} px is {rows}x{cols}: dense learning would mean"
            f" nothing. Use {advice}."
        )
    return (rows, cols), [f"warning: only {rows}x{cols} cells, on which the dense loss means little; use {advice}"]


def _numbers(values: tuple[float, ...]) -> str:
    return " ".join(f"{value:.4g}" for value in values)
