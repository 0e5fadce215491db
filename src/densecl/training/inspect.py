"""What a run meets: images, backbone, starting weights and machine, opened and put into `Facts`."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.data import Dataset

from densecl.config.facts import Facts, Machine, Network, Pixels, Reliance, Scale, Stage
from densecl.config.rules import side_of_local_crops
from densecl.config.settings import Settings
from densecl.cores import available_cores
from densecl.errors import UserError
from densecl.images.cache import CachedSource
from densecl.images.companions.alone import only_label_maps
from densecl.images.crops import least_side, scales_of_crops
from densecl.images.sources import ImageSource, open_source
from densecl.images.statistics import measure_mean_std, measure_offset, measure_sides
from densecl.model import METHODS, Backbone, create_backbone
from densecl.model.receptive_field import receptive_fields
from densecl.model.weights import Start, initialize_from
from densecl.names import few, shown
from densecl.normalization import IMAGENET
from densecl.training.checkpoints import Checkpoint, load_checkpoint
from densecl.training.guidance import Guides, facts_of, open_guides
from densecl.training.optimizer import layers_from_the_end
from densecl.training.processor import fast_in_bf16, fast_in_fp16
from densecl.training.reliance import SIDE, measure_reliance


class Found(NamedTuple):
    """What was opened, and what is known of it."""

    source: ImageSource
    backbone: Backbone
    guides: Guides  # frozen networks that the run follows
    checkpoint: Checkpoint | None  # of the run that goes on
    facts: Facts
    notes: tuple[str, ...]  # lines for the user


def inspect(
    asked: Settings[Any], resume_from: Path | None, dataset: Dataset[Any] | None, module: nn.Module | None
) -> Found:
    """Opens the images and makes the backbone, with its starting weights.

    Args:
        asked: the settings.
        resume_from: folder of the run to go on with, if it has a checkpoint.
        dataset: instead of ``asked.data``.
        module: instead of ``asked.backbone``.

    Raises:
        UserError: for wrong data, an unknown backbone or teacher, weights that do not fit, a damaged checkpoint.
    """
    backbone = _backbone(asked, module)
    source = open_source(
        asked.sources if dataset is None else dataset,
        channels=asked.channels,
        tile=asked.tile,
        least_side=_least_side(asked, backbone.stride),
        max_pixels=asked.max_image_pixels,
    )
    source.check()
    notes = [*source.notes(), *only_label_maps(source)]
    if not backbone.model.training:
        notes.append(
            f"warning: {backbone.name} is in evaluation mode and stays so: its batch norm keeps its statistics, and"
            " nothing is dropped at random. If that is not meant, call its train() first."
        )
    if asked.cache is not None:
        source = CachedSource(source, asked.cache, asked.max_image_pixels)
        notes.append(source.forecast())
    checkpoint = _checkpoint(asked, resume_from, source)
    start = None
    if checkpoint is None and asked.init is not None:
        start = initialize_from(backbone, asked.init)
        notes += [f"start: {start.report}", *start.warnings]
    guides = open_guides(asked, backbone, start)
    if guides.teacher is not None:
        notes += guides.teacher.notes
    network = _network(asked, backbone, resumed=checkpoint is not None)
    facts = Facts(
        images=len(source),
        pixels=_pixels(asked, source, start),
        network=network,
        machine=_machine(),
        methods=METHODS,
        start=None if start is None else start.normalization,
        whose_start="" if start is None else start.whose,
        start_license=None if start is None else start.license.name,
        whose_start_license="" if start is None else start.license.whose,
        reliance=None if start is None else _reliance(asked, source, backbone, start),
        teacher=facts_of(guides.teacher, asked, network),
    )
    return Found(source, backbone, guides, checkpoint, facts, tuple(notes))


def _backbone(asked: Settings[Any], module: nn.Module | None) -> Backbone:
    if module is None:
        backbone = create_backbone(asked.backbone, channels=asked.channels, output_stride=asked.output_stride)
    else:
        backbone = module if isinstance(module, Backbone) else Backbone(module, in_channels=asked.channels)
    trained = [parameter for parameter in backbone.parameters() if parameter.requires_grad]
    if not trained:
        raise UserError(f"{backbone.name} has no parameters to train: all have requires_grad=False.")
    others = {str(parameter.dtype).removeprefix("torch.") for parameter in trained} - {"float32"}  # of the images
    if others:
        raise UserError(
            f"{backbone.name} has parameters in {', '.join(sorted(others))}. Give it in float32: module.float();"
            " --precision bf16 computes in half precision."
        )
    return backbone


def _least_side(asked: Settings[Any], stride: int) -> int:
    """The shorter side that an image needs so that no view is enlarged."""
    large = least_side(asked.image_size, asked.crop_scale, asked.use_size)
    local = side_of_local_crops(asked, stride)
    return large if local is None else max(large, least_side(local, asked.local_crop_scale, asked.use_size))


def _checkpoint(asked: Settings[Any], resume_from: Path | None, source: ImageSource) -> Checkpoint | None:
    if resume_from is None or not (resume_from / "checkpoints" / "last.ckpt").is_file():
        return None
    checkpoint = load_checkpoint(resume_from / "checkpoints" / "last.ckpt")
    if checkpoint["fingerprint"] != source.fingerprint():
        raise UserError(
            f"--data {few([shown(each) for each in asked.sources])} holds other images ({len(source)}) than the run in"
            f" {resume_from} began with ({checkpoint['images']}). Give the same, or start a new run with"
            f" --init {resume_from}."
        )
    return checkpoint


def _pixels(asked: Settings[Any], source: ImageSource, start: Start | None) -> Pixels:
    """Measures only what a rule will ask for, because it takes reading images."""
    offset, deep = measure_offset(source) if asked.brightness == "auto" else (0.0, False)
    measured = None
    may_shift = asked.brightness == "shift" or (asked.brightness == "auto" and deep)
    known = asked.channels == 3 or (start is not None and start.normalization is not None)
    if asked.mean == "auto" and (may_shift or not known):
        measured = measure_mean_std(source, asked.seed)
    return Pixels(offset=offset, deep=deep, measured=measured, scale=_scale(asked, source))


def _reliance(asked: Settings[Any], source: ImageSource, backbone: Backbone, start: Start) -> Reliance | None:
    """Measured only where a rule asks for it: it takes a moment."""
    if asked.channels != 3 or "auto" not in (asked.jitter, asked.grayscale_probability):
        return None
    side = backbone.stride * round(SIDE / backbone.stride)
    try:
        backbone.grid_at(side)
    except UserError:  # it takes one size alone
        side = asked.image_size
    return measure_reliance(backbone, source, start.normalization or IMAGENET, side)


def _scale(asked: Settings[Any], source: ImageSource) -> Scale | None:
    """How large views will show things."""
    sides = measure_sides(source)
    if not sides:
        return None
    every = [scales_of_crops(*one, asked.image_size, asked.crop_scale, asked.use_size) for one in sides]
    smallest, mean, largest = map(statistics.median, zip(*every, strict=True))
    use = None if asked.use_size is None else statistics.median(asked.use_size / max(one) for one in sides)
    return Scale(smallest=smallest, mean=mean, largest=largest, use=use)


def _network(asked: Settings[Any], backbone: Backbone, *, resumed: bool) -> Network:
    local_side = side_of_local_crops(asked, backbone.stride)
    norms = [module for module in backbone.modules() if isinstance(module, _BatchNorm)]
    grid = last_grid = backbone.grid_at(asked.image_size)
    local_grid = None if local_side is None else backbone.grid_at(local_side)
    stages = _stages(asked, backbone)
    if stages:
        grid = stages[-1].grid
        local_grid = None if local_side is None else backbone.grids_at([stages[-1].number], local_side)[0]
    return Network(
        name=backbone.name,
        stride=backbone.stride,
        grid=grid,
        last_grid=last_grid,
        local_grid=local_grid,
        receptive_field=stages[-1].receptive_field if stages else receptive_fields(backbone)[0],
        stages=stages,
        layers=len(set(layers_from_the_end(backbone).values())) if asked.layer_decay < 1 else 0,
        batch_norm=bool(norms),
        batch_statistics=backbone.uses_batch_statistics,
        always_batch_statistics=any(norm.running_mean is None for norm in norms),
        statistics_frozen=backbone.norm_statistics_frozen,
        statistics_seen=resumed or backbone.has_norm_statistics,
    )


def _stages(asked: Settings[Any], backbone: Backbone) -> tuple[Stage, ...]:
    """The maps on which the dense loss acts, the earliest first; none if no stage is given."""
    if asked.dense_stage is None:
        return ()
    chosen = backbone.stages_at(asked.dense_stage)
    grids = backbone.grids_at(asked.dense_stage, asked.image_size)
    fields = receptive_fields(backbone, [stage.index for stage in chosen])
    return tuple(
        Stage(number=stage.number, grid=grid, receptive_field=field)
        for stage, grid, field in zip(chosen, grids, fields, strict=True)
    )


def _machine() -> Machine:
    fast, why = fast_in_bf16()
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    return Machine(gpus=gpus, cores=available_cores(), fast_in_bf16=fast, why_bf16=why, fast_in_fp16=fast_in_fp16())
