"""The table of verdicts, and what they say of a whole run."""

from __future__ import annotations

from collections.abc import Iterator

from densecl.verdicts import course, features, losses
from densecl.verdicts.record import EARLY, PROBE_NOISE, Record
from densecl.verdicts.verdict import LEVELS, Found, Row, Verdict, worse

#: Name -> verdict, in the order in which they are told.
VERDICTS: dict[str, Row] = {
    "learning": Row(
        features.learning,
        "it learns",
        "probe or match_accuracy (watched.csv)",
        f"risen by more than noise: {PROBE_NOISE:.1f} mIoU, or twice 0.16 / sqrt(pairs)",
        "measured: how far the match accuracy of a view pair moves without learning",
    ),
    "queue-filling": Row(
        losses.queue_filling,
        "the queue fills; a rising loss is normal",
        "global_loss, and steps until the queue is full",
        f"risen by {losses.RISEN} since the first row, and the queue is not full yet",
        "the authors' curve on COCO: 8.68 at step 50, 9.76 at step 200, 6.75 at the end",
    ),
    "at-chance": Row(
        losses.at_chance,
        "the loss is that of a guess",
        "global_loss, dense_loss against global_chance_loss, dense_chance_loss",
        f"above {losses.PINNED} of chance for {losses.LASTING} of the run (fault: {losses.LASTING_LONG}), after the"
        " warm-up and once the queue is full; dino: a warning from the latter on",
        "ln(candidates) is a guess; how long is a guess of ours, checked on the runs of docs/benchmarks/verdicts.md",
    ),
    "easy-queue": Row(
        losses.easy_queue,
        "the queue's keys are told apart by something else than the picture",
        "global_loss against global_positive, global_negative and temperature",
        f"keys count as {losses.EASIER:g} times fewer images (fault: {losses.FAR_EASIER:g}), once the queue was filled"
        " twice",
        "derived: Jensen's inequality; the factors are guesses, checked on the runs of docs/benchmarks/verdicts.md",
    ),
    "loss-without-matches": Row(
        losses.loss_without_matches,
        "the dense loss is solved without finding places",
        "dense_loss against dense_chance_loss; match_accuracy (watched.csv)",
        f"loss below {losses.SOLVED} of chance, and match accuracy not above its start after half of the run",
        "measured: --recipe paper did so in 651 steps and gained 1 to 3 mIoU, where matches that rose gained 6 to 8",
    ),
    "worse-than-random": Row(
        features.worse_than_random,
        "cells find their places less often than with random weights",
        "match_accuracy (watched.csv), with a dense loss and without --init",
        "below its start by more than noise, after half of the run",
        "measured: of 27 runs from scratch 4 did so; three ended below the mIoU of random weights, one 1.3 above",
    ),
    "no-gain": Row(
        features.no_gain,
        "the features leave the starting weights without gain",
        "moved; probe or match_accuracy (watched.csv), with --init",
        f"below its start by more than noise; or moved by {features.LEFT} without a gain after half of the run",
        "measured: of 15 continued runs the two whose matches fell were the worst of their images; the distance is a"
        " guess",
    ),
    "few-matches": Row(
        features.few_matches,
        "matches collapse onto few cells",
        "distinct_matches",
        f"below {features.FEW}",
        "random matches hit 1 - 1/e = 0.63 of the cells; the threshold is a guess, checked on the runs of"
        " docs/benchmarks/verdicts.md",
    ),
    "rank-falls": Row(
        features.rank_falls,
        "the effective rank falls",
        "effective_rank (watched.csv)",
        f"to {features.FALLEN} of its start",
        "measured: of 15 continued runs the two that fell to 0.2 and 0.09 were the worst of their images; one that fell"
        " to 0.35 gained 9 mIoU, and its two repetitions fell to 0.26 and 0.22",
    ),
    "vectors-alike": Row(
        features.vectors_alike,
        "all images have nearly the same vector",
        "image_spread",
        f"below {features.ALIKE}, after the warm-up",
        "measured: byol came back from 0.02, dino from 0.006; a run is stopped at 0.0001",
    ),
    "features-alike": Row(
        features.features_alike,
        "one offset grows in the features of all images, and no loss shows it",
        "feature_spread (metrics.csv), in older runs image_spread (watched.csv)",
        f"to {features.OFFSET} of its start, with the global loss alone to {features.OFFSET_GLOBAL} (fault:"
        f" {features.ALL_OFFSET})",
        "measured: with the dense loss runs gained 2 to 9 mIoU at 0.07 to 0.2; with the global loss alone all 8 of 1000"
        " steps were at 0.01 to 0.16 after step 100 and below 0.002 after step 200, and the two that were judged are as"
        " good as random weights",
    ),
    "small-grid": Row(
        features.small_grid,
        "too small a grid",
        "match_chance (watched.csv)",
        f"{features.COARSE} or more",
        "known: below 4x4 cells, which have 0.18, the dense loss means little",
        told_before=True,
    ),
    "long-queue": Row(
        features.long_queue,
        "the queue is longer than the data",
        "queue_length against the images, from step, epoch and batch size",
        "more keys than images",
        "reported: with 170 images both losses only rose",
        told_before=True,
    ),
    "flat": Row(
        course.flat,
        "flat; stopping now loses little",
        "probe or match_accuracy (watched.csv)",
        f"{course.FLAT} measurements without a gain of a quarter of the noise, after a gain before",
        "a guess; with half of the noise a run was called flat that still gained 2 mIoU",
    ),
    "waits-for-data": Row(
        course.waits_for_data,
        "the loader is the bottleneck",
        "data_wait",
        f"median of {course.ROWS_OF_WAITING} rows at {course.WAITS} or more",
        f"arithmetic: without the waiting the run would be {1 / (1 - course.WAITS):.1f} times as fast",
    ),
}


def seen(record: Record) -> dict[str, Found]:
    """What the verdicts find in a record as it stands, by name."""
    found = {}
    for name, row in VERDICTS.items():
        one = row.judge(record)
        early = record.step < EARLY and not row.told_before
        if one is not None and not (early and one.level in ("warning", "fault")):
            found[name] = one
    return found


def verdicts(record: Record) -> list[Verdict]:
    """All that the verdicts had to say of a run, the worst first; then in the order of their steps.

    The run is gone through as it went, in about as many looks as it took at itself.
    """
    first: dict[str, Verdict] = {}
    for step in _looks(record):
        now = seen(record.until(step))
        for name, found in now.items():
            row = VERDICTS[name]
            before = first.get(name)
            worst = found.level if before is None else worse(before.level, found.level)
            begun = step if before is None else before.step
            first[name] = Verdict(name, worst, begun, found.text, row.measure, row.threshold, row.source)
        for name, verdict in first.items():
            if name not in now and verdict.until is None:
                first[name] = verdict._replace(until=step)
    return sorted(first.values(), key=lambda verdict: (-LEVELS.index(verdict.level), verdict.step))


def look_is_due(rows: int, looked_at: int) -> bool:
    """Whether so many rows of metrics.csv are worth another look, after one at `looked_at` of them.

    The first 40 rows are, then each twentieth more. So what looking costs does not grow with the run.
    """
    return rows <= 40 or rows >= 1.05 * looked_at


def _looks(record: Record) -> Iterator[int]:
    """The steps after which a run looked at itself, in order."""
    steps = [int(row["step"]) for row in record.metrics]
    chosen = {int(row["step"]) for row in record.watched} | {record.step}
    looked_at = 0
    for rows in range(1, len(steps) + 1):
        if look_is_due(rows, looked_at):
            chosen.add(steps[rows - 1])
            looked_at = rows
    yield from sorted(chosen)
