"""`densecl evaluate`: several weights, the same tasks, one table for each task. It knows no task by name."""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from densecl.errors import UserError, flag
from densecl.evaluation.arms import Arm, arms_of, find_baseline
from densecl.evaluation.given import make_settings
from densecl.evaluation.pairing import compare_arms
from densecl.evaluation.results import ALL, Result, write_results
from densecl.evaluation.settings import Settings
from densecl.evaluation.tables import present
from densecl.evaluation.tasks import ALSO_CALLED, TASKS, check_names, load
from densecl.evaluation.tasks.task import Context, Pass, Task
from densecl.evaluation.verdict import Comparison
from densecl.evaluation.weights import Weights, open_weights
from densecl.names import counted, shown
from densecl.pictures.curve import Line, Panel, draw_curves
from densecl.pictures.drawing import save_picture

#: As the file for the results: one beside the first of the weights.
BESIDE = "auto"

#: Characters of a printed line where there is no terminal to ask.
PRINTED_WIDTH = 120


def evaluate(
    weights: str | Path | Sequence[str | Path],
    task: str | Sequence[str],
    data: str | Path,
    *,
    baseline: str | Path | Sequence[str | Path] = (),
    backbone: str | None = None,
    json: str | Path | None = BESIDE,
    per_class: bool = False,
    **settings: Any,
) -> list[Result]:
    """Judge several weights in the same way, and show them side by side.

    Args:
        weights: one or several run folders, files of weights, "random", "imagenet", or names of timm's such as
            "resnet50.a1_in1k".
        task: one or several names of the table in `densecl.evaluation.tasks`. Tasks that look at the same labels share
            the features.
        data: images for correspondence (whatever `pretrain` takes), labeled ones for the others (docs/evaluate.md).
        baseline: the weights that the others are compared with. Several: runs whose names differ only in their seed.
            Not given: the first weights.
        backbone: timm's name, for weights that do not say it. Not given: that of the first weights that do.
        json: file for all results. With several label fractions a picture of the curve lies beside it. "auto":
            evaluation.json beside the first of the weights that is a run or a file; evaluation-2.json and so on if
            there is one. None: no file.
        per_class: print the score of each class, too.
        settings: fields of `Settings`. As with the flags, one value may stand for several (`ignore=0`), and a number
            for a square (`image_size=96`).

    Returns:
        Every result. If nothing depends on the seed, there is one result for all seeds.

    Raises:
        UserError: whatever the caller can put right.
    """
    weights = _listed(weights)
    asked = (task,) if isinstance(task, str) else task
    names = tuple(dict.fromkeys(ALSO_CALLED.get(name, name) for name in asked))
    chosen = make_settings(Settings, settings)
    check_names(names)
    kinds = {name: load(name) for name in names}
    _check_training(kinds.values(), chosen)
    _check_label_fraction(kinds.values(), chosen)
    progress = Console(stderr=True, highlight=False, soft_wrap=True, markup=False, emoji=False)
    file = _results_file(json, [str(name) for name in weights], progress)
    contestants = open_weights(weights, backbone)
    arms = arms_of([contestant.name for contestant in contestants])
    reference = find_baseline(arms, [str(name) for name in _listed(baseline)])
    _check_channels(contestants)
    for contestant in contestants:
        for note in filter(None, (contestant.report, *contestant.warnings)):
            progress.print(f"{shown(contestant.name)}: {note}")
    context = Context(Path(data), chosen, contestants, progress.print)
    # All data is opened before any of it is used, so that a mistake there is told at once.
    tasks = [kind(name, context) for name, kind in kinds.items()]
    results: list[Result] = []
    comparisons: list[Comparison] = []
    for each in dict.fromkeys(task.scored_by for task in tasks):
        for contestant in contestants:
            groups = _seed_groups(contestant, each, chosen)
            for seeds in groups:
                results += _judge(each, contestant, seeds, chosen, progress)
                if seeds is groups[-1]:  # with some of its seeds alone, weights cannot be paired
                    comparisons = compare_arms(results, tasks, arms, reference, chosen.seeds)
                if file is not None:  # after each step, so that an interruption leaves what is known
                    write_results(results, file, data=str(data), settings=chosen, comparisons=comparisons)
    # Neither markup nor emoji, because names may hold brackets and colons.
    console = Console(highlight=False, markup=False, emoji=False)
    if not console.is_terminal:
        console = Console(highlight=False, markup=False, emoji=False, width=PRINTED_WIDTH)
    present(results, tasks, console, comparisons, per_class=per_class)
    if file is not None:
        progress.print(f"every result is in {shown(file)}")
    if file is not None and len(chosen.label_fractions) > 1:
        picture = curve_file(file)
        save_picture(
            draw_curves(_panels(results, tasks, arms), "labels that are used (dots: seeds, lines: means)"), picture
        )
        progress.print(f"the curve is drawn in {shown(picture)}")
    return results


def curve_file(json: Path) -> Path:
    """The picture of the curve, beside the file of results."""
    return json.expanduser().with_name(f"{json.stem}-curve.png")


def _panels(results: Sequence[Result], tasks: Sequence[Task], arms: Sequence[Arm]) -> list[Panel]:
    """A panel for each task that learned from several fractions of the labels, with a line for each arm."""
    panels = []
    for task in tasks:
        if not task.takes_label_fraction:
            continue
        score, title = next(iter(task.columns.items()))
        mine = [result for result in results if result.task == task.name and result.subset == ALL]
        lines = []
        for arm in arms:
            points: dict[float, list[float]] = {}
            for result in mine:
                if result.weights in arm.members and result.label_fraction is not None:
                    points.setdefault(result.label_fraction, []).append(result.scores[score])
            lines.append(Line(arm.name, points))
        panels.append(Panel(f"{task.name}, fine-tuned: {title}" if task.fine_tuned else f"{task.name}: {title}", lines))
    return panels


def _listed(given: str | Path | Sequence[str | Path]) -> Sequence[str | Path]:
    return (given,) if isinstance(given, str | Path) else given


def _judge(each: Pass, weights: Weights, seeds: Sequence[int], settings: Settings, progress: Console) -> list[Result]:
    """Judges one backbone, and reports that it is done."""
    started = time.monotonic()
    backbone = weights.backbone(settings.output_stride, seeds[0], each.usual_stride)
    found = list(each.judge(weights, backbone, seeds))
    seconds = time.monotonic() - started
    done = ", ".join(dict.fromkeys(result.task for result in found))
    progress.print(
        f"{shown(weights.name)}, seed{'s' * (len(seeds) > 1)} {' '.join(map(str, seeds))}: {done},"
        f" {counted(backbone.channels, 'channel')} at stride {backbone.stride}, {seconds:.0f} s"
    )
    return [result._replace(stride=backbone.stride, seconds=seconds) for result in found]


def _seed_groups(weights: Weights, each: Pass, settings: Settings) -> list[range]:
    """The seeds that share a backbone: all of them, unless each seed draws random weights or trains the backbone."""
    seeds = settings.all_seeds
    return [range(seed, seed + 1) for seed in seeds] if weights.random or each.trained else [seeds]


def _check_training(kinds: Collection[type[Task]], settings: Settings) -> None:
    """
    Raises:
        UserError: a setting of training is given, and no task trains.
    """
    if settings.fine_tune and not any(kind.fine_tunes for kind in kinds):
        able = [name for name in TASKS if load(name).fine_tunes]
        raise UserError(f"--fine-tune is for {' and '.join(able)}.")
    for name in ("steps", "learning_rate"):
        if getattr(settings, name) is not None and not settings.fine_tune and not any(k.always_trained for k in kinds):
            able = [name for name in TASKS if load(name).always_trained]
            raise UserError(f"{flag(name)} is for {' and '.join(able)} and with --fine-tune.")


def _check_label_fraction(kinds: Collection[type[Task]], settings: Settings) -> None:
    """
    Raises:
        UserError: a part of the labels is asked for, and no task learns from labels of which it takes a part.
    """
    if settings.label_fractions != (1,) and not any(kind.takes_label_fraction for kind in kinds):
        *able, last = [name for name in TASKS if load(name).takes_label_fraction]
        raise UserError(f"--label-fraction is for {', '.join(able)} and {last}.")


def _results_file(asked: str | Path | None, names: Sequence[str], progress: Console) -> Path | None:
    """Where the results go; None: nowhere. A file that is there already is replaced only if it was asked for.

    Raises:
        UserError: the file that was asked for cannot be written.
    """
    if asked is None:
        return None
    if asked != BESIDE:
        path = Path(asked).expanduser()
        _check_writable(path)
        if path.exists():
            progress.print(f"{shown(path)} is there already and will be replaced")
        return path
    first = next((path for name in names if (path := Path(name).expanduser()).exists()), None)
    folder = first if first is None or first.is_dir() else first.parent
    if folder is None or not os.access(folder, os.W_OK):
        progress.print("the results are only shown; --json FILE keeps them")
        return None
    tried = (folder / f"evaluation{'' if number == 1 else f'-{number}'}.json" for number in itertools.count(1))
    return next(path for path in tried if not path.exists())


def _check_writable(path: Path) -> None:
    """Checked before the work, because the work may take hours.

    Raises:
        UserError: the file for the results cannot be written there.
    """
    if not path.parent.is_dir():
        raise UserError(f"--json {path}: there is no folder {path.parent}.")
    if path.is_dir():
        raise UserError(f"--json {path} is a folder. Give a file, such as {path / 'evaluation.json'}.")
    if not os.access(path.parent, os.W_OK):
        raise UserError(f"--json {path}: nothing can be written into {path.parent}.")


def _check_channels(contestants: Sequence[Weights]) -> None:
    """
    Raises:
        UserError: the weights take images of different numbers of channels.
    """
    if len({contestant.in_channels for contestant in contestants}) > 1:
        raise UserError("These weights take different numbers of channels; compare those that take the same.")
