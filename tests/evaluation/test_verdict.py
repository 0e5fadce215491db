"""The statistics, against tables of Student's t and of sample sizes, and against numbers worked out by hand."""

from __future__ import annotations

import json
import math
import random
import statistics

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from densecl.evaluation.verdict import (
    MOST_SEEDS,
    Comparison,
    Verdict,
    judge_differences,
    seeds_needed,
    t_quantile,
)

#: From a printed table of Student's t.
TABLE = [
    (0.975, 1, 12.706),
    (0.975, 2, 4.303),
    (0.975, 3, 3.182),
    (0.975, 4, 2.776),
    (0.975, 9, 2.262),
    (0.975, 10, 2.228),
    (0.975, 30, 2.042),
    (0.975, 120, 1.980),
    (0.95, 1, 6.314),
    (0.95, 2, 2.920),
    (0.9, 5, 1.476),
    (0.8, 1, 1.376),
    (0.8, 4, 0.941),
    (0.995, 7, 3.499),
    (0.5, 6, 0.0),
]

differences = st.lists(st.floats(-50, 50), min_size=2, max_size=8)


@pytest.mark.parametrize(("probability", "degrees", "expected"), TABLE)
def test_quantiles_are_those_of_the_table(probability: float, degrees: int, expected: float) -> None:
    assert t_quantile(probability, degrees) == pytest.approx(expected, abs=6e-4)
    assert t_quantile(1 - probability, degrees) == pytest.approx(-expected, abs=6e-4)


def test_quantiles_in_closed_form() -> None:
    for probability in (0.6, 0.9, 0.975, 0.999):
        assert t_quantile(probability, 1) == pytest.approx(math.tan(math.pi * (probability - 0.5)))
        spread = 2 * probability - 1
        assert t_quantile(probability, 2) == pytest.approx(spread * math.sqrt(2 / (1 - spread**2)))


@given(st.floats(0.51, 0.999), st.integers(1, 300))
def test_quantiles_shrink_towards_the_normal_ones(probability: float, degrees: int) -> None:
    found, next_one = t_quantile(probability, degrees), t_quantile(probability, degrees + 1)
    assert found > next_one > statistics.NormalDist().inv_cdf(probability)
    assert t_quantile(probability + 0.0005, degrees) > found


@pytest.mark.parametrize(
    ("effect", "expected"),
    # Sample sizes of the two-sided paired t-test, alpha 0.05 and power 0.8, as G*Power and the textbooks list them.
    [(0.2, 199), (0.5, 34), (0.8, 15), (1.0, 10)],
)
def test_seeds_that_are_needed_are_those_of_the_tables(effect: float, expected: int) -> None:
    assert seeds_needed(effect, 1.0) == expected
    assert seeds_needed(3 * effect, 3.0) == expected


def test_seeds_that_nobody_has() -> None:
    assert seeds_needed(0.0, 1.0) is None and seeds_needed(0.01, 1.0) is None
    assert seeds_needed(1.0, 0.0) == 2
    assert seeds_needed(0.0888, 1.0) in range(900, MOST_SEEDS + 1)


def test_the_power_is_what_it_says() -> None:
    draw = random.Random(0)
    count = seeds_needed(1.0, 1.0)
    assert count == 10
    found = [
        judge_differences({seed: draw.gauss(1, 1) for seed in range(count)}).outcome == "better" for _ in range(2000)
    ]
    assert statistics.fmean(found) == pytest.approx(0.8, abs=0.03)


def test_the_interval_holds_the_truth_as_often_as_it_says() -> None:
    draw = random.Random(0)
    held = []
    for _ in range(2000):
        interval = judge_differences({seed: draw.gauss(3, 2) for seed in range(3)}).interval
        assert interval is not None
        held.append(interval[0] < 3 < interval[1])
    assert statistics.fmean(held) == pytest.approx(0.95, abs=0.015)


@pytest.mark.parametrize(("runs", "seeds"), [(2, 3), (3, 3), (5, 2)])
@pytest.mark.parametrize("spreads", [(1.0, 1.0, 1.0), (0.2, 3.0, 1.0), (3.0, 0.2, 1.0), (0.0, 2.0, 0.5)])
def test_the_interval_of_runs_holds_the_truth_at_least_as_often(
    runs: int, seeds: int, spreads: tuple[float, float, float]
) -> None:
    """Of runs, of what the evaluation draws for all of them, and of the rest."""
    draw = random.Random(0)
    held = []
    for _ in range(1000):
        of_run, of_seed = (
            [draw.gauss(0, spread) for _ in range(n)] for n, spread in ((runs, spreads[0]), (seeds, spreads[1]))
        )
        table = [[a + b + draw.gauss(0, spreads[2]) for b in of_seed] for a in of_run]
        verdict = judge_differences(
            {run: statistics.fmean(row) for run, row in enumerate(table)},
            by_evaluation=[statistics.fmean(column) for column in zip(*table, strict=True)],
        )
        assert verdict.interval is not None
        held.append(verdict.interval[0] < 0 < verdict.interval[1])
    assert statistics.fmean(held) >= 0.94


def test_runs_and_seeds_of_the_evaluation_by_hand() -> None:
    # Variances of the means: 2 / 2 and 1 / 3. Degrees of freedom: 1 and 2, so 1.
    verdict = judge_differences({0: 1.0, 1: 3.0}, by_evaluation=[1.0, 2.0, 3.0])
    assert verdict.deviation == pytest.approx(math.sqrt(2 * (1 + 1 / 3)))
    assert verdict.interval == pytest.approx([2 - 12.706 * math.sqrt(4 / 3), 2 + 12.706 * math.sqrt(4 / 3)], abs=1e-3)
    # One seed of the evaluation adds nothing.
    alone = judge_differences({0: 1.0, 1: 3.0})
    assert judge_differences({0: 1.0, 1: 3.0}, by_evaluation=[2.0]) == alone
    assert alone.deviation == pytest.approx(math.sqrt(2))
    # Two like runs are no proof where the evaluation's draws disagree, and more runs are needed in any case.
    verdict = judge_differences({0: 2.0, 1: 2.1, 2: 2.0, 3: 2.1, 4: 2.0}, by_evaluation=[1.8, 2.28])
    assert verdict.outcome == "unclear" and verdict.seeds_needed == 6


def test_by_hand() -> None:
    verdict = judge_differences({0: 1.0, 1: 2.0, 2: 3.0})
    # The standard deviation is 1, so half the interval is 4.3027 / sqrt(3) = 2.484: it holds 0.
    assert (verdict.outcome, verdict.mean, verdict.deviation) == ("unclear", 2.0, 1.0)
    assert verdict.interval == pytest.approx((2 - 2.484, 2 + 2.484), abs=1e-3)
    # With 4 pairs: (3.182 + 0.978) / 2 = 2.08 > sqrt(4). With 5: (2.776 + 0.941) / 2 = 1.86 < sqrt(5).
    assert verdict.seeds_needed == 5
    sentence = "cannot tell, about 5 seeds would be needed: 2.0 ± 2.5 mIoU above imagenet (3 seeds)"
    assert verdict.sentence("imagenet", "mIoU") == sentence
    verdict = judge_differences({0: 1.6, 1: 1.8, 2: 2.0})  # half the interval: 0.2 * 2.484
    assert verdict.sentence("imagenet", "mIoU") == "better than imagenet by 1.8 ± 0.5 mIoU (3 seeds)"
    verdict = judge_differences({0: -1.6, 1: -1.8, 2: -2.0})
    assert verdict.sentence("a", "AP", "run") == "worse than a by 1.8 ± 0.5 AP (3 runs): do not use it"


@pytest.mark.parametrize(
    ("verdict", "expected"),
    [
        (judge_differences({0: 0.44}), "one seed cannot tell: 0.4 AP above b"),
        (judge_differences({0: 0.0}), "one seed cannot tell: the same as b"),
        (
            judge_differences({0: -0.44}, drawn=False),
            "0.4 AP below b on these images; nothing was drawn, so seeds do not say how sure that is",
        ),
        (
            judge_differences({0: 2.5, 1: 2.5}),
            "2.5 AP above b at each of the 2 seeds, so they do not say how sure that is",
        ),
        (Verdict("unclear", 0.5, {0: 0.5}, images=12), "cannot tell: 0.5 AP above b on each of the 12 test images"),
        (Verdict("not paired", 1.0, {}), "1.0 AP above b, but they have no seed in common, so this is no paired"),
        (judge_differences({0: 0.04, 1: -0.04}), "cannot tell, more than 1000 seeds would be needed: 0.0 ± 0.5 AP"),
        (judge_differences({0: 0.041, 1: 0.042, 2: 0.043}), "better than b by 0.04 ± 0.00 AP (3 seeds)"),
    ],
)
def test_other_sentences(verdict: Verdict, expected: str) -> None:
    assert verdict.sentence("b", "AP").startswith(expected)


def test_where_nothing_says_how_sure_the_way_out_is_named() -> None:
    verdict = judge_differences({0: 0.5}, drawn=False)
    comparison = Comparison("task", "w", "b", "all", 1.0, "miou", "mIoU", "seed", verdict)
    assert comparison.sentence.endswith("how sure that is: `--label-fraction 0.5 --seeds 5` draws the labels")
    assert comparison._replace(label_fraction=None).sentence.endswith("so seeds do not say how sure that is")


@given(differences)
def test_turned_round_better_is_worse(values: list[float]) -> None:
    one, other = (judge_differences(dict(enumerate(some))) for some in (values, [-value for value in values]))
    turned = {"better": "worse", "worse": "better"}
    assert other.outcome == turned.get(one.outcome, one.outcome)
    assert other.mean == pytest.approx(-one.mean) and other.seeds_needed == one.seeds_needed


@given(differences)
def test_the_outcome_follows_the_interval(values: list[float]) -> None:
    assume(statistics.stdev(values) > 1e-6)
    verdict = judge_differences(dict(enumerate(values)))
    assert verdict.interval is not None
    low, high = verdict.interval
    assert low <= verdict.mean <= high
    assert verdict.outcome == ("better" if low > 0 else "worse" if high < 0 else "unclear")
    if verdict.outcome == "unclear":  # what is needed is always more than there is
        assert verdict.seeds_needed is None or verdict.seeds_needed > len(values)


@given(differences, st.randoms(use_true_random=False))
def test_the_order_of_the_seeds_does_not_matter(values: list[float], draw: random.Random) -> None:
    shuffled = list(values)
    draw.shuffle(shuffled)
    one, other = (judge_differences(dict(enumerate(some))) for some in (values, shuffled))
    assert one.mean == pytest.approx(other.mean) and one.deviation == pytest.approx(other.deviation)


@given(st.lists(st.floats(-50, 50), min_size=1, max_size=5), st.booleans())
def test_the_file_takes_every_verdict(values: list[float], drawn: bool) -> None:
    verdict = judge_differences(dict(enumerate(values)), drawn=drawn)
    comparison = Comparison("task", "w", "b", "all", None, "miou", "mIoU", "seed", verdict)
    content = json.loads(json.dumps(comparison.as_json(), allow_nan=False))
    assert content["sentence"] == comparison.sentence and content["outcome"] == verdict.outcome
    assert content["interval_kind"] == (None if verdict.interval is None else "Student's t of seeds")
    assert content["test_images"] is None
    assert [pair["difference"] for pair in content["differences"]] == values
