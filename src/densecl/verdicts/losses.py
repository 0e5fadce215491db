"""Verdicts on the losses: against their chance level, against what the vectors explain, and against the matches."""

from __future__ import annotations

import math
import statistics

from densecl.verdicts.record import RECENT, Numbers, Record
from densecl.verdicts.verdict import Found, Level, percent

#: Nats that the loss must have risen by to be worth a word.
RISEN = 0.2

#: A loss above this fraction of its chance level counts as pinned there.
PINNED = 0.97

#: ... once it has lasted for this fraction of the run, from the warm-up on; and for this one it is a fault.
LASTING, LASTING_LONG = 0.25, 0.5

#: The queue's keys count as told apart where they are so many times easier than the batch's other images, and as a
#: queue that does not work where they are this much easier.
EASIER, FAR_EASIER = 5.0, 20.0

#: Fraction of its chance level below which a dense loss counts as solved.
SOLVED = 0.6

#: Fraction of the run after which the matches should have moved with it.
HALF = 0.5


def queue_filling(record: Record) -> Found | None:
    """A queue starts with random vectors, which are easily told from keys. With real keys the task becomes harder."""
    length = record.recipe.get("queue_length")
    losses = [row["global_loss"] for row in record.metrics if "global_loss" in row]
    if not length or len(losses) < 2 or not record.keys_of_a_step:
        return None
    full = math.ceil(length / record.keys_of_a_step)
    if record.step >= full or losses[-1] - losses[0] < RISEN:
        return None
    return Found(
        "note",
        f"The loss rises ({losses[0]:.2f} -> {losses[-1]:.2f}) because the queue fills with real keys, which are harder"
        f" to tell apart than the random vectors that it began with. This is normal. It is full after step {full}; look"
        " at the loss from then on.",
    )


def at_chance(record: Record) -> Found | None:
    """A loss that stays where guessing would put it has learned to tell nothing apart."""
    levels: tuple[tuple[Level, float], ...] = (("fault", LASTING_LONG), ("warning", LASTING))
    if record.recipe.get("method") == "dino":  # it begins there, and leaves it late
        levels = (("warning", LASTING_LONG),)
    for level, share in levels:
        for what in ("global", "dense"):
            ratio = _of_chance(record, what, share)
            if ratio >= PINNED:
                chance = record.metrics[-1][f"{what}_chance_loss"]
                return Found(
                    level,
                    f"The {what} loss stays at chance level ({ratio * chance:.2f}; a guess has {chance:.2f}): the"
                    " network tells nothing apart. Try a tenth of --base-learning-rate, and look at the images with"
                    " densecl check: blank ones cannot be told apart.",
                )
    return None


def _of_chance(record: Record, what: str, share: float) -> float:
    """The mean of loss / chance level over the last `share` of the run; nan if that began within the warm-up."""
    loss, chance = f"{what}_loss", f"{what}_chance_loss"
    full = (record.recipe.get("queue_length") or 0) / (record.keys_of_a_step or 1)
    counted = [
        row
        for row in record.metrics
        if row.get(chance)
        and loss in row
        and row["step"] >= full
        and record.warmed_up(row)
        and (what == "global" or row.get("dense_weight", 0) > 0)
    ]
    if not counted or counted[-1] is not record.metrics[-1]:
        return math.nan
    begin = record.progress(counted[-1]) - share
    ratios = [row[loss] / row[chance] for row in counted if record.progress(row) >= begin]
    return statistics.fmean(ratios) if len(ratios) >= 3 and record.progress(counted[0]) <= begin else math.nan


def easy_queue(record: Record) -> Found | None:
    """The keys of a queue should be as hard to tell from the positive as the batch's other images.

    If they are, then by Jensen's inequality the mean loss is at least ln(1 + K exp((n - p) / T)), with K keys, the
    temperature T, and the mean similarities p to the positive and n to the batch's other images. What is lower was won
    by something that only the queue's keys have: their age, or that query and positive share the statistics of batch
    norm, or that nothing new comes into the queue.
    """
    length = record.recipe.get("queue_length")
    if not length or record.step < 2 * length / (record.keys_of_a_step or math.inf):
        return None
    rows = [_times_easier(row, length) for row in record.metrics[-RECENT:]]
    if len(rows) < RECENT or any(map(math.isnan, rows)):
        return None
    easier = statistics.median(rows)
    if easier < EASIER:
        return None
    seen = f"The {length} keys of the queue are {easier:.0f} times as easy as images of the batch would be"
    if easier >= FAR_EASIER:
        return Found(
            "fault", f"{seen}: its keys are of no use. It gets no new ones, or batch norm gives the positive away."
        )
    return Found(
        "warning",
        f"{seen}: the network knows them by their age, or knows the positive by the statistics of batch norm. Use"
        " --method simclr, which has no queue, or a shorter --queue-length.",
    )


def _times_easier(row: Numbers, length: int) -> float:
    names = ("global_loss", "global_positive", "global_negative", "temperature")
    if not all(name in row for name in names) or not row["temperature"]:
        return math.nan
    loss, positive, negative, temperature = (row[name] for name in names)
    keys = math.expm1(loss) * math.exp((positive - negative) / temperature)  # of the batch's kind, that give this loss
    return length / keys if keys > 0 else math.nan


def loss_without_matches(record: Record) -> Found | None:
    """A dense loss that is solved while cells find their places no better was solved by something else."""
    loss, chance = record.recent("dense_loss"), record.recent("dense_chance_loss")
    weight = record.metrics[-1].get("dense_weight", 0) if record.metrics else 0
    matched = record.column("match_accuracy")
    if not loss < SOLVED * chance or weight == 0 or len(matched) < 2:
        return None
    if not record.progress(record.metrics[-1]) >= HALF:
        return None
    (_, first), (_, last) = matched[0], matched[-1]
    if last - first > record.noise:
        return None
    return Found(
        "warning",
        f"The dense loss is far below chance level ({loss:.2f} of {chance:.2f}), but cells find their places no better"
        f" than at the start ({percent(first)} -> {percent(last)}): it is solved without them, and adds little. Try"
        " --method simclr, --matching geometry and --dense-negatives batch.",
    )
