"""A run from its recipe to ``backbone.safetensors``: what is opened, what is started, and how it ends."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import nn
from torch.utils.data import Dataset

from densecl.allocator import keep_freed_memory
from densecl.config.files import write_recipe
from densecl.config.recipe import Recipe, Resolved
from densecl.config.setting import seconds_in
from densecl.config.settings import Settings
from densecl.errors import UserError
from densecl.evaluation.labeled import size_to_give
from densecl.model import save_backbone
from densecl.names import counted, few, shown
from densecl.progress import Screen, duration
from densecl.training.build import Parts, build
from densecl.training.checkpoints import try_saving, writing
from densecl.training.device import choose_device, why_not
from densecl.training.environment import settle_devices
from densecl.training.explanations import lightning_quiet, memory_explained
from densecl.training.fit import RunResult, fit
from densecl.training.headline import rows_until, stalled
from densecl.training.launch import check_not_importing, launch, tell_parent
from densecl.training.learned import next_steps, verdict
from densecl.training.logs import threads_of_loggers_quiet
from densecl.training.peers import Peers
from densecl.training.probe import probed_images
from densecl.training.provenance import after
from densecl.training.run_folder import agree_with_past, check_space, claimed, clear
from densecl.training.vacant import check_folder, check_free
from densecl.training.versions import made_with
from densecl.training.voice import Voice
from densecl.training.world import find_world, node_rank
from densecl.verdicts.record import read_record
from densecl.verdicts.telling import at_the_end
from densecl.version import __version__
from densecl.watched_file import WATCHED


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
        recipe: all settings. What is "auto" is resolved and recorded in ``out/recipe.yaml``.
        out: folder of the run, see "What a run leaves" in the README.
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
    asked = settle_devices(recipe)
    rank = node_rank(asked.nodes) if world is None else world.rank
    first = rank == 0
    voice = Voice(Console(file=Screen(), quiet=not first))  # pyright: ignore[reportArgumentType]
    with contextlib.ExitStack() as held:
        held.enter_context(voice.errors_logged())
        held.enter_context(lightning_quiet())
        held.enter_context(threads_of_loggers_quiet())
        # The caller's random numbers stay as they were; a GPU that was not used yet has none, and is not started here.
        used = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
        held.enter_context(torch.random.fork_rng(devices=used))
        peers = held.enter_context(Peers(world, seconds_in(asked.distributed_timeout), _show))
        _check_machine(asked)
        check_folder(out)
        if first or resume:  # the others of a resumed run must come to the same settings
            asked = agree_with_past(asked, out, resume)
        with memory_explained(asked):
            parts, reasons = build(asked, out if resume else None, dataset, backbone)
        resolved = parts.recipe
        held.enter_context(memory_explained(resolved, resumed=out if parts.timeline.start_step else None))
        _check_length(parts, out)
        if first:
            reasons += _note_on_device()
            reasons += _prepare(parts, out, resume, held)
            voice.open_log(out)
            for line in made_with():
                voice.log(line)
        peers.first_is_done("the folder")
        _introduce(parts, reasons, out, voice.say)
        if (complete := _why_complete(parts, out)) is not None:
            voice.say(complete)
            result = RunResult(out, out / "backbone.safetensors", parts.timeline.start_step, {})
            if first:  # writing it may have failed at the end of the run, and an older file lie there
                said = after(parts.timeline.start_step, parts.origin)
                with writing(result.backbone):
                    save_backbone(parts.model.backbone, result.backbone, parts.normalization, said)
            return result
        if resolved.processes == 1 or world is not None:
            result = fit(parts, out, voice if first else None, peers)
        else:
            del parts  # each process makes its own
            arguments = resolved, out, resume, dataset, backbone
            result = launch(_fit_in_process, resolved.devices, *arguments, nodes=resolved.nodes, node=rank)
        _conclude(resolved, result, voice)
    return result


def _fit_in_process(
    resolved: Resolved, out: Path, resume: bool, dataset: Dataset[Any] | None, backbone: nn.Module | None
) -> RunResult:
    """What each of several processes does of `pretrain`."""
    _keep_memory()
    world = find_world()
    assert world is not None
    voice = None
    if world.rank == 0:
        voice = Voice(Console(file=Screen()))  # pyright: ignore[reportArgumentType]
        voice.open_log(out)
    patience = seconds_in(resolved.distributed_timeout)
    with lightning_quiet(), threads_of_loggers_quiet(), Peers(world, patience, tell_parent) as peers:
        with memory_explained(resolved):
            parts, _ = build(resolved, out if resume else None, dataset, backbone)
        with memory_explained(resolved, resumed=out if parts.timeline.start_step else None):
            return fit(parts, out, voice, peers)


def _show(text: str) -> None:
    """For a process that has to be ended in the midst of something."""
    print(f"densecl: error: {text}", file=sys.stderr, flush=True)


def _keep_memory() -> None:
    if not torch.cuda.is_available():  # where layers are computed in other memory
        keep_freed_memory()


def _note_on_device() -> list[str]:
    """A line where a GPU of Apple's is there, but cannot be used."""
    if torch.cuda.is_available() or not torch.backends.mps.is_available():
        return []
    reason = why_not(torch.device("mps"))
    return [] if reason is None else [f"warning: computed on the CPU, because Apple's GPU cannot do it: {reason}"]


def _check_machine(asked: Settings[Any]) -> None:
    if asked.sync_batch_norm and not torch.cuda.is_available():
        raise UserError("--sync-batch-norm needs GPUs: torch has no synchronized batch norm on the CPU.")
    if asked.processes > 1 and choose_device() == "mps":
        raise UserError(f"--devices {asked.devices}: Apple's GPU is one. Leave --devices out.")
    if torch.cuda.is_available() and asked.devices > torch.cuda.device_count():
        raise UserError(
            f"--devices {asked.devices}: this process sees {counted(torch.cuda.device_count(), 'GPU')} on this"
            " machine. (A cluster must give the GPUs to the machine, not one to each task.)"
        )


def _why_complete(parts: Parts, out: Path) -> str | None:
    """What to tell the user if there is nothing left to do; None if there is."""
    timeline = parts.timeline
    if timeline.complete:
        return "This run is complete. To extend it, give more --epochs, --steps or --time-limit with --resume."
    rows = rows_until(out / WATCHED, timeline.start_step) if timeline.start_step else []
    found = stalled(rows, parts.recipe.stop_early)
    if found is None or found.moments[-1].step != timeline.start_step:
        return None
    return (
        f"This run is complete: it stopped early after step {timeline.start_step}, because nothing was gained since"
        f" step {found.best.step}. To go on anyway: --stop-early none with --resume."
    )


def _check_length(parts: Parts, out: Path) -> None:
    """
    Raises:
        UserError: if a resumed run would have to go back.
    """
    start, total = parts.timeline.start_step, parts.timeline.total_steps
    if total is not None and start > total:
        raise UserError(
            f"The run in {out} has done {counted(start, 'step')}, more than the {total} that it shall have."
            " It can be made longer, not shorter."
        )


def _prepare(parts: Parts, out: Path, resume: bool, held: contextlib.ExitStack) -> list[str]:
    """Makes the run's folder, with the recipe in it, and holds its lock until `held` ends.

    Returns:
        A warning, if the file system has no locks.
    """
    locked = held.enter_context(claimed(out))
    with writing(out / "recipe.yaml"):
        if not resume:
            check_free(out)  # once more, now that nobody else writes here
            clear(out)
        check_space(parts.model, parts.recipe, out)
        write_recipe(parts.recipe, out / "recipe.yaml", _heading(parts))
    try_saving(out / "checkpoints" / "last.ckpt")
    return [] if locked else [f"warning: the file system of {out} has no locks; start no second run in that folder"]


def _heading(parts: Parts) -> tuple[str, ...]:
    """What stands first in recipe.yaml."""
    recipe, timeline = parts.recipe, parts.timeline
    length = counted(timeline.total_steps, "step") if timeline.total_steps else f"{recipe.time_limit} of time"
    return (f"densecl {__version__}: {recipe.method}, {recipe.backbone} at {recipe.image_size} px, {length}.",)


def _introduce(parts: Parts, reasons: Sequence[str], out: Path, say: Callable[[str], None]) -> None:
    """What the run is going to do, and why."""
    recipe, timeline = parts.recipe, parts.timeline
    data = f"{few([shown(each) for each in recipe.sources])}: {counted(len(parts.source), 'image')}"
    limit = timeline.time_limit
    length = counted(str(timeline.total_steps), "step") if limit is None else duration(limit)
    say(
        f"{data}, {counted(f'{float(timeline.steps_per_epoch):.4g}', 'step')} an epoch"
        f" at batch size {recipe.batch_size}"
    )
    for line in (*parts.outlook, *parts.follows):
        say(line)
    for reason in reasons:
        say(f"  {reason}")
    begun = f", going on after step {timeline.start_step}" if timeline.start_step else ""
    say(f"{length} into {shown(out)}{begun}")


def _conclude(resolved: Resolved, result: RunResult, voice: Voice) -> None:
    """What came out, and what to do with it."""
    voice.say(f"Done after {counted(result.steps, 'step')}. The backbone is {shown(result.backbone)}")
    for line in verdict(result.out, random_start=resolved.init is None, probed=probed_images(resolved)):
        voice.say(line)
    if (still := at_the_end(read_record(result.out))) is not None:
        voice.say(still)
    labeled = resolved.probe
    size = None if labeled is None else size_to_give(labeled, channels=resolved.channels)
    for line in next_steps(resolved, result.out, size):
        voice.say_to_copy(line)
