"""A run from its recipe to ``backbone.safetensors``: what is checked, what is started, and how it ends."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import logging
import math
import re
import shutil
import signal
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import lightning.pytorch as pl
import numpy as np
import torch
from filelock import Timeout
from lightning.fabric.plugins.environments import LightningEnvironment
from lightning.pytorch.strategies import DDPStrategy
from rich.console import Console
from torch import nn
from torch.utils.data import Dataset

from densecl.allocator import keep_freed_memory
from densecl.augment import PhotometricSettings, draw_photometrics
from densecl.errors import UserError
from densecl.files import free_bytes, lock
from densecl.images.loader import make_loader
from densecl.images.pairs import CropPairDataset, LocalCrops
from densecl.images.quarantine import Quarantine
from densecl.images.sampler import StepSampler
from densecl.interrupts import Interrupts
from densecl.model import save_backbone
from densecl.names import shown
from densecl.progress import Screen, duration
from densecl.recipe import LENGTHS, RESTS_ON, Recipe, flag, parse_time, read_recipe, write_recipe
from densecl.training import automatic
from densecl.training.checkpoints import try_saving, writing
from densecl.training.diagnosis import FixedPairs
from densecl.training.environment import Placed, find_world, node_rank, settle_devices
from densecl.training.launch import check_not_importing, launch, tell_parent
from densecl.training.logs import start_loggers, threads_of_loggers_quiet
from densecl.training.module import DenseCLModule
from densecl.training.parts import Parts, build, chosen_method
from densecl.training.peers import Peers
from densecl.training.recorder import Clock, Recorder
from densecl.training.schedules import Schedules
from densecl.views import Photometrics

#: Settings that may be others when a run is resumed: how long it is, and what does not bear on what is learned.
FREE = frozenset(
    (
        *LENGTHS,
        "settled",
        "data",  # its images are compared, see `build`
        "devices",
        "nodes",
        "distributed_timeout",
        "workers",
        "read_timeout",
        "max_image_pixels",
        "compile",
        "checkpoint_activations",
        "cache",
        "log_every",
        "checkpoint_every",
        "checkpoint_minutes",
        "loggers",
    )
)

#: Files that a run has before its first checkpoint. A folder with nothing else can be begun anew.
EARLY = frozenset(
    ("recipe.yaml", "metrics.csv", "match_accuracy.csv", "quarantine.csv", "tensorboard", "wandb", "mlruns", ".lock")
)

#: What a run of before there was the setting did. Its recipe.yaml says nothing of it.
BEFORE_THE_SETTING = {"freeze_norm_statistics": False, "brightness": "scale"}

#: Seconds to wait for a run's folder: those that read images for a killed run take this long to notice and leave.
LEAVING = 10.0


class RunResult(NamedTuple):
    """How a run ended."""

    out: Path
    backbone: Path  # the result: safetensors, with architecture, mean and std in its metadata
    steps: int  # done in all
    metrics: dict[str, float | int]  # the last row of metrics.csv; empty if there was nothing left to do


def pretrain(
    recipe: Recipe,
    out: Path,
    *,
    resume: bool = False,
    dataset: Dataset[Any] | None = None,
    backbone: nn.Module | None = None,
) -> RunResult:
    """Runs a recipe and leaves the result in `out`.

    On a CPU this process keeps the memory of freed tensors from then on (`allocator.keep_freed_memory`).

    Args:
        recipe: all settings. What is "auto" or None is settled here and recorded in ``out/recipe.yaml``.
        out: folder of the run, see contract in the documentation.
        resume: go on from the last checkpoint in `out`; from the beginning if there is none. All settings that
            bear on what is learned must be those of the run; its length may change: a longer run follows
            the schedules of its new length from where it stands.
        dataset: instead of ``recipe.data``, a map-style data set of images.
        backbone: instead of ``recipe.backbone``, a module that returns a feature map. It is trained in place, but
            with several devices a copy is.

    Raises:
        UserError: whatever the caller can put right.
        KeyboardInterrupt: on Ctrl-C, after a checkpoint was saved.
        SystemExit: on SIGTERM and other signals that ask to stop (`interrupts.STOPPING`), after a checkpoint was
            saved; the code is 128 plus the signal's number, as a shell reports it: 143 for SIGTERM.
    """
    check_not_importing()
    out = Path(out)
    _keep_memory()
    world = find_world()
    recipe = settle_devices(recipe)
    assert isinstance(recipe.nodes, int)
    rank = node_rank(recipe.nodes) if world is None else world.rank
    first = rank == 0
    console = Console(file=Screen(), quiet=not first)  # pyright: ignore[reportArgumentType]
    say = functools.partial(console.print, highlight=False, soft_wrap=True, markup=False)
    with contextlib.ExitStack() as held:
        held.enter_context(_quiet())
        held.enter_context(threads_of_loggers_quiet())
        # The caller's random numbers stay as they were; a GPU that was not used yet has none, and is not started here.
        used = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
        held.enter_context(torch.random.fork_rng(devices=used))
        peers = held.enter_context(Peers(world, _seconds_to_wait(recipe), _show))
        _check_machine(recipe)
        if first or resume:  # the others of a resumed run must come to the same settings
            recipe = _agree_with_past(recipe, out, resume)
        with _memory_explained(recipe):
            parts, reasons = build(recipe, out if resume else None, dataset, backbone)
        recipe = parts.recipe
        held.enter_context(_memory_explained(recipe, resumed=out if parts.start_step else None))
        _check_length(parts, out)
        if first:
            if not held.enter_context(_claimed(out)):
                reasons.append(f"warning: the file system of {out} has no locks; start no second run in that folder")
            with writing(out / "recipe.yaml"):
                if not resume:
                    _check_free(out)  # once more, now that nobody else writes here
                    _clear(out)
                _check_space(parts, out)
                write_recipe(recipe, out / "recipe.yaml")
            try_saving(out / "checkpoints" / "last.ckpt")
        peers.first_is_done("the folder")
        _introduce(parts, reasons, out, say)
        if parts.complete:
            say("This run is complete. To extend it, give more --epochs, --steps or --time-limit with --resume.")
            result = RunResult(out, out / "backbone.safetensors", parts.start_step, {})
            if first:  # the last time it may have failed, and an earlier one lie there
                with writing(result.backbone):
                    save_backbone(parts.model.backbone, result.backbone, parts.normalization)
            return result
        if recipe.processes == 1 or world is not None:
            result = train(parts, out, console if first else None, peers)
        else:
            del parts  # each process makes its own
            assert isinstance(recipe.devices, int) and isinstance(recipe.nodes, int)
            arguments = recipe, out, resume, dataset, backbone
            result = launch(_train_in_process, recipe.devices, *arguments, nodes=recipe.nodes, node=rank)
    say(f"Done after {result.steps} steps. The backbone is {shown(result.backbone)}")
    return result


def _train_in_process(
    recipe: Recipe, out: Path, resume: bool, dataset: Dataset[Any] | None, backbone: nn.Module | None
) -> RunResult:
    """The part of `pretrain` that each of several processes does."""
    _keep_memory()
    world = find_world()
    assert world is not None
    console = Console(file=Screen()) if world.rank == 0 else None  # pyright: ignore[reportArgumentType]
    with _quiet(), threads_of_loggers_quiet(), Peers(world, _seconds_to_wait(recipe), tell_parent) as peers:
        with _memory_explained(recipe):
            parts, _ = build(recipe, out if resume else None, dataset, backbone)
        with _memory_explained(parts.recipe, resumed=out if parts.start_step else None):
            return train(parts, out, console, peers)


def _seconds_to_wait(recipe: Recipe) -> float:
    return parse_time(recipe.distributed_timeout, "distributed_timeout")


def _show(text: str) -> None:
    """Where a process has to be ended in the midst of something."""
    print(f"densecl: error: {text}", file=sys.stderr, flush=True)


def _keep_memory() -> None:
    if not torch.cuda.is_available():  # where layers are computed in other memory
        keep_freed_memory()


# --- what is checked ----------------------------------------------------------------------------------


def _check_machine(recipe: Recipe) -> None:
    if recipe.sync_batch_norm and not torch.cuda.is_available():
        raise UserError("--sync-batch-norm needs GPUs: torch has no synchronized batch norm on the CPU.")
    assert isinstance(recipe.devices, int)
    if torch.cuda.is_available() and recipe.devices > torch.cuda.device_count():
        raise UserError(
            f"--devices {recipe.devices}: this process sees {torch.cuda.device_count()} GPU(s) on this machine. (A"
            " cluster must give the GPUs to the machine, not one to each task.)"
        )
    if recipe.time_limit is not None and recipe.schedule_per == "epoch":
        raise UserError("--schedule-per epoch needs a length in --epochs or --steps; with --time-limit take 'step'.")


def _agree_with_past(recipe: Recipe, out: Path, resume: bool) -> Recipe:
    """The recipe, what is "auto" in it taken from the run in `out` if that is resumed.

    Raises:
        UserError: if `out` is taken, or the run in it has other settings.
    """
    if out.exists() and not out.is_dir():
        raise UserError(f"--out {out} is a file, not a folder.")
    if not resume:
        _check_free(out)
        return recipe
    if not (out / "recipe.yaml").is_file():
        return recipe
    past = read_recipe(out / "recipe.yaml")
    unsaid = {name: value for name, value in BEFORE_THE_SETTING.items() if getattr(past, name) == "auto"}
    past = dataclasses.replace(past, **unsaid)
    open_to_choice = {"mean": None, "std": None}
    inherited = {
        name: getattr(past, name) for name in RESTS_ON if getattr(recipe, name) == open_to_choice.get(name, "auto")
    }
    same = {name for name in past.settled if inherited.get(name, getattr(recipe, name)) == getattr(past, name)}
    same |= {"devices", "nodes"}.intersection(recipe.settled)
    recipe = dataclasses.replace(recipe, **inherited, settled=tuple(sorted(same)))
    differences = [
        f"{flag(field.name)} {_shown(getattr(past, field.name))} -> {_shown(getattr(recipe, field.name))}"
        for field in dataclasses.fields(Recipe)
        if field.name not in FREE and getattr(past, field.name) != getattr(recipe, field.name)
    ]
    if differences:
        begun = (out / "checkpoints" / "last.ckpt").is_file()
        other = f"start a new run with --init {out}" if begun else "begin it anew without --resume"
        raise UserError(f"The run in {out} has other settings: {'; '.join(differences)}. Give its own, or {other}.")
    return recipe


def _check_free(out: Path) -> None:
    taken = [path.name for path in out.iterdir() if not _early(path)] if out.is_dir() else []
    if taken:
        hint = "Go on with --resume, or" if (out / "recipe.yaml").is_file() else "It holds other files:"
        raise UserError(f"--out {out} exists already. {hint} choose another folder.")


def _early(path: Path) -> bool:
    """Whether this is something that a run leaves before its first checkpoint."""
    if path.name == "checkpoints":
        return path.is_dir() and not any(path.iterdir())
    return path.name in EARLY or path.name.startswith(".quarantine.csv") or path.suffix == ".part"


@contextlib.contextmanager
def _claimed(out: Path) -> Iterator[bool]:
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


def _clear(out: Path) -> None:
    """Removes what a run that never reached a checkpoint has left."""
    if (out / "recipe.yaml").is_file():
        for path in out.iterdir():
            if path.name != ".lock":
                shutil.rmtree(path) if path.is_dir() else path.unlink()


def _check_length(parts: Parts, out: Path) -> None:
    """
    Raises:
        UserError: if a resumed run would have to go back.
    """
    total = parts.total_steps
    if total is not None and parts.start_step > total:
        raise UserError(
            f"The run in {out} has done {parts.start_step} steps, more than the {total} that it shall have."
            " It can be made longer, not shorter."
        )


def _check_space(parts: Parts, out: Path) -> None:
    """
    Raises:
        UserError: if the disk has no room for a checkpoint, which nobody should learn after an hour of training.
    """
    state = sum(tensor.nbytes for tensor in parts.model.state_dict().values() if isinstance(tensor, torch.Tensor))
    trained = sum(parameter.nbytes for parameter in parts.model.parameters() if parameter.requires_grad)
    backbone = sum(tensor.nbytes for tensor in parts.model.backbone.state_dict().values())
    moments = 2 if parts.recipe.optimizer == "adamw" else 1
    # Each is written beside the one before.
    needed = state + moments * trained + backbone
    standing = sum(file.stat().st_size for file in out.glob("checkpoints/last.ckpt"))
    free = free_bytes(out)
    if free is not None and free < 2 * needed - standing:
        raise UserError(
            f"--out {out}: {free / 2**20:.0f} MiB are free on this disk, but a run of this model needs"
            f" {2 * needed / 2**20:.0f} MiB for its checkpoints. Free some, or choose another disk."
        )


# --- the training itself ------------------------------------------------------------------------------


def train(parts: Parts, out: Path, console: Console | None, peers: Peers) -> RunResult:
    """Trains on Lightning's Trainer, in this process, which may be one of several.

    Args:
        parts: from `build`.
        out: the run's folder.
        console: on the first process, where to show how it goes.
        peers: the other processes.

    Raises:
        UserError: for NaN, collapse, too many bad images, a full disk, want of memory.
        KeyboardInterrupt, SystemExit: see `pretrain`.
    """
    recipe = parts.recipe
    processes, world = recipe.processes, peers.world
    assert isinstance(recipe.devices, int) and isinstance(recipe.nodes, int)
    on_gpu = torch.cuda.is_available()
    assert isinstance(recipe.batch_size, int) and isinstance(recipe.workers, int)
    assert isinstance(recipe.learning_rate, float)
    assert isinstance(recipe.warmup_epochs, float) and isinstance(recipe.weight_decay, float)
    assert recipe.key_momentum != "auto" and recipe.key_momentum_end != "auto"
    assert recipe.channels_last != "auto"
    assert recipe.temperature != "auto" and recipe.teacher_temperature != "auto"

    local_crops = None
    if recipe.local_crops:
        assert isinstance(recipe.local_crop_size, int)
        local_crops = LocalCrops(
            count=recipe.local_crops,
            image_size=recipe.local_crop_size,
            crop_scale=recipe.local_crop_scale,
            draw_photometrics=_photometrics(recipe, recipe.local_crop_size),
        )
    pairs = CropPairDataset(
        parts.source,
        image_size=recipe.image_size,
        crop_scale=recipe.crop_scale,
        flip_probability=recipe.flip_probability,
        draw_photometrics=_photometrics(recipe, recipe.image_size),
        seed=recipe.seed,
        local_crops=local_crops,
    )
    sampler = StepSampler(
        len(parts.source),
        recipe.batch_size // recipe.accumulate,
        seed=recipe.seed,
        start_step=parts.start_step * recipe.accumulate,
        stop_step=None if parts.total_steps is None else parts.total_steps * recipe.accumulate,
        rank=0 if world is None else world.rank,
        world_size=processes,
    )
    clock = Clock(parts.seconds)
    module = DenseCLModule(
        parts.model,
        parts.normalization,
        Schedules(
            learning_rate=recipe.learning_rate,
            warmup_steps=recipe.warmup_epochs * float(parts.steps_per_epoch),
            warmup_share=0.1 if parts.time_limit is not None and "warmup_epochs" in recipe.settled else math.inf,
            steps_per_epoch=parts.steps_per_epoch if recipe.schedule_per == "epoch" else None,
            dense_weight=recipe.dense_weight,
            dense_warmup_steps=recipe.dense_warmup_steps,
            key_momentum=recipe.key_momentum,
            key_momentum_end=recipe.key_momentum_end,
            temperature=recipe.temperature,
            temperature_max=recipe.temperature_max,
            temperature_period=recipe.temperature_period,
            teacher_temperature=recipe.teacher_temperature,
            teacher_warmup=recipe.teacher_warmup,
        ),
        progress=functools.partial(_progress, clock=clock, time_limit=parts.time_limit, total_steps=parts.total_steps),
        optimizer=recipe.optimizer,
        momentum=recipe.momentum,
        weight_decay=recipe.weight_decay,
        start_step=parts.start_step,
        optimizer_state=parts.optimizer_state,
        channels_last=recipe.channels_last,
        seed=recipe.seed,
        shift_brightness=recipe.brightness == "shift",
    )
    if recipe.compile:
        parts.model.compile_encoders()
    interrupts = Interrupts()
    quarantine = Quarantine(out / "quarantine.csv", len(parts.source))
    loggers = []
    if console is not None:
        loggers = start_loggers(recipe.loggers, out, parts.start_step, dataclasses.asdict(recipe))
    recorder = Recorder(
        out,
        source=parts.source,
        batch_size=recipe.batch_size,
        total_steps=parts.total_steps,
        time_limit=parts.time_limit,
        clock=clock,
        log_every=recipe.log_every,
        checkpoint_every=recipe.checkpoint_every,
        checkpoint_minutes=recipe.checkpoint_minutes,
        interrupts=interrupts,
        quarantine=quarantine,
        fixed_pairs=FixedPairs(pairs, parts.normalization, quarantine, shift_brightness=recipe.brightness == "shift"),
        loggers=loggers,
        console=console,
        peers=peers,
    )
    trainer = pl.Trainer(
        accelerator="cuda" if on_gpu else "cpu",
        devices=recipe.devices,
        num_nodes=recipe.nodes,
        strategy=DDPStrategy(gradient_as_bucket_view=True, timeout=peers.patience) if processes > 1 else "auto",
        plugins=LightningEnvironment() if world is None else Placed(world),
        precision="bf16-mixed" if recipe.precision == "bf16" else "32-true",
        max_epochs=1,  # to Lightning; the sampler's epochs follow each other without a pause for new workers
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
    loader = make_loader(pairs, sampler, workers=recipe.workers, pin_memory=on_gpu, read_timeout=recipe.read_timeout)
    interrupts.listen()
    try:
        trainer.fit(module, loader)
    except SystemExit as error:  # what Lightning makes of a second Ctrl-C
        if isinstance(error.__context__, KeyboardInterrupt):
            raise KeyboardInterrupt from None
        raise
    finally:
        recorder.close()
        interrupts.ignore()
    if recorder.stopped_by is not None:
        peers.agreed_to_stop = True
        name = signal.Signals(recorder.stopped_by).name
        message = f"Stopped by {name} after step {recorder.done}, which is saved. Go on with --resume."
        if console is not None:
            console.print(message, highlight=False, soft_wrap=True, markup=False)
        if recorder.stopped_by == signal.SIGINT:
            raise KeyboardInterrupt(message)
        raise SystemExit(128 + recorder.stopped_by)
    return RunResult(out, out / "backbone.safetensors", recorder.done, recorder.row)


def _photometrics(recipe: Recipe, image_size: int) -> Callable[[np.random.Generator], Photometrics]:
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


def _progress(step: int, *, clock: Clock, time_limit: float | None, total_steps: int | None) -> float:
    """The share of the run that lies before a step."""
    if time_limit is not None:
        return min(1.0, clock.seconds / time_limit)
    assert total_steps is not None
    return step / total_steps


# --- what the user is told ----------------------------------------------------------------------------


def _introduce(parts: Parts, reasons: list[str], out: Path, say: Callable[[str], None]) -> None:
    recipe = parts.recipe
    data = f"{shown(recipe.data)}: {len(parts.source)} images"
    length = f"{parts.total_steps} steps" if parts.time_limit is None else duration(parts.time_limit)
    rows, cols = parts.grid
    say(f"{data}, {float(parts.steps_per_epoch):.4g} steps an epoch at batch size {recipe.batch_size}")
    say(f"{recipe.method}, {parts.model.backbone.name} at {recipe.image_size} px: a feature map of {rows}x{cols} cells")
    for reason in reasons:
        say(f"  {reason}")
    begun = f", going on after step {parts.start_step}" if parts.start_step else ""
    say(f"{length} into {shown(out)}{begun}")


def _shown(value: object) -> str:
    return " ".join(map(str, value)) if isinstance(value, tuple) else str(value)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Lightning's remarks on our way of using it are not for our users; its errors are."""
    loggers = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric", "pytorch_lightning")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"(lightning|pytorch_lightning)\.")
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)


def _how_a_worker_died(signal_text: str | None, recipe: Recipe) -> str:
    """What to tell of a process that read images and is gone, by the system's words for the signal that ended it."""
    fewer = f"fewer --workers than {recipe.workers}, such as 0"
    if signal_text == "Bus error":
        return (
            "A process that reads images was killed, most likely for want of shared memory. In a container give more"
            f" ('docker run --shm-size 8g'), or try {fewer}."
        )
    if signal_text == "Killed":
        return (
            "A process that reads images was killed, most likely by the system for want of memory. Go on with"
            f" --resume; {fewer}, need less."
        )
    how = f"died of a signal ({signal_text})" if signal_text else "ended before it could say why"
    return (
        f"A process that reads images {how}; what it wrote itself stands above. With --workers 0 the images are read by"
        " the training itself, which then shows where."
    )


@contextlib.contextmanager
def _memory_explained(recipe: Recipe, *, resumed: Path | None = None) -> Iterator[None]:
    """One message for every way of running out of memory.

    Args:
        recipe: of the run.
        resumed: the folder of a run that goes on, and so keeps its sizes.

    Raises:
        UserError: with what to try.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:  # torch.OutOfMemoryError is a RuntimeError
        said = f"{error.__cause__} {error}"  # torch notices it in two ways, of which one knows the signal
        worker = re.search(r"DataLoader worker .*?(?:killed by signal: (.*?)\. |exited unexpectedly)", said)
        if worker:
            raise UserError(_how_a_worker_died(worker[1], recipe)) from error
        if not isinstance(error, (torch.OutOfMemoryError, MemoryError)) and not re.search(
            r"out of memory|can't allocate memory|not enough memory", str(error)
        ):
            raise
        at = f"Out of memory at --batch-size {recipe.batch_size} and --image-size {recipe.image_size}"
        if resumed is not None:
            raise UserError(
                f"{at}, which a resumed run keeps. Give it a device with more memory, more --devices, or where"
                f" there is no batch norm --checkpoint-activations; or start a new run with --init {resumed} and a"
                " smaller --batch-size."
            ) from error
        if recipe.batch_size == "auto":  # before it was chosen, with the rest of what is automatic
            sizes = [f"--batch-size {automatic.SMALLEST_BATCH // 2}"]
        else:
            sizes = [f"--batch-size {max(1, recipe.batch_size // 2)}"]
            images = recipe.images_at_once
            # Statistics over the batch, which some methods take, need two images in a part, and split more.
            if images % 2 == 0 and images >= 4 and recipe.key_norm != "split":
                sizes.append(f"--accumulate {recipe.accumulate * 2}")
            if chosen_method(recipe)[0] == "simclr":
                sizes.append("--method moco")  # keeps the activations of one view
        if recipe.image_size >= 64:
            sizes.append(f"--image-size {recipe.image_size * 3 // 4 // 32 * 32}")
        if recipe.output_stride in (8, 16):
            sizes.append(f"--output-stride {recipe.output_stride * 2}")
        raise UserError(f"{at}. Try one of: {', '.join(sizes)}.") from error
