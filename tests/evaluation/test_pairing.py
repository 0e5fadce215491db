from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import ClassVar

import pytest

from densecl.evaluation.arms import arms_of, find_baseline
from densecl.evaluation.floor import Floor
from densecl.evaluation.pairing import compare_arms
from densecl.evaluation.results import Result
from densecl.evaluation.verdict import Comparison, judge_differences


class Shape:
    name = "shape"
    title = "shape, drawn"
    use = "what is round, as for wheels"
    class_names: ClassVar[Mapping[str, str]] = {}
    columns: ClassVar = {"round": "round", "hue": "hue"}


def results(scores: Mapping[str, Mapping[int, float]], subset: str = "all", fraction: float | None = None) -> list:
    return [
        Result("shape", weights, seed, subset, {"hue": 0.0, "round": float(value)}, label_fraction=fraction)
        for weights, by_seed in scores.items()
        for seed, value in by_seed.items()
    ]


def compare(
    scores: Mapping[str, Mapping[int, float]], baseline: Sequence[str] = (), asked: int = 3
) -> list[Comparison]:
    arms = arms_of(list(scores))
    return compare_arms(results(scores), [Shape()], arms, find_baseline(arms, baseline), asked)


def test_pairs_by_the_seed_of_the_evaluation() -> None:
    # The scores vary far more than the differences do.
    (found,) = compare({"random": {0: 10, 1: 20, 2: 30}, "run": {0: 11.9, 1: 22, 2: 32.1}})
    assert (found.task, found.weights, found.baseline, found.score) == ("shape", "run", "random", "round")
    assert found.verdict.outcome == "better" and found.verdict.mean == pytest.approx(2)
    assert found.sentence == "better than random by 2.0 ± 0.2 points of round (3 seeds)"
    (found,) = compare({"random": {0: 10, 1: 20, 2: 30}, "run": {0: 11.9, 1: 22, 2: 32.1}}, ["run"])
    assert (found.weights, found.baseline, found.verdict.outcome) == ("random", "run", "worse")


def test_a_single_score_stands_for_all_seeds() -> None:
    for scores in (
        {"random": {0: 10, 1: 20, 2: 30}, "run": {0: 40}},
        {"random": {1: 10, 2: 20, 3: 30}, "run": {1: 40}},
    ):
        (found,) = compare(scores)
        assert list(found.verdict.differences.values()) == [30, 20, 10]
        assert list(found.verdict.differences) == list(scores["random"])
    (found,) = compare({"imagenet": {0: 30}, "run": {0: 31.26}})
    assert found.verdict.outcome == "not drawn" and "1.3 points of round above imagenet on these" in found.sentence
    (found,) = compare({"imagenet": {0: 30}, "run": {0: 31.26}}, asked=1)
    assert found.sentence == "one seed cannot tell: 1.3 points of round above imagenet"


def test_runs_are_paired_by_their_own_seed() -> None:
    scores = {
        "a-seed0": {0: 1.0, 1: 3.0},
        "a-seed1": {0: 11.0, 1: 13.0},
        "b-seed1": {0: 15.0, 1: 15.0},
        "b-seed0": {0: 4.0, 1: 5.0},
        "imagenet": {0: 1.0, 1: 2.0},
    }
    b, imagenet = compare(scores)
    assert (b.weights, b.baseline, b.counted) == ("b-seed*", "a-seed*", "run")
    assert b.verdict.differences == {0: 2.5, 1: 3.0}  # of means over the evaluation's seeds
    assert imagenet.verdict.differences == {0: -0.5, 1: -10.5}
    assert b.sentence.endswith("(2 runs)")
    # Each of the evaluation's two seeds has a mean over the runs, too: of 3 and 4, and of 2 and 2.
    assert b.verdict == judge_differences({0: 2.5, 1: 3.0}, by_evaluation=[3.5, 2.0])


def test_what_the_evaluation_draws_is_not_taken_for_certain() -> None:
    """Two runs agree on the mean of three draws of labels, but the draws do not agree."""
    scores = {"a-seed0": {0: 0.0, 1: 4.0, 2: 8.0}, "a-seed1": {0: 0.1, 1: 4.0, 2: 8.1}, "imagenet": {0: 0, 1: 1, 2: 2}}
    (found,) = compare(scores, ["imagenet"])
    assert found.verdict.outcome == "unclear" and found.verdict.mean == pytest.approx(3.03, abs=0.01)
    random, _ = compare({"random": {0: 1, 1: 2, 2: 9}, "a-seed0": {0: 9}, "a-seed1": {0: 9.1}, "b": {0: 2}})
    assert random.verdict.outcome == "unclear" and random.verdict.mean == pytest.approx(5.05)


def test_runs_without_a_partner() -> None:
    scores = {"a-seed0": {0: 1.0}, "a-seed1": {0: 2.0}, "b-seed1": {0: 5.0}, "b-seed2": {0: 9.0}}
    (found,) = compare(scores)
    assert found.verdict.differences == {1: 3.0} and found.sentence.startswith("one run cannot tell: 3.0")
    scores = {"a-seed0": {0: 1.0}, "a-seed1": {0: 2.0}, "b-seed3": {0: 5.0}, "b-seed2": {0: 9.0}}
    (found,) = compare(scores)
    assert found.verdict.outcome == "not paired" and found.verdict.mean == 5.5


def test_what_is_not_complete_or_has_no_score_is_left_out() -> None:
    assert compare({"a": {0: math.nan}, "b": {0: 1.0}}) == []
    arms = arms_of(["a", "b", "c"])
    found = compare_arms(results({"a": {0: 1.0}, "b": {0: 2.0}}), [Shape()], arms, arms[0], 3)
    assert [comparison.weights for comparison in found] == ["b"]


def test_two_at_the_floor_are_not_told_apart() -> None:
    floor = Floor(43.0, 0)
    for mine, outcome in (({0: 43.1, 1: 43.21}, "at the floor"), ({0: 44.1, 1: 44.21}, "better")):
        scores = {"random": {0: 42.0, 1: 42.1}, "run": mine}
        arms = arms_of(list(scores))
        told = [result._replace(floor=floor) for result in results(scores)]
        (found,) = compare_arms(told, [Shape()], arms, arms[0], 2)
        assert found.verdict.outcome == outcome
        if outcome == "at the floor":
            sentence = "both are at the floor of 43.0 points of round; this task cannot tell them apart"
            assert found.sentence == sentence and found.verdict.interval is not None


def test_subsets_and_fractions_are_compared_apart() -> None:
    arms = arms_of(["a", "b"])
    some = [
        *results({"a": {0: 1.0}, "b": {0: 2.0}}, fraction=0.1),
        *results({"a": {0: 1.0}, "b": {0: 4.0}}, fraction=1.0),
        *results({"a": {0: 1.0}, "b": {0: 8.0}}, subset="x*", fraction=1.0),
    ]
    found = compare_arms(some, [Shape()], arms, arms[0], 3)
    assert [(one.subset, one.label_fraction, one.verdict.mean) for one in found] == [
        ("all", 0.1, 1.0),
        ("all", 1.0, 3.0),
        ("x*", 1.0, 7.0),
    ]
