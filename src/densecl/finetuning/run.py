"""`densecl finetune`: a backbone and labels become a detector or a segmenter that is kept."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import shlex
import signal
from pathlib import Path
from typing import Any, NamedTuple

import torch
from rich.console import Console

from densecl.allocator import keep_freed_memory
from densecl.borrowed import seeded
from densecl.errors import UserError
from densecl.evaluation import boxed, labeled
from densecl.evaluation.files import what_there_is
from densecl.evaluation.tasks.task import Context
from densecl.evaluation.weights import Weights, open_weights
from densecl.finetuning.boxes import Boxes
from densecl.finetuning.checkpoint import load_checkpoint
from densecl.finetuning.fit import BEST, CHECKPOINT, LAST, Fit
from densecl.finetuning.pixels import Pixels
from densecl.finetuning.record import Asked, about, agree_with_past, check_free, write_record
from densecl.finetuning.settings import VALIDATION_SPLITS, settled_architecture
from densecl.finetuning.tuned import load_tuned, source_of
from densecl.finetuning.tuning import Tuning
from densecl.interrupts import Interrupts
from densecl.names import counted, listing, shown
from densecl.normalization import Normalization
from densecl.pictures.drawing import save_picture
from densecl.progress import Display, Screen, duration
from densecl.training.checkpoints import try_saving
from densecl.training.run_folder import claimed

TUNINGS: dict[str, type[Tuning]] = {"detection": Boxes, "segmentation": Pixels}

PICTURE = "validation.png"

#: Class names that the first lines of a run list.
NAMED = 10


class TunedRun(NamedTuple):
    """What a fine-tuning has left.

    Attributes:
        out: the folder of the run.
        best: the weights of the best validation.
        last: the weights after the last step.
        best_step: after which step they were best.
        best_scores: of the best weights in validation, in percent.
        last_scores: of the last weights.
        threshold: the least score of a detection, chosen in validation for the best weights; None for segmentation.
    """

    out: Path
    best: Path
    last: Path
    best_step: int
    best_scores: dict[str, float]
    last_scores: dict[str, float]
    threshold: float | None


def finetune(
    weights: str | Path | None,
    task: str | None,
    data: str | Path | None,
    out: str | Path,
    *,
    resume: bool = False,
    backbone: str | None = None,
    **settings: Any,
) -> TunedRun:
    """Fine-tune a detector or a segmenter on labeled images, and keep it in the folder `out`.

    It trains what `evaluate --fine-tune` trains, with the same defaults, data and seeds: the weights after the last
    step score the same. Beside them it keeps those of the best validation.

    Args:
        weights: a run folder, a file of weights, "random", "imagenet", or a name of timm's such as "resnet50.a1_in1k".
        task: "detection" or "segmentation".
        data: a folder of labeled images (docs/evaluate.md says in which layouts).
        out: the folder of the run; made here, and refused when it already holds a run and `resume` is not set.
        resume: go on from the last checkpoint in `out`. What is not given is that of the run.
        backbone: timm's name, for weights that do not say it.
        settings: fields of `TuningSettings`.

    Raises:
        UserError: whatever the caller can put right.
        KeyboardInterrupt: on Ctrl-C, after a checkpoint was saved.
        SystemExit: on SIGTERM and other signals that ask to stop, after a checkpoint was saved.
    """
    out = Path(out).expanduser()
    what = {"weights": weights, "task": task, "data": data, "backbone": backbone}
    given = {name: str(value) for name, value in what.items() if value is not None}
    asked, past = agree_with_past(out, resume, given, settings)
    network = settled_architecture(asked.task, asked.settings.architecture)
    if not torch.cuda.is_available():
        keep_freed_memory()
    console = Console(file=Screen())  # pyright: ignore[reportArgumentType]
    say = functools.partial(console.print, highlight=False, soft_wrap=True, markup=False)
    checkpoint = load_checkpoint(out / CHECKPOINT) if resume and (out / CHECKPOINT).is_file() else None
    if checkpoint is None:
        start = open_weights([asked.weights], asked.backbone)[0]
        for warning in start.warnings:
            say(f"{shown(start.name)}: {warning}")
        source = source_of(start)
    else:  # the starting weights need not be there any more
        start, source = _recorded(past, out)
    folder = Path(asked.data)
    split = asked.settings.val_split or _validation_split(folder, asked.task)
    context = Context(folder, asked.settings.for_evaluation(split), [start], say)
    tuning = TUNINGS[asked.task](context, asked.settings, network)
    tuned = dataclasses.replace(tuning.describe(start), source=source)
    fingerprint = tuning.fingerprint()
    with contextlib.ExitStack() as held:
        held.enter_context(claimed(out))
        if not resume:
            check_free(out)  # once more, now that nobody else writes here
        if checkpoint is None:
            write_record(out, asked, about(tuned, tuning.counts))
            try_saving(out / CHECKPOINT)
        _introduce(tuning, start, split, asked, say)
        base = start.backbone(asked.settings.output_stride, asked.settings.seed, tuning.usual_stride)
        device = next(base.parameters()).device
        held.enter_context(seeded(asked.settings.seed, device))
        fit = Fit(tuning, tuning.learning(base, start), tuned, out, say)
        del base
        if checkpoint is not None:
            fit.resume(checkpoint, fingerprint)
            del checkpoint
            say(f"going on after step {fit.descent.done}")
        interrupts = Interrupts(lambda received: say(_acknowledged(received)))
        display = Display(console, tuning.steps, fit.descent.done)
        interrupts.listen()
        try:
            stopped = fit.run(display, interrupts, fingerprint)
        finally:
            display.close()
            interrupts.ignore()
        if stopped is not None:
            _stop(stopped, fit.descent.done, out, say)
        return _finish(fit, asked, say)


def _recorded(past: Any, out: Path) -> tuple[Weights, dict[str, Any]]:
    """The starting weights of a run as its record has them, without the tensors: the checkpoint has those.

    Raises:
        UserError: the record is damaged.
    """
    try:
        network = past["network"]
        normalization = Normalization(tuple(map(float, network["mean"])), tuple(map(float, network["std"])))
        start = Weights(
            past["asked"]["weights"], str(network["backbone"]), int(network["in_channels"]), normalization, None
        )
        return start, dict(network["source"])
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{out / 'finetune.json'} is damaged: it does not say what the run started from.") from error


def _validation_split(data: Path, task: str) -> str:
    """What is validated on when the user names nothing.

    Raises:
        UserError: there are splits, but none that is usually validated on.
    """
    splits = (boxed if task == "detection" else labeled).splits_of(data) if data.is_dir() else ()
    found = next((name for name in VALIDATION_SPLITS if name in splits), None)
    if splits and found is None:
        raise UserError(
            f"{shown(data)} has no split to validate on ({listing(VALIDATION_SPLITS)}). Name one with --val-split."
            f"{what_there_is(splits)}"
        )
    return found or VALIDATION_SPLITS[0]


def _introduce(tuning: Tuning, start: Weights, split: str, asked: Asked, say: Any) -> None:
    """What the run is going to do."""
    count = len(tuning.classes)
    names = ", ".join(shown(name, 40) for name in tuning.classes[:NAMED]) + (", ..." if count > NAMED else "")
    train, validation = tuning.counts
    say(f"{shown(asked.data)}: {counted(train, 'image')} to learn from, {validation} to validate on ({shown(split)})")
    say(f"{counted(count, 'class')}: {names}")
    say(
        f"{tuning.network} on {start.architecture} from {shown(start.name)}: {counted(tuning.steps, 'step')} of"
        f" {counted(tuning.batch_size, 'image')}"
    )
    if split == "test" and asked.settings.val_split is None:
        say("There is no val split, so threshold and best weights are chosen on test: its scores flatter them.")


def _finish(fit: Fit, asked: Asked, say: Any) -> TunedRun:
    """The picture, the record and the last lines of a run whose steps are done."""
    tuning, out = fit.tuning, fit.out
    if fit.last is None:  # a complete run was resumed
        fit.last = tuning.validate(fit.model, fit.tuned)
    model, best = load_tuned(out / BEST)
    save_picture(tuning.picture(model, best), out / PICTURE)
    result = {
        "best": {"step": best.step, "scores": dict(best.scores), "threshold": best.threshold},
        "last": {
            "step": fit.descent.done,
            "scores": dict(fit.last.scores),
            "threshold": fit.last.threshold,
        },
        "seconds": round(fit.seconds, 1),
    }
    write_record(out, asked, about(fit.tuned, tuning.counts), result)
    name = tuning.columns[0]
    value = best.scores[name]
    say(f"Done: {counted(fit.descent.done, 'step')} in {duration(fit.seconds)}.")
    say(f"The best weights are of step {best.step}, with {name} {value:.1f} in validation: {shown(out / BEST)}")
    if best.threshold is not None and not best.scores["f1"] > 0:
        say("No object was found in validation. Give more --steps, in another --out.")
    elif best.threshold is not None:
        f1, precision, recall = (best.scores[each] for each in ("f1", "precision", "recall"))
        say(
            f"Detections with a score of at least {best.threshold:.2f} count: that gives the best F1, {f1:.1f}"
            f" (precision {precision:.1f}, recall {recall:.1f})."
        )
    say(f"Predictions beside the truth: {shown(out / PICTURE)}")
    say(f"Next: {shown(shlex.join(('densecl', 'predict', str(out))), 2000)} --data IMAGES --out FOLDER")
    return TunedRun(out, out / BEST, out / LAST, best.step, dict(best.scores), dict(fit.last.scores), best.threshold)


def _acknowledged(received: signal.Signals) -> str:
    """A step may take a while."""
    if received == signal.SIGINT:
        return "Finishing this step, then saving. Ctrl-C again quits now."
    return f"{received.name}: finishing this step, then saving."


def _stop(received: signal.Signals, done: int, out: Path, say: Any) -> None:
    """Ends the process as the signal asks for, once all is saved."""
    command = shlex.join(("densecl", "finetune", "--out", str(out), "--resume"))
    message = f"Stopped by {received.name} after step {done}, which is saved."
    say(message)
    say(f"Go on with: {shown(command, 2000)}")
    if received == signal.SIGINT:
        raise KeyboardInterrupt(f"{message} Go on with --resume.")
    raise SystemExit(128 + received)
