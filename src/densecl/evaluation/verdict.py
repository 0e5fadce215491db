"""Is one better than the other? Paired differences, their interval, and how many seeds would tell. Pure statistics."""

from __future__ import annotations

import functools
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

#: How sure an interval is, and how likely the seeds that would be needed find the difference.
CONFIDENCE, POWER = 0.95, 0.8

#: Nobody runs more seeds than these. A difference that needs more is as good as none.
MOST_SEEDS = 1000

#: A standard deviation below this is rounding: all differences are the same.
NO_SPREAD = 1e-9

#: How seeds come to say something where nothing is drawn.
WAY_OUT = "`--label-fraction 0.5 --seeds 5` draws the labels"

#: better, worse: the interval lies on one side of 0.
#: unclear: it holds 0.
#: one seed: there is one difference, so there is no interval.
#: not drawn: no seed changes the difference, so seeds say nothing of how sure it is; and there are too few test images.
#: not paired: the two have no seed in common.
#: at the floor: both score no more than one class everywhere would (`floor`), so their difference says nothing.
Outcome = Literal["better", "worse", "unclear", "one seed", "not drawn", "not paired", "at the floor"]


@dataclass(frozen=True)
class Verdict:
    """What the differences to the baseline say.

    Attributes:
        outcome: in a word.
        mean: of the differences. Above 0 is better than the baseline.
        differences: by seed.
        deviation: standard deviation of the differences; of runs, with the spread of the evaluation's seeds. None if
            there is one or none.
        interval: of the mean, at `CONFIDENCE`: by Student's t, or of test images by `resampling`. None where neither
            can say it.
        seeds_needed: so many seeds would find a difference as large as this mean, with the probability `POWER`. None if
            it takes more than `MOST_SEEDS`, or if nothing is known of it.
        images: the number of test images that were drawn anew for the interval. None: it is one of seeds.
        floor: what one class everywhere would score, in percent, if both score no more than that.
    """

    outcome: Outcome
    mean: float
    differences: Mapping[int, float]
    deviation: float | None = None
    interval: tuple[float, float] | None = None
    seeds_needed: int | None = None
    images: int | None = None
    floor: float | None = None

    def sentence(self, baseline: str, unit: str, counted: str = "seed") -> str:
        """The verdict in words.

        Args:
            baseline: its name.
            unit: what the difference is counted in, such as "mIoU".
            counted: what a difference belongs to: "seed" or "run".
        """
        decimals = self._decimals()
        size = f"{abs(self.mean):.{decimals}f}"
        if self.interval is not None:
            size += f" ± {(self.interval[1] - self.interval[0]) / 2:.{decimals}f}"
        count = len(self.differences)
        seen = f"({count} {counted}{'s' * (count != 1)})"
        if self.images is not None:
            seen = f"on images like these ({100 * CONFIDENCE:g} % by resampling the {self.images} test images)"
        apart = f"{size} {unit} {'above' if self.mean >= 0 else 'below'} {baseline}"
        if self.interval is None and self.mean == 0:
            apart = f"the same as {baseline}"
        if self.outcome == "at the floor":
            return f"both are at the floor of {self.floor:.1f} {unit}; this task cannot tell them apart"
        if self.outcome == "better":
            return f"better than {baseline} by {size} {unit} {seen}"
        if self.outcome == "worse":
            return f"worse than {baseline} by {size} {unit} {seen}: do not use it"
        if self.outcome == "unclear" and self.images is not None:
            seen = seen if self.interval is not None else f"on each of the {self.images} test images"
            return f"cannot tell: {apart} {seen}"
        if self.outcome == "unclear":
            needed = f"more than {MOST_SEEDS}" if self.seeds_needed is None else f"about {self.seeds_needed}"
            return f"cannot tell, {needed} {counted}s would be needed: {apart} {seen}"
        if self.outcome == "one seed":
            return f"one {counted} cannot tell: {apart}"
        if self.outcome == "not paired":
            return f"{apart}, but they have no seed in common, so this is no paired difference"
        if count > 1:
            return f"{apart} at each of the {count} {counted}s, so they do not say how sure that is"
        if self.images is not None:
            few = f"{self.images} test image{'s' * (self.images != 1)}"
            return f"{apart} on these images; {few} cannot say how sure that is"
        return f"{apart} on these images; nothing was drawn, so seeds do not say how sure that is"

    def _decimals(self) -> int:
        """Two where one would show 0.0."""
        smallest = abs(self.mean) if self.interval is None else (self.interval[1] - self.interval[0]) / 2
        return 2 if 0 < smallest < 0.095 else 1


class Comparison(NamedTuple):
    """A verdict, and what it is about."""

    task: str
    weights: str  # or what several runs of one arm have in common
    baseline: str
    subset: str
    label_fraction: float | None
    score: str  # its key
    unit: str
    counted: str  # "seed" or "run"
    verdict: Verdict

    @property
    def sentence(self) -> str:
        said = self.verdict.sentence(self.baseline, self.unit, self.counted)
        # Only a task that learns from labels has a fraction of them.
        return f"{said}: {WAY_OUT}" if self.verdict.outcome == "not drawn" and self.label_fraction is not None else said

    def _kind(self) -> str | None:
        """How the interval was found."""
        if self.verdict.interval is None:
            return None
        return f"Student's t of {self.counted}s" if self.verdict.images is None else "paired bootstrap of test images"

    def as_json(self) -> dict[str, Any]:
        verdict = self.verdict
        return {
            "task": self.task,
            "weights": self.weights,
            "baseline": self.baseline,
            "subset": self.subset,
            "label_fraction": self.label_fraction,
            "score": self.score,
            "outcome": verdict.outcome,
            "mean": verdict.mean,
            "interval": verdict.interval,
            "confidence": CONFIDENCE,
            "interval_kind": self._kind(),
            "test_images": verdict.images,
            "deviation": verdict.deviation,
            "seeds_needed": verdict.seeds_needed,
            "power": POWER,
            "differences": [{"seed": seed, "difference": value} for seed, value in verdict.differences.items()],
            "sentence": self.sentence,
        }


def judge_differences(
    differences: Mapping[int, float], *, drawn: bool = True, by_evaluation: Sequence[float] = ()
) -> Verdict:
    """The verdict on the differences to the baseline.

    Args:
        differences: one for each seed, at least one.
        drawn: whether a seed could have changed them.
        by_evaluation: where each of the `differences` is a run's mean over several seeds of the evaluation: the same
            differences by these seeds, each a mean over the runs. What the evaluation draws is the same for all runs,
            so their spread does not show it. The variances of both means are added, and t has the fewer degrees of
            freedom of the two. That is a little too careful. Satterthwaite's degrees were not careful enough: with
            five runs and two seeds the interval held the truth in 91 of 100 cases.
    """
    values = list(differences.values())
    mean, count = statistics.fmean(values), len(values)
    if count == 1:
        return Verdict("one seed" if drawn else "not drawn", mean, differences)
    samples = [some for some in (values, by_evaluation) if len(some) > 1]
    variance = sum(statistics.variance(some) / len(some) for some in samples)  # of the mean
    deviation = math.sqrt(variance * count)
    if deviation <= NO_SPREAD:  # an interval without width would feign certainty
        return Verdict("not drawn", mean, differences, deviation)
    half = t_quantile((1 + CONFIDENCE) / 2, min(map(len, samples)) - 1) * math.sqrt(variance)
    needed = seeds_needed(abs(mean), deviation)
    outcome: Outcome = "better" if mean > half else "worse" if mean < -half else "unclear"
    if outcome == "unclear" and needed is not None:  # few seeds of the evaluation may leave it open
        needed = max(needed, count + 1)
    return Verdict(outcome, mean, differences, deviation, (mean - half, mean + half), needed)


def seeds_needed(difference: float, deviation: float) -> int | None:
    """How many pairs find a difference with the probability `POWER`, in a two-sided test of 1 - `CONFIDENCE`.

    The least n of at least ((t1 + t2) deviation / difference)^2, with t's quantiles for n - 1 degrees of freedom. The
    tables of sample sizes for the paired t-test come out so.

    Args:
        difference: which shall be found.
        deviation: standard deviation of the paired differences.

    Returns:
        At least 2. None: more than `MOST_SEEDS`.
    """
    if deviation <= 0:
        return 2
    sure, likely = (1 + CONFIDENCE) / 2, POWER
    normal = statistics.NormalDist()
    ratio = difference / deviation
    # The normal distribution needs fewer seeds than Student's t, so that is where the search starts.
    if ratio * math.sqrt(MOST_SEEDS) < normal.inv_cdf(sure) + normal.inv_cdf(likely):
        return None
    count = max(2, math.ceil(((normal.inv_cdf(sure) + normal.inv_cdf(likely)) / ratio) ** 2))
    while ratio * math.sqrt(count) < t_quantile(sure, count - 1) + t_quantile(likely, count - 1):
        count += 1
    return count if count <= MOST_SEEDS else None


@functools.cache
def t_quantile(probability: float, degrees: int) -> float:
    """The value that Student's t stays below with this probability.

    Python has no such function, and scipy is no dependency. For a whole number of degrees of freedom the distribution
    is a finite sum, and bisection inverts it to the last bits.

    Args:
        probability: above 0 and below 1.
        degrees: of freedom, at least 1.
    """
    if probability < 0.5:
        return -t_quantile(1 - probability, degrees)
    low, high = 0.0, math.pi / 2
    for _ in range(60):
        angle = (low + high) / 2
        if (1 + _within(angle, degrees)) / 2 < probability:
            low = angle
        else:
            high = angle
    return math.sqrt(degrees) * math.tan((low + high) / 2)


def _within(angle: float, degrees: int) -> float:
    """The probability that |t| < sqrt(degrees) tan(angle). Abramowitz and Stegun, 26.7.3 and 26.7.4."""
    odd = degrees % 2
    term = math.sin(angle) * (math.cos(angle) if odd else 1)
    total = 0.0
    for place in range(1, degrees // 2 + 1):
        total += term
        term *= math.cos(angle) ** 2 * (2 * place - 1 + odd) / (2 * place + odd)
    return 2 / math.pi * (angle + total) if odd else total
