"""`densecl check`: what a run would meet, and what should be put right before it."""

from __future__ import annotations

import math
import os
import re
from pathlib import Path
from typing import Any, NamedTuple

import torch
from rich.console import Console
from torch import nn
from torch.utils.data import Dataset

from densecl.checking import findings
from densecl.checking.copies import Copies
from densecl.checking.cost import Cost, measure
from densecl.checking.survey import Survey, survey
from densecl.config.outlook import outlook
from densecl.config.recipe import Recipe, Resolved
from densecl.config.resolve import Resolution, resolve
from densecl.config.setting import seconds_in
from densecl.cores import available_cores
from densecl.errors import UserError
from densecl.images.cache import CachedSource
from densecl.images.companions import suspects, told
from densecl.images.lists import write_list
from densecl.images.paths import by_folder
from densecl.images.sources import FileSource, ImageSource
from densecl.names import counted, few, shown, to_cell
from densecl.normalization import Normalization
from densecl.progress import Display, Screen, duration
from densecl.training.build import Parts, make_model
from densecl.training.environment import settle_devices
from densecl.training.explanations import memory_explained
from densecl.training.inspect import Found, inspect
from densecl.training.probe import ProbeLabels, open_probe_labels
from densecl.training.timeline import Timeline
from densecl.training.vacant import check_makeable

#: Images that cannot be read of which the reason is shown; a list has all.
SHOWN = 5

#: Above this a run takes longer than a night, and whoever asked for nothing is told how to have a shorter one.
LONG_SECONDS = 12 * 3600.0

#: An estimated time is rounded to a multiple of one of these, in seconds.
ROUND = (1, 5, 10, 30, 60, 5 * 60, 10 * 60, 30 * 60, 3600, 6 * 3600, 24 * 3600)


class Checked(NamedTuple):
    """What was found."""

    problems: tuple[str, ...]  # a line for each thing to put right before a run
    survey: Survey
    copies: Copies
    resolved: Resolved | None  # what a run would do; None: the settings do not go together
    cost: Cost | None


def check(recipe: Recipe, usable: Path | None, dataset: Dataset[Any] | None, backbone: nn.Module | None) -> Checked:
    """Look through images and settings, and tell.

    Args:
        recipe: of the run that is planned.
        usable: a file for a list of the images that are of use.
        dataset: instead of ``recipe.data``.
        backbone: instead of ``recipe.backbone``. It is changed.

    Raises:
        UserError: no images, an unknown backbone, weights that do not fit, a list that cannot be written.
    """
    console = Console(file=Screen(), highlight=False, soft_wrap=True, markup=False, emoji=False)  # pyright: ignore[reportArgumentType]
    if usable is not None and (usable.suffix.lower() != ".txt" or usable.exists()):
        why = "exists already. Choose another name" if usable.exists() else "is a text file. Let its name end with .txt"
        raise UserError(f"--usable {shown(usable)} {why}.")
    if usable is not None:
        check_makeable(usable.parent, "--usable: its folder")
    asked = settle_devices(recipe)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(asked.seed)
        labels = open_probe_labels(asked)
        found = inspect(asked, None, dataset, backbone)
        source = found.source.source if isinstance(found.source, CachedSource) else found.source
        if usable is not None and not isinstance(source, FileSource):
            raise UserError("--usable writes a list of files. It cannot be used with --tile or a data set in Python.")
        resolution, problems = _resolved(asked, found, labels)
        console.print(f"{few([shown(each) for each in asked.sources])}: {counted(len(source), 'image')}")
        for note in found.notes:
            if not note.startswith("warning: "):
                console.print(note)
        if isinstance(source, FileSource) and not all(map(os.path.isdir, asked.sources)):
            problems += _no_photographs(source)
        seen, copies = _look(source, resolution, asked, console)
        problems += findings.problems(
            seen,
            copies,
            image_size=asked.image_size,
            max_bad_images=asked.max_bad_images,
            listed=usable is not None,
        )
        if usable is not None:
            _write_usable(usable, source, seen, copies, console)
        elif isinstance(source, FileSource) and any(findings.reasons_to_leave_out(seen, copies, [""] * len(source))):
            console.print("which images these are: --usable FILE writes a list that says it")
        cost = None
        if resolution is not None:
            cost, costly = _tell_run(resolution, found, console)
            problems += costly
    console.print("")
    for number, problem in enumerate(problems, 1):
        console.print(f"to put right {number}: {problem}")
    if not problems:
        console.print("Nothing to put right.")
    return Checked(tuple(problems), seen, copies, None if resolution is None else resolution.resolved, cost)


def _resolved(asked: Any, found: Found, labels: ProbeLabels | None) -> tuple[Resolution | None, list[str]]:
    """What a run would choose, and what does not go together or is likely not meant."""
    problems = [note.removeprefix("warning: ") for note in found.notes if note.startswith("warning: ")]
    try:
        resolution = resolve(asked, found.facts)
    except UserError as error:
        return None, [error.args[0], *problems]
    resolved = resolution.resolved
    if labels is not None:
        try:
            labels.probe(found.backbone, Normalization(resolved.mean, resolved.std))
        except UserError as error:
            problems.append(error.args[0])
    return resolution, [*problems, *resolution.warnings]


def _no_photographs(source: FileSource) -> list[str]:
    """Label maps and the like in a list or a glob, from which nothing was left out."""
    paths = by_folder(source.paths)
    root = Path(os.path.commonpath([os.fsdecode(paths.folders.get(folder)) for folder in range(len(paths.counts))]))
    out, doubtful = suspects(paths, root)
    lines = [(out, "are among the images"), (doubtful, "are perhaps no photographs")]
    return [
        f"{told(kinds)} {what}. Take them out of the list, or give --data the folder of the photographs."
        for kinds, what in lines
        if kinds
    ]


def _look(source: ImageSource, resolution: Resolution | None, asked: Any, console: Console) -> tuple[Survey, Copies]:
    """Reads every image, and tells what they are."""
    workers = 2 if resolution is None else resolution.resolved.workers
    display = Display(console, len(source), title="reading", what="image")
    progress = _shown_by(display, len(source))
    try:
        seen = survey(source, workers=workers, read_timeout=asked.read_timeout, progress=progress)
    finally:
        display.close()
    copies = Copies(seen)
    for line in findings.remarks(seen, copies, channels=asked.channels):
        console.print(line)
    for index, reason in seen.bad[:SHOWN]:
        console.print(f"  {shown(source.name(index))}: {shown(reason)}")
    rate = seen.images / max(seen.seconds, 1e-9)
    console.print(f"reading: {rate:.3g} images/s with {counted(workers, 'worker')}, {duration(seen.seconds)} in all")
    return seen, copies


def _shown_by(display: Display, images: int) -> Any:
    def progress(done: int) -> None:
        display.step(done, done / images, None)
        if display.stale or done == images:
            display.report(done, (), None)

    return progress


def _write_usable(usable: Path, source: ImageSource, seen: Survey, copies: Copies, console: Console) -> None:
    names = [source.name(index) for index in range(len(source))]
    why = findings.reasons_to_leave_out(seen, copies, [to_cell(name) for name in names])
    heading = "The images that are of use. The others stand behind a #, with the reason."
    missing = write_list(usable, heading, zip(names, why, strict=True))
    kept = sum(reason is None for reason in why) - missing
    console.print(f"{kept} of {len(names)} images are in {shown(usable)}, for pretrain --data")
    if missing:
        console.print(f"{missing} names cannot stand in a list, such as those with a line break")


def _tell_run(resolution: Resolution, found: Found, console: Console) -> tuple[Cost, list[str]]:
    """What a run would do and cost."""
    resolved = resolution.resolved
    console.print("")
    for line in outlook(resolved, found.facts):
        console.print(line)
    for reason in resolution.reasons:
        console.print(f"  {reason}")
    timeline = Timeline.plan(
        found.facts.images,
        resolved.batch_size,
        epochs=resolved.epochs,
        steps=resolved.steps,
        time_limit=None if resolved.time_limit is None else seconds_in(resolved.time_limit),
    )
    parts = Parts(
        resolved,
        found.source,
        make_model(resolved, found.backbone, found.guides),
        Normalization(resolved.mean, resolved.std),
        (),
        timeline,
    )
    with memory_explained(resolved):
        cost = measure(parts)
    step = f"a step of {counted(resolved.batch_size, 'image')} takes about {roughly(cost.step_seconds)}"
    if timeline.total_steps is None:
        steps = seconds_in(resolved.time_limit or "0s") / cost.step_seconds
        epochs = steps / float(timeline.steps_per_epoch)
        console.print(
            f"{step}: about {counted(f'{steps:.0f}', 'step')}, {counted(f'{epochs:.3g}', 'epoch')}, in"
            f" {resolved.time_limit}"
        )
    else:
        whole = timeline.total_steps * cost.step_seconds
        console.print(f"{step}: {counted(timeline.total_steps, 'step')} in about {roughly(whole)}")
        if whole > LONG_SECONDS and resolved.steps is None:
            console.print("shorter: --time-limit 8h, or fewer --epochs")
    if _busy():
        console.print("other programs are at work on this machine: alone, a run is faster than that")
    free = "" if cost.free == math.inf else f", of {_amount(cost.free)} free"
    console.print(f"memory: about {_amount(cost.memory)} a device{free}")
    problems = []
    if cost.memory > cost.free:
        problems.append(
            f"A step needs about {_amount(cost.memory)} of memory, and {_amount(cost.free)} are free. Give a smaller"
            f" --batch-size than {resolved.batch_size}, --accumulate 2, or a smaller --image-size."
        )
    return cost, problems


def _busy() -> bool:
    """Whether more programs want a core than there are, beside this one."""
    try:
        return os.getloadavg()[0] > available_cores() + 1
    except (AttributeError, OSError):  # not everywhere
        return False


def _amount(size: float) -> str:
    return f"{size / 2**30:.2g} GiB" if size >= 2**30 else f"{size / 2**20:.0f} MiB"


def roughly(seconds: float) -> str:
    """A time that was estimated, rounded to about a tenth: "0.43 s", "3 min 30 s", "5 h"."""
    if seconds < 10:
        return f"{seconds:.2g} s"
    step = max(step for step in ROUND if step <= seconds / 10)
    return re.sub(" 0 [a-z]+$", "", duration(step * round(seconds / step)))
