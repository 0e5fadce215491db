"""The results of `densecl evaluate`, as tables of the page."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from typing import Any

from densecl.reporting.run_files import Evaluation

#: Rows of a table, and comparisons, that are shown.
MOST_ROWS, MOST_COMPARISONS = 200, 40


def shown_evaluation(evaluation: Evaluation) -> dict[str, Any]:
    """A table for each task, and what the comparisons say. What is not as `evaluate` writes it is left out."""
    content = evaluation.content
    tasks: dict[str, list[Mapping[str, Any]]] = {}
    for row in content["summary"][:MOST_ROWS]:
        if isinstance(row, dict) and isinstance(row.get("scores"), dict):
            tasks.setdefault(str(row.get("task", "")), []).append(row)
    comparisons = content.get("comparisons")
    found = [
        {
            "about": _about(one),
            "sentence": one["sentence"],
            "rests_on": _interval(one) or _pairs(one.get("differences")),
        }
        for one in (comparisons[:MOST_COMPARISONS] if isinstance(comparisons, list) else [])
        if isinstance(one, dict) and isinstance(one.get("sentence"), str)
    ]
    curve = evaluation.curve
    return {
        "name": evaluation.name,
        "data": str(content.get("data", "")),
        "comparisons": found,
        "tables": [_table(task, rows) for task, rows in tasks.items()],
        "curve": "" if curve is None else "data:image/png;base64," + base64.b64encode(curve).decode(),
    }


def _about(comparison: Mapping[str, Any]) -> str:
    """Which weights a comparison is about, and in what."""
    words = [comparison.get(name) for name in ("weights", "task", "subset")]
    fraction = comparison.get("label_fraction")
    return ", ".join(
        [
            *(word for word in words if isinstance(word, str) and word != "all"),
            *([f"{_percent(fraction)} of the labels"] if isinstance(fraction, int | float) and fraction != 1 else []),
        ]
    )


def _table(task: str, rows: list[Mapping[str, Any]]) -> dict[str, Any]:
    columns = list(dict.fromkeys(str(name) for row in rows for name in row["scores"]))[:24]
    return {
        "task": task,
        "columns": [column.replace("_", " ") for column in columns],
        "subsets": any(row.get("subset", "all") != "all" for row in rows),
        "fractions": any(row.get("label_fraction") is not None for row in rows),
        "rows": [
            {
                "weights": str(row.get("weights", "")),
                "subset": str(row.get("subset", "")),
                "fraction": _percent(row.get("label_fraction")),
                "scores": [_score(row["scores"].get(column)) for column in columns],
            }
            for row in rows
        ],
    }


def _score(summary: Any) -> dict[str, str]:
    values = summary if isinstance(summary, dict) else {}
    mean, deviation = values.get("mean"), values.get("deviation")
    return {
        "mean": f"{mean:.1f}" if isinstance(mean, int | float) else "-",
        "deviation": f"{deviation:.1f}" if isinstance(deviation, int | float) else "",
    }


def _percent(fraction: Any) -> str:
    return f"{100 * fraction:g} %" if isinstance(fraction, int | float) else ""


def _interval(comparison: Mapping[str, Any]) -> str:
    """The interval of a verdict that rests on the test images. Empty if it rests on seeds."""
    ends, sure = comparison.get("interval"), comparison.get("confidence")
    numbers = [*ends, sure] if isinstance(ends, list) else []
    if comparison.get("test_images") is None or len(numbers) != 3:
        return ""
    if not all(isinstance(number, int | float) for number in numbers):
        return ""
    return f"{_percent(sure)} interval of the difference: {numbers[0]:+.1f} to {numbers[1]:+.1f}"


def _pairs(differences: Any) -> str:
    """The difference to the baseline at each seed: the pairs that the verdict rests on."""
    found = differences if isinstance(differences, list) else []
    values = [one.get("difference") for one in found if isinstance(one, dict)]
    said = ", ".join(f"{value:+.1f}" for value in values[:20] if isinstance(value, int | float))
    return f"Differences by seed: {said}" if said else ""
