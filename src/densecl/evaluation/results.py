"""The results of an evaluation: their type, their means over the seeds, and the file."""

from __future__ import annotations

import dataclasses
import json
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from densecl.errors import UserError
from densecl.evaluation.floor import Floor
from densecl.evaluation.resampling import Tally
from densecl.evaluation.settings import Settings
from densecl.evaluation.verdict import Comparison
from densecl.files import replacing
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
    # Of the first score, by test image. None: the seed draws something, or the score is no sum over images.
    by_image: Tally | None = None
    # Of the first score. None: it has none.
    floor: Floor | None = None

    def as_json(self) -> dict[str, Any]:
        """As it stands in the file. A score that does not exist (nan) becomes null."""
        content = self._asdict()
        del content["by_image"]  # every pixel's count would make the file large
        return {**content, "scores": _null_for_nan(self.scores), "floor": floor_as_json(self.floor)}


class Summary(NamedTuple):
    """One score of one set of weights over the seeds."""

    mean: float
    deviation: float | None  # standard deviation of the sample; None with a single value
    count: int


def summarize(results: Sequence[Result]) -> dict[tuple[str, str, str], dict[str, Summary]]:
    """For each (task, weights, subset), in the order of the results, each score over the seeds."""
    grouped: dict[tuple[str, str, str], list[dict[str, float]]] = {}
    for result in results:
        grouped.setdefault((result.task, result.weights, result.subset), []).append(result.scores)
    return {
        key: {name: _summary([scores[name] for scores in found]) for name in found[0]} for key, found in grouped.items()
    }


def floor_of_results(results: Iterable[Result], task: str, subset: str = ALL) -> Floor | None:
    """The floor of a task on a part of the test images. It is the same for all weights, seeds and fractions."""
    found = (result.floor for result in results if (result.task, result.subset) == (task, subset))
    return next((floor for floor in found if floor is not None), None)


def floor_as_json(floor: Floor | None) -> dict[str, Any] | None:
    return None if floor is None else floor._asdict()


def fractions_of(results: Iterable[Result]) -> dict[float | None, list[Result]]:
    """The results by the fraction of the labels that was used."""
    found: dict[float | None, list[Result]] = {}
    for result in results:
        found.setdefault(result.label_fraction, []).append(result)
    return found


def _summary(values: Sequence[float]) -> Summary:
    deviation = statistics.stdev(values) if len(values) > 1 and not any(map(math.isnan, values)) else None
    return Summary(statistics.fmean(values), deviation, len(values))


def percent(fraction: float) -> str:
    return f"{100 * fraction:g} %"


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
                "floor": floor_as_json(floor_of_results(some, task, subset)),
            }
            for fraction, some in fractions_of(results).items()
            for (task, weights, subset), scores in summarize(some).items()
        ],
        "comparisons": [comparison.as_json() for comparison in comparisons],
        "results": [result.as_json() for result in results],
    }
    path = path.expanduser()
    try:
        with replacing(path) as file:
            file.write((json.dumps(content, indent=1) + "\n").encode())
    except OSError as error:
        raise UserError(f"--json {path} cannot be written: {error.strerror or error}.") from error


def _null_for_nan(values: Mapping[str, Any]) -> dict[str, Any]:
    return {key: None if isinstance(value, float) and math.isnan(value) else value for key, value in values.items()}
