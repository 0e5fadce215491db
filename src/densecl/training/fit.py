"""Training on Lightning's Trainer: the parts of a run put together, in one process of maybe several."""

from __future__ import annotations

import dataclasses
import functools
import math
import signal
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import lightning.pytorch as pl
import numpy as np
import torch
from lightning.fabric.plugins.environments import LightningEnvironment
from lightning.pytorch.plugins import MixedPrecision, Precision
from lightning.pytorch.strategies import DDPStrategy

from densecl.augment import PhotometricSettings, draw_photometrics
from densecl.config.recipe import Resolved
from densecl.config.teacher import distills_alone
from densecl.images.loader import make_loader
from densecl.images.maps import KeptMaps
from densecl.images.pairs import CropPairDataset, LocalCrops, Taught
from densecl.images.quarantine import Quarantine
from densecl.images.sampler import StepSampler
from densecl.interrupts import Interrupts
from densecl.model import DenseCL, Scheduled
from densecl.training.build import Parts
from densecl.training.device import choose_device
from densecl.training.environment import Placed
from densecl.training.fixed_pairs import COST, MOST_SECONDS, TIMES, FixedPairs, pairs_for
from densecl.training.kept_maps import make_maps, open_maps
from densecl.training.learned import command_to_resume
from densecl.training.logs import start_loggers
from densecl.training.module import DenseCLModule
from densecl.training.peers import Peers
from densecl.training.recorder import Recorder
from densecl.training.rhythm import Rhythm
from densecl.training.schedules import Schedules
from densecl.training.voice import Voice
from densecl.training.watching import Watching
from densecl.views import Photometrics


class RunResult(NamedTuple):
    """How a run ended."""

    out: Path
    backbone: Path  # the result: safetensors, with architecture, mean and std in its metadata
    steps: int  # done in all
    metrics: dict[str, float | int]  # the last row of metrics.csv; empty if there was nothing left to do


def fit(parts: Parts, out: Path, voice: Voice | None, peers: Peers) -> RunResult:
    """Trains to the end of the timeline, and leaves checkpoints and the backbone in `out`.

    Args:
        parts: from `build`.
        out: the run's folder.
        voice: on the first process, tells how it goes.
        peers: the other processes.

    Raises:
        UserError: for NaN, collapse, too many bad images, a full disk, want of memory.
        KeyboardInterrupt, SystemExit: see `pretrain`.
    """
    recipe, timeline, world = parts.recipe, parts.timeline, peers.world
    device = choose_device()
    pairs = view_pairs(parts)
    maps = open_maps(parts)
    trained = view_pairs(parts, single=distills_alone(recipe), maps=maps)
    sampler = StepSampler(
        len(parts.source),
        recipe.batch_size // recipe.accumulate,
        seed=recipe.seed,
        start_step=timeline.start_step * recipe.accumulate,
        stop_step=None if timeline.total_steps is None else timeline.total_steps * recipe.accumulate,
        rank=0 if world is None else world.rank,
        world_size=recipe.processes,
    )
    module = _module(parts)
    if recipe.compile:
        parts.model.compile_encoders()
    interrupts = Interrupts(None if voice is None else functools.partial(_acknowledge, voice=voice))
    quarantine = Quarantine(out / "quarantine.csv", len(parts.source), most=recipe.max_bad_images)
    loggers = []
    if voice is not None:
        loggers = start_loggers(recipe.loggers, out, timeline.start_step, dataclasses.asdict(recipe))
    recorder = Recorder(
        out,
        source=parts.source,
        batch_size=recipe.batch_size,
        timeline=timeline,
        rhythm=Rhythm(recipe.log_every, recipe.checkpoint_every, recipe.checkpoint_minutes),
        interrupts=interrupts,
        quarantine=quarantine,
        watching=_watching(parts, pairs, quarantine, out),
        keep_best=recipe.keep_best,
        loggers=loggers,
        voice=voice,
        in_epochs=recipe.epochs is not None,
        peers=peers,
    )
    trainer = pl.Trainer(
        accelerator=device,
        devices=recipe.devices,
        num_nodes=recipe.nodes,
        strategy=DDPStrategy(gradient_as_bucket_view=True, timeout=peers.patience) if recipe.processes > 1 else "auto",
        plugins=[LightningEnvironment() if world is None else Placed(world), _precision(parts, device)],
        max_epochs=1,  # for Lightning the whole run is one epoch, so that workers are not started anew
        gradient_clip_val=recipe.clip_gradient,
        accumulate_grad_batches=recipe.accumulate,
        sync_batchnorm=recipe.sync_batch_norm,
        use_distributed_sampler=False,
        callbacks=[recorder],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=out,
    )
    loader = make_loader(
        trained, sampler, workers=recipe.workers, pin_memory=device == "cuda", read_timeout=recipe.read_timeout
    )
    _tell_bad(quarantine, voice)  # of a run that goes on
    interrupts.listen()
    try:
        if maps is not None:
            own = torch.device(device, 0 if world is None else world.local_rank) if device == "cuda" else device
            make_maps(
                maps, parts, torch.device(own), world=world, voice=voice, stop=lambda: interrupts.received is not None
            )
        trainer.fit(module, loader)
    except SystemExit as error:  # what Lightning makes of a second Ctrl-C
        if isinstance(error.__context__, KeyboardInterrupt):
            raise KeyboardInterrupt from None
        raise
    finally:
        recorder.close()
        interrupts.ignore()
    _tell_bad(quarantine, voice)
    if recorder.stopped_by is not None:
        peers.agreed_to_stop = True
        _stop(recorder.stopped_by, recorder.done, command_to_resume(recipe, out), voice)
    return RunResult(out, out / "backbone.safetensors", recorder.done, recorder.row)


def view_pairs(parts: Parts, *, single: bool = False, maps: KeptMaps | None = None) -> CropPairDataset:
    """The images of a run as pairs of views, with local crops if it has any; or as single views.

    With a teacher's maps the first view has the teacher's cells beside it, on the student's own grid.
    """
    recipe = parts.recipe
    local_crops = None
    if recipe.local_crop_size is not None and recipe.local_crops:
        local_crops = LocalCrops(
            count=recipe.local_crops,
            image_size=recipe.local_crop_size,
            crop_scale=recipe.local_crop_scale,
            draw_photometrics=_photometrics(recipe, recipe.local_crop_size),
        )
    return CropPairDataset(
        parts.source,
        image_size=recipe.image_size,
        crop_scale=recipe.crop_scale,
        flip_probability=recipe.flip_probability,
        draw_photometrics=_photometrics(recipe, recipe.image_size),
        seed=recipe.seed,
        local_crops=local_crops,
        use_size=recipe.use_size,
        single=single,
        taught=None if maps is None else Taught(maps, parts.model.backbone.grid_at(recipe.image_size)),
    )


def _photometrics(recipe: Resolved, image_size: int) -> Callable[[np.random.Generator], Photometrics]:
    """Draws what happens to the colors of views of this size."""
    settings = PhotometricSettings.for_image_size(
        image_size,
        jitter=recipe.jitter,
        jitter_probability=recipe.jitter_probability,
        grayscale_probability=recipe.grayscale_probability,
        blur_probability=recipe.blur_probability,
        blur_sigma=recipe.blur_sigma,
        channels=recipe.channels,
    )
    return functools.partial(draw_photometrics, settings=settings)


def _module(parts: Parts) -> DenseCLModule:
    recipe, timeline = parts.recipe, parts.timeline
    teacher = recipe.teacher_temperature
    schedules = Schedules(
        start=parts.model.scheduled if isinstance(parts.model, DenseCL) else Scheduled(dense_weight=0.0),
        learning_rate=recipe.learning_rate,
        warmup_steps=recipe.warmup_epochs * float(timeline.steps_per_epoch),
        warmup_share=0.1 if timeline.time_limit is not None and "warmup_epochs" in recipe.settled else math.inf,
        steps_per_epoch=timeline.steps_per_epoch if recipe.schedule_per == "epoch" else None,
        freeze_backbone_steps=recipe.freeze_backbone_steps,
        dense_warmup_steps=recipe.dense_warmup_steps,
        key_momentum_end=recipe.key_momentum_end,
        temperature_max=recipe.temperature_max,
        temperature_period=recipe.temperature_period,
        teacher_temperature_end=None if teacher is None else teacher[1],
        teacher_warmup=recipe.teacher_warmup,
    )
    return DenseCLModule(
        parts.model,
        parts.normalization,
        schedules,
        progress=timeline.progress,
        optimizer=recipe.optimizer,
        momentum=recipe.momentum,
        weight_decay=recipe.weight_decay,
        layer_decay=recipe.layer_decay,
        start_step=timeline.start_step,
        optimizer_state=parts.optimizer_state,
        channels_last=recipe.channels_last,
        seed=recipe.seed,
        shift_brightness=recipe.brightness == "shift",
        origin=parts.origin,
    )


def _precision(parts: Parts, device: str) -> Precision:
    """Lightning's own choice would take bf16 for fp16 on a CPU."""
    if parts.recipe.precision == "32":
        return Precision()
    if parts.recipe.precision == "bf16":
        return MixedPrecision("bf16-mixed", device)
    plugin = MixedPrecision("16-mixed", device)
    if parts.loss_scale:
        plugin.load_state_dict(parts.loss_scale)
    return plugin


def _watching(parts: Parts, pairs: CropPairDataset, quarantine: Quarantine, out: Path) -> Watching:
    recipe, probe = parts.recipe, parts.probe
    steps, limit = parts.timeline.total_steps, parts.timeline.time_limit
    fixed_pairs = FixedPairs(
        pairs,
        parts.normalization,
        quarantine.record,
        shift_brightness=recipe.brightness == "shift",
        count=pairs_for(
            None if steps is None else steps * recipe.batch_size,
            beside=0.0 if probe is None else probe.passes(recipe.image_size),
        ),
        seconds=MOST_SECONDS if limit is None else min(MOST_SECONDS, COST * limit / (TIMES + 1)),
    )
    return Watching(out, fixed_pairs, probe, patience=recipe.stop_early, start_cells=parts.start_cells)


def _acknowledge(received: signal.Signals, voice: Voice) -> None:
    """Says that a signal has come, because the step may take a while."""
    if received == signal.SIGINT:
        voice.say("Finishing this step, then saving. Ctrl-C again quits now.")
    else:
        voice.say(f"{received.name}: finishing this step, then saving.")


def _tell_bad(quarantine: Quarantine, voice: Voice | None) -> None:
    if voice is not None and (told := quarantine.told()) is not None:
        voice.say(told)


def _stop(received: int, done: int, command: str, voice: Voice | None) -> None:
    """Ends the process as the signal asks for, once all is saved."""
    name = signal.Signals(received).name
    when = f"after step {done}, which is saved" if done else "before the first step"
    message = f"Stopped by {name} {when}."
    if voice is not None:
        voice.say(message)
        voice.say_to_copy(f"Go on with: {command}")
    if received == signal.SIGINT:
        raise KeyboardInterrupt(f"{message} Go on with --resume.")
    raise SystemExit(128 + received)
