"""Each arm beside the baseline: which scores are paired, and what the verdict rests on."""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Mapping, Sequence

from densecl.evaluation.arms import Arm
from densecl.evaluation.resampling import judge_images
from densecl.evaluation.results import Result, fractions_of
from densecl.evaluation.tables import Printed
from densecl.evaluation.verdict import Comparison, Verdict, judge_differences


def compare_arms(
    results: Sequence[Result], tasks: Sequence[Printed], arms: Sequence[Arm], baseline: Arm, asked: int
) -> list[Comparison]:
    """The verdict on each arm but the baseline, by the headline score of each task.

    Args:
        results: all of the weights that were judged. Arms that are not complete are passed over.
        tasks: what was asked. The first of a task's columns is its headline score.
        arms: all of them.
        baseline: one of them.
        asked: number of seeds that each of the weights was to be judged at.
    """
    found = []
    for task in tasks:
        score, title = next(iter(task.columns.items()))
        mine = [result for result in results if result.task == task.name]
        for subset in dict.fromkeys(result.subset for result in mine):
            for fraction, some in fractions_of(result for result in mine if result.subset == subset).items():
                scores = _scores(some, score)
                for arm in arms:
                    if arm == baseline or not all(name in scores for name in (*arm.members, *baseline.members)):
                        continue
                    if arm.seeds or baseline.seeds:
                        counted, verdict = "run", _of_runs(scores, arm, baseline)
                    else:
                        counted, verdict = "seed", _of_images(some, arm.name, baseline.name)
                        if verdict is None:
                            verdict = _of_seeds(scores[arm.name], scores[baseline.name], asked)
                    verdict = _above_floor(verdict, scores, some, (*arm.members, *baseline.members))
                    about = (task.name, arm.name, baseline.name, subset, fraction, score, _unit(title), counted)
                    found.append(Comparison(*about, verdict))
    return found


def _unit(title: str) -> str:
    """mIoU and AP are units of their own. Of others, such as accuracy, one says points."""
    title = " ".join(title.split())
    return f"points of {title}" if title.islower() else title


#: name of the weights -> seed of the evaluation -> score
_Scores = Mapping[str, Mapping[int, float]]


def _scores(results: Sequence[Result], score: str) -> _Scores:
    found: dict[str, dict[int, float]] = {}
    for result in results:
        value = result.scores[score]
        if not math.isnan(value):
            found.setdefault(result.weights, {})[result.seed] = value
    return found


def _of_images(results: Sequence[Result], mine: str, other: str) -> Verdict | None:
    """By the test images, if nothing was drawn for both of the weights. None: a seed drew something."""
    one, baseline = ([result for result in results if result.weights == name] for name in (mine, other))
    if len(one) > 1 or len(baseline) > 1 or one[0].by_image is None or baseline[0].by_image is None:
        return None
    return judge_images(one[0].by_image, baseline[0].by_image, one[0].seed)


def _above_floor(verdict: Verdict, scores: _Scores, results: Sequence[Result], names: Sequence[str]) -> Verdict:
    """The verdict, unless all of these weights are at the floor."""
    floor = results[0].floor
    if floor is None or not all(floor.holds(statistics.fmean(scores[name].values())) for name in names):
        return verdict
    return dataclasses.replace(verdict, outcome="at the floor", floor=floor.score)


def _of_seeds(mine: Mapping[int, float], others: Mapping[int, float], asked: int) -> Verdict:
    """Pairs by the seed of the evaluation."""
    differences = _differences(mine, others)
    return judge_differences(differences, drawn=len(differences) > 1 or asked == 1)


def _differences(mine: Mapping[int, float], others: Mapping[int, float]) -> dict[int, float]:
    """By seed of the evaluation. A single score stands for all seeds, because it depends on none."""
    single = min(len(mine), len(others)) == 1
    return {
        seed: mine.get(seed, next(iter(mine.values()))) - others.get(seed, next(iter(others.values())))
        for seed in sorted({*mine, *others} if single else {*mine} & {*others})
    }


def _of_runs(scores: _Scores, arm: Arm, baseline: Arm) -> Verdict:
    """Pairs by the seed of the run. Weights that are no runs of one arm stand beside each run.

    Both spreads count: that of the runs, and that of what the evaluation draws, which is the same for all runs.
    """
    mine, others = (dict(zip(one.seeds, one.members, strict=False)) for one in (arm, baseline))
    mine = mine or dict.fromkeys(others, arm.name)
    others = others or dict.fromkeys(mine, baseline.name)
    runs = sorted(set(mine) & set(others))
    if not runs:
        means = (
            statistics.fmean(statistics.fmean(scores[name].values()) for name in one.members) for one in (arm, baseline)
        )
        return Verdict("not paired", next(means) - next(means), {})
    table = {run: _differences(scores[mine[run]], scores[others[run]]) for run in runs}
    seeds = set.intersection(*({*by_seed} for by_seed in table.values()))
    return judge_differences(
        {run: statistics.fmean(by_seed.values()) for run, by_seed in table.items()},
        by_evaluation=[statistics.fmean(table[run][seed] for run in runs) for seed in sorted(seeds)],
    )
