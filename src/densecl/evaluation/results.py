"""The results of an evaluation: their type, their means over the seeds, the printed tables and the file."""

from __future__ import annotations

import dataclasses
import json
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Protocol, runtime_checkable

from rich.console import Console
from rich.table import Table

from densecl.errors import UserError
from densecl.evaluation.settings import Settings
from densecl.evaluation.verdict import CONFIDENCE, Comparison
from densecl.files import replacing
from densecl.names import printable, shown
from densecl.version import __version__

#: The subset that is the whole test set.
ALL = "all"


class Result(NamedTuple):
    """Scores of one set of weights at one task."""

    task: str
    weights: str
    seed: int
    subset: str  # "all" of the test data, or the pattern of file names
    scores: dict[str, float]  # percent
    # `evaluate` adds these two. Tasks and subsets that were scored in the same pass have the same values.
    stride: int = 0  # of the feature map; for detection, of the coarsest
    seconds: float = 0.0
    # Of the training images, whose labels were used. None: the task draws none.
    label_fraction: float | None = None


class Summary(NamedTuple):
    """One score of one set of weights over the seeds."""

    mean: float
    deviation: float | None  # standard deviation of the sample; None with a single value
    count: int


@runtime_checkable
class Printed(Protocol):
    """What the printed table of a task needs to know."""

    name: str

    #: The scores that are shown, and their titles. The first is also shown for parts of the test set.
    columns: ClassVar[Mapping[str, str]]

    @property
    def title(self) -> str: ...


def summarize(results: Sequence[Result]) -> dict[tuple[str, str, str], dict[str, Summary]]:
    """For each (task, weights, subset), in the order of the results, each score over the seeds."""
    grouped: dict[tuple[str, str, str], list[dict[str, float]]] = {}
    for result in results:
        grouped.setdefault((result.task, result.weights, result.subset), []).append(result.scores)
    return {
        key: {name: _summary([scores[name] for scores in found]) for name in found[0]} for key, found in grouped.items()
    }


def fractions_of(results: Iterable[Result]) -> dict[float | None, list[Result]]:
    """The results by the fraction of the labels that was used."""
    found: dict[float | None, list[Result]] = {}
    for result in results:
        found.setdefault(result.label_fraction, []).append(result)
    return found


def _summary(values: Sequence[float]) -> Summary:
    deviation = statistics.stdev(values) if len(values) > 1 and not any(map(math.isnan, values)) else None
    return Summary(statistics.fmean(values), deviation, len(values))


def present(
    results: Sequence[Result], tasks: Sequence[Printed], console: Console, comparisons: Sequence[Comparison] = ()
) -> None:
    """Print a table for each task: a row for each set of weights, in percent, mean and deviation over the seeds.

    With several fractions of the labels there is a row for each. Below a table stand the verdicts.
    """
    for task in tasks:
        mine = [result for result in results if result.task == task.name]
        _present_task(task, fractions_of(mine), console)
        _present_verdicts([one for one in comparisons if one.task == task.name], console)


def _present_task(task: Printed, by_fraction: Mapping[float | None, Sequence[Result]], console: Console) -> None:
    found = {
        fraction: {key[1:]: scores for key, scores in summarize(some).items()} for fraction, some in by_fraction.items()
    }
    keys = [key for some in found.values() for key in some]
    subsets = [subset for subset in dict.fromkeys(subset for _, subset in keys) if subset != ALL]
    main, main_title = next(iter(task.columns.items()))
    # Printed apart, because rich breaks a table's own title at the table's width.
    console.print(f"{task.title}, percent", style="italic")
    table = Table()
    table.add_column("weights", overflow="fold")
    if len(found) > 1:
        table.add_column("labels", justify="right")
    for title in (*task.columns.values(), *(f"{main_title} of\n{subset}" for subset in subsets)):
        table.add_column(title, justify="right")
    for weights in dict.fromkeys(weights for weights, _ in keys):
        for fraction, scores in found.items():
            cells = [percent(fraction)] if fraction is not None and len(found) > 1 else []
            cells += [_cell(scores[weights, ALL][score]) for score in task.columns]
            cells += [_cell(scores[weights, subset][main]) for subset in subsets]
            table.add_row(shown(weights), *cells)
    console.print(table)


def _present_verdicts(comparisons: Sequence[Comparison], console: Console) -> None:
    if not comparisons:
        return
    pairs = {"seed": "seed of the evaluation", "run": "seed of the run"}
    by = " or ".join(dict.fromkeys(pairs[one.counted] for one in comparisons))
    heading = f"compared with {shown(comparisons[0].baseline)}, paired by {by}"
    if any(one.verdict.interval for one in comparisons):
        heading += f"; ± is half of a {percent(CONFIDENCE)} interval of the difference"
    console.print(heading, style="italic", soft_wrap=True)
    several = len({one.label_fraction for one in comparisons}) > 1
    for one in comparisons:
        where = [f"{percent(one.label_fraction)} of the labels"] if several and one.label_fraction is not None else []
        where += [] if one.subset == ALL else [one.subset]
        about = ", ".join((shown(one.weights), *where))
        console.print(f"{about}: {printable(one.sentence)}", soft_wrap=True)


def percent(fraction: float) -> str:
    return f"{100 * fraction:g} %"


def _cell(summary: Summary) -> str:
    if math.isnan(summary.mean):
        return "-"
    return f"{summary.mean:.1f}" + ("" if summary.deviation is None else f" ± {summary.deviation:.1f}")


def write_results(
    results: Sequence[Result],
    path: Path,
    *,
    data: str,
    settings: Settings,
    comparisons: Sequence[Comparison] = (),
) -> None:
    """Write every result, the summary and the verdicts as JSON. A score that does not exist (nan) becomes null.

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
                "label_fraction": fraction,
                "scores": {name: _null_for_nan(summary._asdict()) for name, summary in scores.items()},
            }
            for fraction, some in fractions_of(results).items()
            for (task, weights, subset), scores in summarize(some).items()
        ],
        "comparisons": [comparison.as_json() for comparison in comparisons],
        "results": [{**result._asdict(), "scores": _null_for_nan(result.scores)} for result in results],
    }
    path = path.expanduser()
    try:
        with replacing(path) as file:
            file.write((json.dumps(content, indent=1) + "\n").encode())
    except OSError as error:
        raise UserError(f"--json {path} cannot be written: {error.strerror or error}.") from error


def _null_for_nan(values: Mapping[str, Any]) -> dict[str, Any]:
    return {key: None if isinstance(value, float) and math.isnan(value) else value for key, value in values.items()}
