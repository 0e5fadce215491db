"""`densecl evaluate`: several weights, the same questions, one table."""

from __future__ import annotations

import dataclasses
import functools
import json as json_format
import math
import os
import statistics
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from rich.console import Console
from rich.table import Table

from densecl.errors import UserError
from densecl.evaluation.boxed import BoxedFiles, open_boxed, share_classes
from densecl.evaluation.clustering import fit_clusters
from densecl.evaluation.correspondence import fixed_view_pairs, match_scores
from densecl.evaluation.dense import LabeledMaps, Probe, Segmentation, judge
from densecl.evaluation.detection import detection
from densecl.evaluation.fine_tuning import fine_tuned_segmentation
from densecl.evaluation.labeled import VOID, ImagesAlone, LabeledFiles, check_classes, is_labelled, open_labelled
from densecl.evaluation.neighbors import ClassifiedFiles, neighbors, open_classified
from densecl.evaluation.retrieval import MEMORY_CELLS, fit_retrieval
from densecl.evaluation.segmentation import fit_linear
from densecl.evaluation.settings import FINE_TUNED, Settings, check_tasks
from densecl.evaluation.weights import USUAL_STRIDE, Weights, open_weights
from densecl.images.sources import ImageSource, open_source
from densecl.model.backbone import Backbone
from densecl.names import shown
from densecl.version import __version__
from densecl.views import Views

#: Pairs of views, and the side of a view in pixels, unless others are asked for.
PAIRS = 256
VIEW_SIZE = 128

#: Images with a class each that are used, and their side, unless others are asked for.
CLASSIFIED = 2000
CLASSIFIED_SIZE = 128

#: Images that go through a backbone at a time when nothing is trained.
BATCH_SIZE = 32

#: Classes that a message names.
NAMED = 5

#: Characters of a line where there is no terminal to ask.
PRINTED_WIDTH = 120

_MIOU = {"miou": "mIoU", "pixel_accuracy": "pixels\nright"}

#: What the table shows of the scores of a task, under which title; the file has all of them.
COLUMNS = {
    "correspondence": {
        "accuracy": "accuracy",
        "chance": "chance",
        "mutual": "mutual",
        "entropy": "entropy",
        "small_overlap": "overlap\n< 1/2",
        "large_overlap": "overlap\n≥ 1/2",
        "same_scale": "scale\n< 1.5",
        "other_scale": "scale\n≥ 1.5",
    },
    "retrieval": _MIOU,
    "segmentation": _MIOU,
    "clustering": _MIOU,
    "detection": {"ap": "AP", "ap50": "AP50", "ap75": "AP75"},
    "neighbors": {"accuracy": "accuracy", "chance": "chance"},
}

#: The score that is also shown for parts of the test set.
MAIN_SCORE = "miou"

#: What the scores of single classes begin with.
IOU = "iou_"

DENSE_TASKS = ("retrieval", "segmentation", "clustering")


class Result(NamedTuple):
    """Scores of one set of weights at one task."""

    task: str
    weights: str
    seed: int
    subset: str  # "all" of the test data, or the pattern of file names
    scores: dict[str, float]  # percent
    # What `evaluate` adds, of the pass that this came from; tasks and subsets that share a pass share them:
    stride: int = 0  # of the feature map that was judged; for detection, of the coarsest
    seconds: float = 0.0


class Run(NamedTuple):
    """One or several tasks whose data are open."""

    judge: Callable[[Weights, Backbone, Sequence[int]], Iterator[Result]]  # one backbone on some seeds
    usual_stride: int | None = USUAL_STRIDE  # of the backbones; None: their own
    trained: bool = False  # seeds then share nothing, and each is reported as soon as it is there


def evaluate(
    weights: Sequence[str | Path],
    task: str | Sequence[str],
    data: str | Path,
    *,
    backbone: str | None = None,
    json: str | Path | None = "evaluation.json",
    **settings: Any,
) -> list[Result]:
    """Judge several weights by the same protocol, and show them side by side.

    Args:
        weights: run folders, files of weights, "random" or "imagenet".
        task: one or several of `settings.TASKS`. Those that look at the same labels share the features.
        data: images for correspondence (whatever `pretrain` takes), labeled ones for the others (docs/evaluate.md).
        backbone: timm's name, for weights that do not say it. Not given: that of the first weights that do.
        json: file for all results; None: no file.
        settings: fields of `Settings`.

    Returns:
        Every result. Where nothing is drawn and the weights are given, there is one for all seeds.

    Raises:
        UserError: whatever the caller can put right.
    """
    tasks = (task,) if isinstance(task, str) else tuple(dict.fromkeys(task))
    chosen = Settings(**settings)
    check_tasks(tasks, chosen)
    if json is not None:
        _check_writable(Path(json).expanduser())
    contestants = open_weights(weights, backbone)
    progress = Console(stderr=True, highlight=False, soft_wrap=True, markup=False, emoji=False)
    runs = list(_prepare(tasks, Path(data), contestants, chosen, progress.print))
    results: list[Result] = []
    for run in runs:
        for contestant in contestants:
            for seeds in _seed_groups(contestant.random or run.trained, chosen):
                started = time.monotonic()
                made = contestant.backbone(chosen.output_stride, seeds[0], run.usual_stride)
                found = list(run.judge(contestant, made, seeds))
                seconds = time.monotonic() - started
                results += [result._replace(stride=made.stride, seconds=seconds) for result in found]
                if json is not None:  # now, so that an interruption leaves what is known
                    write_results(results, Path(json), data=str(data), settings=chosen)
                done = ", ".join(dict.fromkeys(result.task for result in found))
                progress.print(
                    f"{shown(contestant.name)}, seed{'s' * (len(seeds) > 1)} {' '.join(map(str, seeds))}: {done},"
                    f" {made.channels} channels at stride {made.stride}, {seconds:.0f} s"
                )
    # A name with brackets or colons is no markup.
    console = Console(highlight=False, markup=False, emoji=False)
    if not console.is_terminal:
        console = Console(highlight=False, markup=False, emoji=False, width=PRINTED_WIDTH)
    present(results, console, chosen.fine_tune)
    return results


def _check_writable(path: Path) -> None:
    """Before the first hours of work, of which it is to keep the result."""
    if not path.parent.is_dir():
        raise UserError(f"--json {path}: there is no folder {path.parent}.")
    if path.is_dir():
        raise UserError(f"--json {path} is a folder. Give a file, such as {path / 'evaluation.json'}.")
    if not os.access(path.parent, os.W_OK):
        raise UserError(f"--json {path}: nothing can be written into {path.parent}.")


def _seed_groups(apart: bool, settings: Settings) -> list[range]:
    """Random weights are other ones for every seed; given weights go over the data once for all seeds."""
    seeds = range(settings.first_seed, settings.first_seed + settings.seeds)
    return [range(seed, seed + 1) for seed in seeds] if apart else [seeds]


def _prepare(
    tasks: Sequence[str], data: Path, contestants: Sequence[Weights], settings: Settings, note: Callable[[str], None]
) -> Iterator[Run]:
    """Opens the data of every task before any of them runs, so that what is wrong with it is said at once.

    What the user should know of the data goes to `note`.
    """
    channels = contestants[0].in_channels
    if any(contestant.in_channels != channels for contestant in contestants):
        raise UserError("These weights take different numbers of channels; compare those that take the same.")
    if "correspondence" in tasks:
        yield Run(functools.partial(_correspondence, _images(data, settings, channels), settings))
    if "neighbors" in tasks:
        side = _square(settings, CLASSIFIED_SIZE)
        images = open_classified(data, settings.train_split, settings.test_split, channels=channels, size=side)
        images = images.take(_draw_some(len(images), settings.images or CLASSIFIED))
        unfindable = images.unfindable(range(settings.first_seed, settings.first_seed + settings.seeds))
        if unfindable:
            note(f"neighbors: no image that answers is of the class {_some_of(unfindable)}, so nothing can find it")
        if images.is_drawn_singly():
            note(
                "neighbors: a fifth of the images, drawn at random, is asked, and the others answer. Where images show"
                " nearly the same, as frames of a video do, that is too easy: docs/evaluate.md says how to keep them"
                " together"
            )
        yield Run(functools.partial(_neighbors, images, settings))
    if "detection" in tasks:
        train, test = share_classes(
            open_boxed(data, settings.train_split, channels=channels),
            open_boxed(data, settings.test_split, channels=channels),
        )
        if unlearnt := test.occurring() - train.occurring():
            note(f"detection: no training image has a {_some_of(unlearnt)}, so nothing can find it: it scores 0")
        longer_side = max(settings.image_size) if settings.image_size else None
        yield Run(functools.partial(_detection, train, test, longer_side, settings), usual_stride=None, trained=True)
    if set(tasks) & set(DENSE_TASKS):
        stride = contestants[0].backbone(settings.output_stride).stride
        splits = LabeledSplits.open(data, channels, stride, settings, note)
        frozen = [task for task in tasks if task in DENSE_TASKS and not (settings.fine_tune and task in FINE_TUNED)]
        if frozen:
            yield Run(functools.partial(_dense, frozen, splits, settings))
        if settings.fine_tune and "segmentation" in tasks:
            yield Run(functools.partial(_fine_tuned_segmentation, splits, settings), trained=True)


# --- the tasks ----------------------------------------------------------------------------------------------------


def _correspondence(
    source: ImageSource, settings: Settings, weights: Weights, backbone: Backbone, seeds: Sequence[int]
) -> Iterator[Result]:
    side = _square(settings, VIEW_SIZE)
    backbone.grid_at(side)  # raises for a size that the model does not take
    device = next(backbone.parameters()).device
    for seed in seeds:
        query, key = (
            Views(*(some.to(device) for some in views))
            for views in fixed_view_pairs(
                source,
                image_size=side,
                mean=weights.normalization.mean,
                std=weights.normalization.std,
                count=settings.images or PAIRS,
                seed=seed,
            )
        )
        scores = match_scores(backbone, query, key, batch_size=settings.batch_size or BATCH_SIZE)
        yield Result("correspondence", weights.name, seed, "all", scores._asdict())


def _square(settings: Settings, usual: int) -> int:
    width, height = settings.image_size or (usual, usual)
    if width != height:
        raise UserError(f"--image-size {width}x{height}: this task takes squares.")
    return width


def _neighbors(
    images: ClassifiedFiles, settings: Settings, weights: Weights, backbone: Backbone, seeds: Sequence[int]
) -> Iterator[Result]:
    backbone.grid_at(images.size)  # raises for a size that the model does not take
    if images.test_split is not None:
        seeds = seeds[:1]  # nothing is drawn
    found = neighbors(
        backbone,
        images,
        mean=weights.normalization.mean,
        std=weights.normalization.std,
        batch_size=settings.batch_size or BATCH_SIZE,
        seeds=seeds,
        partition=images.partition,
    )
    for seed, scores in zip(seeds, found, strict=True):
        yield Result("neighbors", weights.name, seed, "all", scores._asdict())


def _detection(
    train: BoxedFiles,
    test: BoxedFiles,
    longer_side: int | None,
    settings: Settings,
    weights: Weights,
    backbone: Backbone,
    seeds: Sequence[int],
) -> Iterator[Result]:
    given = _training(settings) | ({"longer_side": longer_side} if longer_side else {})
    for seed in seeds:
        scores = detection(
            backbone,
            train.take(_draw_labelled(len(train), settings.label_fraction, seed)),
            test,
            classes=len(train.names),
            mean=weights.normalization.mean,
            std=weights.normalization.std,
            fine_tune=settings.fine_tune,
            seed=seed,
            title=f"{weights.name}, seed {seed}: detection",
            **given,
        )
        yield Result("detection", weights.name, seed, "all", scores._asdict())


def _some_of(names: Collection[object]) -> str:
    """The first few, by their order, for a message."""
    first = [shown(name) for name in sorted(names, key=lambda name: (len(str(name)), str(name)))[:NAMED]]
    return " or ".join(first) + (f" (or {len(names) - NAMED} others)" if len(names) > NAMED else "")


def _draw_some(count: int, most: int) -> list[int]:
    """Indices of at most so many images, always the same ones."""
    order = torch.randperm(count, generator=torch.Generator().manual_seed(0))
    return sorted(order[:most].tolist())


def _images(data: Path, settings: Settings, channels: int) -> ImageSource:
    """The images of a folder; of a labeled one those to score on, without the label maps."""
    if settings.test_split is not None or is_labelled(data):
        files = open_labelled(data, settings.test_split, channels=channels)
        return open_source(ImagesAlone(files), channels=channels)
    return open_source(data, channels=channels)


class LabeledSplits(NamedTuple):
    """Labeled images to learn from and to score on."""

    train: LabeledFiles
    test: LabeledFiles
    classes: int
    subsets: dict[str, frozenset[int]]  # of the test images

    @classmethod
    def open(
        cls, data: Path, channels: int, stride: int, settings: Settings, note: Callable[[str], None]
    ) -> LabeledSplits:
        train = open_labelled(data, settings.train_split, channels=channels)
        test = open_labelled(data, settings.test_split, channels=channels)
        subsets = {}
        for pattern in settings.also:
            subsets[pattern] = frozenset(test.matching(pattern))
            if not subsets[pattern]:
                raise UserError(
                    f"--also {pattern}: no test image is called so; the first is {shown(test.pairs[0][0].name)}."
                )
        size = settings.image_size
        if size is None:  # whole cells: a map whose last cells hang over the edge would be misplaced by the upsampling
            width, height = LabeledFiles((*train.pairs, *test.pairs), channels=channels).common_size()
            size = max(stride, width // stride * stride), max(stride, height // stride * stride)
        surveys = train.survey(), test.survey()
        learnt, asked = (set(survey) - {VOID, *settings.ignore} for survey in surveys)
        for survey, purpose in zip(surveys, ("to learn from", "to score on"), strict=True):
            check_classes(survey, purpose, ignore=settings.ignore, classes=settings.classes)
        classes = settings.classes or 1 + max(learnt | asked)
        if asked - learnt:
            note(f"no training image has the label {_some_of(asked - learnt)}, so nothing can find it: it scores 0")
        return cls(train.resized(size), test.resized(size), classes, subsets)


def _dense(
    tasks: Sequence[str],
    splits: LabeledSplits,
    settings: Settings,
    weights: Weights,
    backbone: Backbone,
    seeds: Sequence[int],
) -> Iterator[Result]:
    drawn = {seed: _draw_labelled(len(splits.train), settings.label_fraction, seed) for seed in seeds}
    used = sorted(set().union(*drawn.values()))
    train = splits.train.take(used)
    place = {index: position for position, index in enumerate(used)}
    probes: dict[str, Probe] = {}
    asked: dict[str, tuple[str, int]] = {}
    for task in tasks:
        for seed in seeds:
            if seed == seeds[0] or settings.label_fraction < 1 or _is_drawn(task, train, backbone):
                name = f"{task} {seed}"
                asked[name] = task, seed
                probes[name] = functools.partial(_fit, task, seed, [place[index] for index in drawn[seed]])
    assert train.size is not None, "LabeledSplits sets it"
    _check_takes(backbone, train.size)
    judged = judge(
        backbone,
        train,
        splits.test,
        probes,
        classes=splits.classes,
        mean=weights.normalization.mean,
        std=weights.normalization.std,
        ignore=settings.ignore,
        subsets=splits.subsets,
        batch_size=settings.batch_size or BATCH_SIZE,
    )
    for name, (task, seed) in asked.items():
        for subset, segmentation in judged[name].items():
            yield Result(task, weights.name, seed, subset, _in_numbers(segmentation))


def _fine_tuned_segmentation(
    splits: LabeledSplits, settings: Settings, weights: Weights, backbone: Backbone, seeds: Sequence[int]
) -> Iterator[Result]:
    assert splits.train.size is not None, "LabeledSplits sets it"
    _check_takes(backbone, splits.train.size)
    for seed in seeds:
        judged = fine_tuned_segmentation(
            backbone,
            splits.train.take(_draw_labelled(len(splits.train), settings.label_fraction, seed)),
            splits.test,
            classes=splits.classes,
            mean=weights.normalization.mean,
            std=weights.normalization.std,
            ignore=settings.ignore,
            subsets=splits.subsets,
            seed=seed,
            title=f"{weights.name}, seed {seed}: segmentation",
            **_training(settings),
        )
        for subset, segmentation in judged.items():
            yield Result("segmentation", weights.name, seed, subset, _in_numbers(segmentation))


def _training(settings: Settings) -> dict[str, Any]:
    """The settings of training that were given; the others are the task's own."""
    given = {name: getattr(settings, name) for name in ("steps", "batch_size", "learning_rate")}
    return {name: value for name, value in given.items() if value is not None}


def _fit(task: str, seed: int, images: Sequence[int], train: LabeledMaps, classes: int) -> Any:
    some = train if len(images) == len(train.labels) else train.take(images)
    if task == "segmentation":
        return fit_linear(some, classes)
    return {"retrieval": fit_retrieval, "clustering": fit_clusters}[task](some, classes, seed=seed)


def _is_drawn(task: str, train: LabeledFiles, backbone: Backbone) -> bool:
    """Whether the result depends on the seed although the weights are given and all labels are used."""
    assert train.size is not None, "LabeledSplits sets it"
    cells = len(train) * math.prod(-(-side // backbone.stride) for side in train.size)
    return task == "clustering" or (task == "retrieval" and cells > MEMORY_CELLS)


def _draw_labelled(count: int, fraction: float, seed: int) -> list[int]:
    """Indices of the images whose labels are used: `fraction` of them, at least one."""
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    return sorted(order[: max(1, round(fraction * count))].tolist())


def _check_takes(backbone: Backbone, size: tuple[int, int]) -> None:
    width, height = size
    try:
        backbone.grid_at(height, width)
    except UserError as error:
        raise UserError(f"{error} Give --image-size.") from error


def _in_numbers(segmentation: Segmentation) -> dict[str, float]:
    each = {f"{IOU}{label}": iou for label, iou in enumerate(segmentation.per_class_iou)}
    return {"miou": segmentation.miou, "pixel_accuracy": segmentation.pixel_accuracy, **each}


# --- what is shown and kept ---------------------------------------------------------------------------------------


class Summary(NamedTuple):
    """One score of one set of weights over the seeds."""

    mean: float
    deviation: float | None  # of the sample; None with a single value
    count: int


def summarize(results: Sequence[Result]) -> dict[tuple[str, str, str], dict[str, Summary]]:
    """For each (task, weights, subset), in the order of the results, each score over the seeds."""
    grouped: dict[tuple[str, str, str], list[dict[str, float]]] = {}
    for result in results:
        grouped.setdefault((result.task, result.weights, result.subset), []).append(result.scores)
    return {
        key: {name: _summary([scores[name] for scores in found]) for name in found[0]} for key, found in grouped.items()
    }


def _summary(values: Sequence[float]) -> Summary:
    deviation = statistics.stdev(values) if len(values) > 1 and not any(map(math.isnan, values)) else None
    return Summary(statistics.fmean(values), deviation, len(values))


def present(results: Sequence[Result], console: Console, fine_tuned: bool = False) -> None:
    """A table for each task: a row for each set of weights, percent, mean and deviation over the seeds."""
    summaries = summarize(results)
    for task in dict.fromkeys(result.task for result in results):
        mine = {key: scores for key, scores in summaries.items() if key[0] == task}
        subsets = [subset for subset in dict.fromkeys(key[2] for key in mine) if subset != "all"]
        how = ", fine-tuned" if fine_tuned and task in FINE_TUNED else ""
        classes = sum(name.startswith(IOU) for name in next(iter(mine.values())))
        labels = f", labels 0 to {classes - 1}" if classes else ""
        # Not as the table's own title, which is broken at the table's width.
        console.print(f"{task}{how}{labels}, percent", style="italic")
        table = Table()
        table.add_column("weights", overflow="fold")
        for title in (*COLUMNS[task].values(), *(f"mIoU of\n{subset}" for subset in subsets)):
            table.add_column(title, justify="right")
        for weights in dict.fromkeys(key[1] for key in mine):
            cells = [_shown(mine[task, weights, "all"][score]) for score in COLUMNS[task]]
            cells += [_shown(mine[task, weights, subset][MAIN_SCORE]) for subset in subsets]
            table.add_row(shown(weights), *cells)
        console.print(table)


def _shown(summary: Summary) -> str:
    if math.isnan(summary.mean):
        return "-"
    return f"{summary.mean:.1f}" + ("" if summary.deviation is None else f" ± {summary.deviation:.1f}")


def write_results(results: Sequence[Result], path: Path, *, data: str, settings: Settings) -> None:
    """Every result and the summary as JSON, beside its place and moved into it. A score that is not there is null.

    Raises:
        UserError: the file cannot be written.
    """
    content = {
        "densecl": __version__,
        "data": data,
        "settings": dataclasses.asdict(settings),
        "summary": [
            {
                "task": task,
                "weights": weights,
                "subset": subset,
                "scores": {name: _null_for_nan(summary._asdict()) for name, summary in scores.items()},
            }
            for (task, weights, subset), scores in summarize(results).items()
        ],
        "results": [{**result._asdict(), "scores": _null_for_nan(result.scores)} for result in results],
    }
    path = path.expanduser()
    beside = path.with_name(path.name + ".part")
    try:
        beside.write_text(json_format.dumps(content, indent=1) + "\n", encoding="utf-8")
        os.replace(beside, path)
    except OSError as error:
        raise UserError(f"--json {path} cannot be written: {error.strerror or error}.") from error


def _null_for_nan(values: Mapping[str, Any]) -> dict[str, Any]:
    return {key: None if isinstance(value, float) and math.isnan(value) else value for key, value in values.items()}
