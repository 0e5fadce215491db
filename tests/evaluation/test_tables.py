"""What an evaluation prints."""

from __future__ import annotations

import io
import math
import re
from typing import ClassVar

import pytest
from rich.console import Console

from densecl.evaluation.floor import Floor
from densecl.evaluation.results import Result
from densecl.evaluation.tables import Grid, present, show_grid
from densecl.evaluation.verdict import Comparison, judge_differences


class Shape:
    """All that a printed table needs to know of a task."""

    name = "shape"
    title = "shape, drawn"
    use = "what is round, as for wheels"
    columns: ClassVar = {"round": "round", "hue": "shade\nof color"}
    class_names: ClassVar = {"ap_1": "cat", "ap_2": "a dog", "ap_3": "eel"}


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


def test_the_scores_of_classes_stand_beside_their_names() -> None:
    results = [
        Result("shape", weights, 0, "all", {"round": 1.0, "hue": 2.0, "ap_1": value, "ap_2": math.nan})
        for weights, value in (("one", 40.0), ("other", 50.0))
    ]
    text = io.StringIO()
    present(results, [Shape()], Console(file=text, width=80), per_class=True)
    lines = [re.sub(r"[^\w.-]+", " ", line).strip() for line in text.getvalue().splitlines()]
    assert "shape AP of each class percent" in lines
    assert [line for line in lines if line.startswith(("cat", "a dog", "eel"))] == [
        "cat 40.0 50.0",
        "a dog - -",
        "eel - -",
    ]
    shorter = io.StringIO()
    assert "would score" not in text.getvalue()
    present(results, [Shape()], Console(file=shorter, width=80))
    assert "cat" not in shorter.getvalue()


@pytest.mark.parametrize(("label", "name"), [(0, "sky\\x1b"), (3, "3")])
def test_the_floor_stands_below_the_table(label: int, name: str) -> None:
    class Labeled(Shape):
        class_names: ClassVar = {"iou_0": "sky\x1b"}

    result = Result("shape", "one", 0, "all", {"round": 43.2, "hue": 2.0}, floor=Floor(43.04, label))
    text = io.StringIO()
    present([result], [Labeled()], Console(file=text, width=40))
    assert text.getvalue().splitlines()[-1] == f"43.0 round is what every pixel labeled '{name}' would score"


def test_where_tasks_disagree_the_last_line_says_which_to_follow() -> None:
    class Hue(Shape):
        name = "hue"
        use = "colors alone"

    results = [Result(task, "one", 0, "all", {"round": 1.0, "hue": 2.0}) for task in ("shape", "hue")]
    better, worse = (judge_differences({0: value, 1: 1.1 * value}) for value in (9.0, -9.0))
    one = Comparison("shape", "one", "b", "all", None, "round", "round", "seed", better)
    for other, expected in (
        (one._replace(task="hue", verdict=worse), True),
        (one._replace(task="hue"), False),
        (one._replace(task="hue", verdict=worse, subset="a*"), False),
        (one._replace(task="hue", verdict=worse, weights="another"), False),
    ):
        text = io.StringIO()
        present(results, [Shape(), Hue()], Console(file=text, width=40), [one, other])
        said = "one: these tasks disagree; follow the one that is like your use."
        said += " shape (better): what is round, as for wheels; hue (worse): colors alone"
        assert (text.getvalue().splitlines()[-1] == said) == expected and ("disagree" in text.getvalue()) == expected


GRID = Grid(
    ("weights",),
    [("runs/demo/dense",), ("runs/demo/global",), ("random",)],
    [
        "accuracy",
        "chance\nlevel",
        "mutual",
        "entropy",
        "overlap\n< 1/2",
        "overlap\n≥ 1/2",
        "scale\n< 1.5",
        "scale\n≥ 1.5",
    ],
    [[f"{10 * row + column}.0 ± 0.{column}" for column in range(8)] for row in range(3)],
)


@pytest.mark.parametrize(("width", "first"), [(140, "chance"), (80, "runs/demo/dense"), (60, "runs/demo/dense")])
def test_a_table_never_breaks_a_word(width: int, first: str) -> None:
    text = io.StringIO()
    show_grid(GRID, Console(file=text, width=width))
    lines = text.getvalue().splitlines()
    assert max(map(len, lines)) <= width
    for word in ("runs/demo/dense", "runs/demo/global", "random", "accuracy", "27.0 ± 0.7"):
        assert any(word in line for line in lines)
    words = re.findall(r"[\w/]{3,}", " ".join(lines))
    assert words[0] == first
    rows = [line for line in lines if "accuracy" in line]
    assert len(rows) == (3 if width == 60 else 1)
