"""The printed tables of an evaluation and the verdicts below them, for terminals from 40 columns on."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import ClassVar, NamedTuple, Protocol, runtime_checkable

from rich.console import Console
from rich.measure import Measurement
from rich.table import Table

from densecl.evaluation.results import ALL, Result, Summary, floor_of_results, fractions_of, percent, summarize
from densecl.evaluation.verdict import CONFIDENCE, Comparison
from densecl.names import printable, shown


@runtime_checkable
class Printed(Protocol):
    """What the printed table of a task needs to know."""

    name: str

    #: The scores that are shown, and their titles. The first is also shown for parts of the test set.
    columns: ClassVar[Mapping[str, str]]

    @property
    def title(self) -> str: ...

    @property
    def use(self) -> str:
        """What the task is like, and for what."""
        ...

    @property
    def class_names(self) -> Mapping[str, str]:
        """The scores of single classes, and the names of the classes; empty if there are none."""
        ...


class Grid(NamedTuple):
    """Cells with titles."""

    corner: tuple[str, ...]  # the titles of what stands in front of a row
    rows: Sequence[tuple[str, ...]]  # that
    columns: Sequence[str]
    cells: Sequence[Sequence[str]]  # by row, then by column

    def turned(self) -> Grid:
        """With a row for each column."""
        corner = tuple("" for _ in self.corner[:1])
        rows = [(_in_a_line(column),) for column in self.columns]
        columns = ["\n".join(filter(None, row)) for row in self.rows]
        return Grid(corner, rows, columns, [list(column) for column in zip(*self.cells, strict=True)])

    def table(self) -> Table:
        table = Table()
        for title in self.corner:
            table.add_column(title, no_wrap=True)
        for title in self.columns:
            table.add_column(title, justify="right", no_wrap=True)
        for row, cells in zip(self.rows, self.cells, strict=True):
            table.add_row(*row, *cells)
        return table


def show_grid(grid: Grid, console: Console) -> None:
    """Prints a grid so that no word is broken: as it is, or turned, or with a block of lines for each row."""
    for each in (grid, grid.turned()):
        table = each.table()
        if Measurement.get(console, console.options.update(width=10_000), table).maximum <= console.width:
            console.print(table)
            return
    length = max(len(_in_a_line(column)) for column in grid.columns)
    for row, cells in zip(grid.rows, grid.cells, strict=True):
        console.print(", ".join(filter(None, row)), soft_wrap=True)
        for column, cell in zip(grid.columns, cells, strict=True):
            console.print(f"  {_in_a_line(column):{length}}  {cell}", soft_wrap=True)


def present(
    results: Sequence[Result],
    tasks: Sequence[Printed],
    console: Console,
    comparisons: Sequence[Comparison] = (),
    *,
    per_class: bool = False,
) -> None:
    """Print a table for each task: a row for each set of weights, in percent, mean and deviation over the seeds.

    With several fractions of the labels there is a row for each. Below a table stand the verdicts. With `per_class` a
    second table has a row for each class. The last line says what to follow where verdicts of tasks contradict.
    """
    for task in tasks:
        mine = [result for result in results if result.task == task.name]
        _present_task(task, fractions_of(mine), console)
        if per_class and task.class_names:
            _present_classes(task, fractions_of(mine), console)
        _present_verdicts([one for one in comparisons if one.task == task.name], console)
    _present_contradictions(comparisons, {task.name: task.use for task in tasks}, console)


def _present_task(task: Printed, by_fraction: Mapping[float | None, Sequence[Result]], console: Console) -> None:
    found = _summaries(by_fraction)
    keys = [key for some in found.values() for key in some]
    subsets = [subset for subset in dict.fromkeys(subset for _, subset in keys) if subset != ALL]
    main, main_title = next(iter(task.columns.items()))
    rows, cells = [], []
    for weights in dict.fromkeys(weights for weights, _ in keys):
        for fraction, scores in found.items():
            labels = (percent(fraction) if fraction is not None else "",) if len(found) > 1 else ()
            rows.append((shown(weights), *labels))
            line = [_cell(scores[weights, ALL][score]) for score in task.columns]
            cells.append(line + [_cell(scores[weights, subset][main]) for subset in subsets])
    columns = [*task.columns.values(), *(f"{main_title} of\n{shown(subset)}" for subset in subsets)]
    corner = ("weights", "labels") if len(found) > 1 else ("weights",)
    # Printed apart, because rich breaks a table's own title at the table's width.
    console.print(f"{task.title}, percent", style="italic", soft_wrap=True)
    show_grid(Grid(corner, rows, columns, cells), console)
    floor = floor_of_results(itertools.chain.from_iterable(by_fraction.values()), task.name)
    if floor is not None:
        name = task.class_names.get(f"iou_{floor.label}", str(floor.label))
        words = f"{_in_a_line(main_title)} is what every pixel labeled '{shown(name)}' would score"
        console.print(f"{floor.score:.1f} {words}", soft_wrap=True)


def _present_classes(task: Printed, by_fraction: Mapping[float | None, Sequence[Result]], console: Console) -> None:
    found = _summaries(by_fraction)
    columns, table = [], []
    for weights in dict.fromkeys(weights for some in found.values() for weights, _ in some):
        for fraction, scores in found.items():
            labels = f"\n{percent(fraction)}" if fraction is not None and len(found) > 1 else ""
            columns.append(shown(weights) + labels)
            of_weights = scores[weights, ALL]
            table.append([_cell(of_weights[score]) if score in of_weights else "-" for score in task.class_names])
    rows = [(shown(name),) for name in task.class_names.values()]
    score = next(iter(task.class_names)).partition("_")[0]
    console.print(f"{task.name}: {'IoU' if score == 'iou' else score.upper()} of each class, percent", style="italic")
    show_grid(Grid(("class",), rows, columns, [list(row) for row in zip(*table, strict=True)]), console)


def _summaries(
    by_fraction: Mapping[float | None, Sequence[Result]],
) -> dict[float | None, dict[tuple[str, str], dict[str, Summary]]]:
    """By fraction of the labels, then by weights and subset."""
    return {
        fraction: {key[1:]: scores for key, scores in summarize(some).items()} for fraction, some in by_fraction.items()
    }


def _present_verdicts(comparisons: Sequence[Comparison], console: Console) -> None:
    if not comparisons:
        return
    pairs = {"seed": "seed of the evaluation", "run": "seed of the run"}
    by = " or ".join(
        dict.fromkeys(pairs[one.counted] if one.verdict.images is None else "test image" for one in comparisons)
    )
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


def _present_contradictions(comparisons: Sequence[Comparison], uses: Mapping[str, str], console: Console) -> None:
    """For weights that are better by one task and worse by another: which use each of the tasks is like."""
    for weights in dict.fromkeys(one.weights for one in comparisons):
        mine = [one for one in comparisons if one.weights == weights and one.subset == ALL]
        by_task = {one.task: one.verdict.outcome for one in mine if one.verdict.outcome in ("better", "worse")}
        if len(set(by_task.values())) == 2:
            said = "; ".join(
                f"{task} ({outcome}){uses[task] and f': {uses[task]}'}" for task, outcome in by_task.items()
            )
            console.print(
                f"{shown(weights)}: these tasks disagree; follow the one that is like your use. {said}", soft_wrap=True
            )


def _cell(summary: Summary) -> str:
    if math.isnan(summary.mean):
        return "-"
    return f"{summary.mean:.1f}" + ("" if summary.deviation is None else f" ± {summary.deviation:.1f}")


def _in_a_line(title: str) -> str:
    return title.replace("\n", " ")
