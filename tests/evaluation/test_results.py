from __future__ import annotations

import io
import json
import math
import re
from pathlib import Path
from typing import ClassVar

import pytest
from rich.console import Console

from densecl.errors import UserError
from densecl.evaluation.results import Result, Summary, present, summarize, write_results
from densecl.evaluation.settings import Settings
from densecl.evaluation.verdict import Comparison, judge_differences


def test_means_and_deviations() -> None:
    results = [
        Result("segmentation", "w", seed, "all", {"miou": value, "iou_0": math.nan})
        for seed, value in enumerate((1.0, 2.0, 6.0))
    ]
    ((key, scores),) = summarize(results).items()
    assert key == ("segmentation", "w", "all")
    assert scores["miou"].mean == 3 and scores["miou"].deviation == pytest.approx(math.sqrt((4 + 1 + 9) / 2))
    assert math.isnan(scores["iou_0"].mean) and scores["iou_0"].deviation is None
    assert summarize(results[:1])[key]["miou"] == Summary(1.0, None, 1)


def test_the_file_is_strict_json(tmp_path: Path) -> None:
    path = tmp_path / "found.json"
    path.write_text("the last one")
    write_results(
        [Result("segmentation", "w", 0, "all", {"miou": 1.5, "iou_0": math.nan})],
        path,
        data="d",
        settings=Settings(),
    )
    content = json.loads(path.read_text(), parse_constant=lambda name: pytest.fail(name))
    assert content["results"][0]["scores"] == {"miou": 1.5, "iou_0": None}
    assert content["summary"][0]["scores"]["miou"] == {"mean": 1.5, "deviation": None, "count": 1}
    assert list(tmp_path.iterdir()) == [path]


class Shape:
    """All that a printed table needs to know of a task."""

    name = "shape"
    title = "shape, drawn"
    columns: ClassVar = {"round": "round", "hue": "shade\nof color"}


def test_the_printed_table() -> None:
    results = [
        Result("shape", weights, seed, subset, {"round": value + seed, "hidden": 9.0, "hue": math.nan})
        for weights, value in (("one", 40.0), ("other", 50.0))
        for subset in ("all", "a*")
        for seed in (0, 1)
    ]
    text = io.StringIO()
    present(results, [Shape()], Console(file=text, width=100))
    lines = [re.sub(r"[^\w±.*,-]+", " ", line).strip() for line in text.getvalue().splitlines()]
    assert lines[0] == "shape, drawn, percent"
    assert lines[2:4] == ["shade round of", "weights round of color a*"]
    assert [line for line in lines if line.startswith(("one ", "other "))] == [
        "one 40.5 ± 0.7 - 40.5 ± 0.7",
        "other 50.5 ± 0.7 - 50.5 ± 0.7",
    ]
    assert "hidden" not in text.getvalue() and "9.0" not in text.getvalue()


def test_the_printed_table_of_several_fractions_and_the_verdicts() -> None:
    results = [
        Result("shape", weights, 0, "all", {"round": value * fraction, "hue": 1.0}, label_fraction=fraction)
        for weights, value in (("one", 40.0), ("other", 50.0))
        for fraction in (0.125, 1.0)
    ]
    verdicts = [
        Comparison("shape", "other", "one\x1b", subset, 0.125, "round", "round", "seed", judge_differences({0: 1.25}))
        for subset in ("all", "a*")
    ]
    verdicts.append(verdicts[0]._replace(label_fraction=1.0, verdict=judge_differences({0: 9.0, 1: 10.0, 2: 11.0})))
    verdicts.append(verdicts[0]._replace(task="another"))
    text = io.StringIO()
    present(results, [Shape()], Console(file=text, width=70), verdicts)
    lines = [re.sub(r"[^\w±.*,:;%\\-]+", " ", line).strip() for line in text.getvalue().splitlines()]
    assert lines[3] == "weights labels round of color"
    assert [line for line in lines if line.startswith(("one ", "other "))] == [
        "one 12.5 % 5.0 1.0",
        "one 100 % 40.0 1.0",
        "other 12.5 % 6.2 1.0",
        "other 100 % 50.0 1.0",
    ]
    assert lines[-4:] == [  # whole lines, however narrow the terminal is
        "compared with one\\x1b, paired by seed of the evaluation; ± is half of a 95 % interval of the difference",
        "other, 12.5 % of the labels: one seed cannot tell: 1.2 round above one\\x1b",
        "other, 12.5 % of the labels, a*: one seed cannot tell: 1.2 round above one\\x1b",
        "other, 100 % of the labels: better than one\\x1b by 10.0 ± 2.5 round 3 seeds",
    ]


def test_a_file_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="json .*found.json cannot be written: No such file"):
        write_results([], tmp_path / "gone/found.json", data="d", settings=Settings())
