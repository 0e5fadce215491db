"""Verdicts on the features: whether cells find their places, and whether they stay apart."""

from __future__ import annotations

import math

from densecl.verdicts.record import EARLY, Record
from densecl.verdicts.verdict import Found, percent

#: Fraction of an image's key cells that are some query cell's match, below which the matches have collapsed. Random
#: matches hit 0.63 of them.
FEW = 0.15

#: Fraction of its first value that the effective rank has to fall to.
FALLEN = 0.2

#: 1 - the mean cosine of a cell to that of the starting weights, from which on the features have left them.
LEFT = 0.1

#: Chance level of the match accuracy from which on the grid is too small: with 4x4 cells it is 0.18.
COARSE = 0.3

#: Spread of the images' vectors below which they are nearly the same. The run itself ends at 1e-4 (`alarms`).
ALIKE = 0.003

#: Fraction of its first value that the spread of the images' features has to fall to: with a dense loss (such runs
#: gained at 0.07 to 0.2), with the global loss alone, and where it is a fault.
OFFSET, OFFSET_GLOBAL, ALL_OFFSET = 0.05, 0.2, 0.005


def learning(record: Record) -> Found | None:
    """Whether what is watched has risen by more than noise."""
    for name, noise, values in record.headlines():
        if len(values) < 2:
            continue
        (_, first), (_, last) = values[0], values[-1]
        if last - first <= noise:
            return None
        return Found("good", f"It learns: {_named(name)} has risen from {shown(name, first)} to {shown(name, last)}.")
    return None


def worse_than_random(record: Record) -> Found | None:
    """Random weights match cells above chance level by their place in the view. A dense loss should not lose that."""
    matched = record.column("match_accuracy")
    weight = record.metrics[-1].get("dense_weight", 0) if record.metrics else 0
    if record.recipe.get("init") is not None or weight == 0 or len(matched) < 2:
        return None
    (_, first), (_, last) = matched[0], matched[-1]
    if not record.progress(record.metrics[-1]) >= 0.5 or first - last <= record.noise:
        return None
    return Found(
        "warning",
        f"Cells find their places less often than with random weights ({shown('match_accuracy', first)} ->"
        f" {shown('match_accuracy', last)}). The rate is too high, or the images show nothing to be found again: try a"
        " tenth of --base-learning-rate, and densecl check.",
    )


def no_gain(record: Record) -> Found | None:
    """Weights that were continued should become better, or stay what they were."""
    if record.recipe.get("init") is None:
        return None
    moved = record.column("moved")
    away = moved[-1][1] if moved else None
    for name, noise, values in record.headlines():
        if len(values) < 2:
            continue
        (_, first), (_, last) = values[0], values[-1]
        numbers = f"{_named(name)} went from {shown(name, first)} to {shown(name, last)}"
        far = "" if away is None else f" (cosine similarity to theirs: 1 at the start, now {1 - away:.2f})"
        if first - last > noise:
            now = "For the next run try" if record.ended else "Stop, and try"
            return Found(
                "warning",
                f"The features leave the starting weights{far} and become worse: {numbers}. {now} a third of"
                " --base-learning-rate, or --anchor 1.",
            )
        halfway = bool(record.metrics) and record.progress(record.metrics[-1]) >= 0.5
        if away is not None and away >= LEFT and last - first <= noise and halfway and record.step >= EARLY:
            return Found(
                "note",
                f"The features leave the starting weights{far} without gain: {numbers}, which is within noise."
                + ("" if name == "probe" else " Let densecl evaluate judge, or give --probe a few labeled images."),
            )
        return None
    return None


def few_matches(record: Record) -> Found | None:
    """Where nearly all cells match the same few, those are no longer told apart."""
    distinct = record.recent("distinct_matches")
    if not distinct < FEW:
        return None
    by_features = record.recipe.get("matching") in ("features", "mutual", "both")
    advice = "--matching geometry, or a lower --base-learning-rate" if by_features else "a lower --base-learning-rate"
    return Found(
        "fault" if by_features else "warning",
        f"Cells match the same few cells: only {percent(distinct, 0)} of an image's cells are ever a match."
        f" The features no longer tell places apart. Try {advice}.",
    )


def rank_falls(record: Record) -> Found | None:
    """A rank that falls far means that the cells fill few directions only."""
    ranks = record.column("effective_rank")
    if len(ranks) < 2 or not ranks[0][1]:
        return None
    (_, first), (_, last) = ranks[0], ranks[-1]
    if last > FALLEN * first:
        return None
    return Found(
        "warning",
        f"The effective rank of the cells has fallen from {first:.0f} to {last:.0f}: the features use few directions."
        " Try a lower --base-learning-rate"
        + ("." if record.dense or record.taught_alone else ", or a --dense-weight of 0.5."),
    )


def vectors_alike(record: Record) -> Found | None:
    """A method without negatives can give all images the same vector. It may still come back."""
    spread = record.recent("image_spread")
    if not spread < ALIKE or not record.warmed_up(record.metrics[-1]):
        return None
    return Found(
        "warning",
        f"All images have nearly the same vector (spread {spread:.2g}, of 1): the run is collapsing. Try a lower"
        " --base-learning-rate, --warmup-epochs 1, or a method with negatives, such as simclr.",
    )


def features_alike(record: Record) -> Found | None:
    """The same vector is added to the features of all images, which the loss does not see.

    The heads begin with batch norm, or learn to take a constant away. So an offset that grows in the backbone costs
    nothing there. What reads the features by their cosine, or with frozen statistics, sees little else.
    """
    first, last = _feature_spread(record)
    global_alone = not record.dense and not record.taught_alone
    if not first > 0 or not last <= (OFFSET_GLOBAL if global_alone else OFFSET) * first:
        return None
    matched = record.column("match_accuracy")
    rises = len(matched) > 1 and matched[-1][1] - matched[0][1] > record.noise
    return Found(
        "fault" if last <= ALL_OFFSET * first else "warning",
        f"The features of different images have become nearly the same (spread {last:.2g}, {first:.2g} at the start):"
        " one offset grows in all of them. The heads take it away, so that no loss shows it"
        + (", and match accuracy rises nevertheless" if rises else "")
        + ". Try a third of --base-learning-rate"
        + (", or a --dense-weight of 0.5." if global_alone else ", or fewer steps."),
    )


def _feature_spread(record: Record) -> tuple[float, float]:
    """How far the features of images lie apart, 0 to 1: at the start, and now. nan where it was not measured."""
    if record.metrics and "feature_spread" in record.metrics[0]:  # more often than watched.csv has it
        return record.metrics[0]["feature_spread"], record.recent("feature_spread")
    watched = record.column("image_spread")
    return (watched[0][1], watched[-1][1]) if len(watched) > 1 else (math.nan, math.nan)


def small_grid(record: Record) -> Found | None:
    """On a few large cells a random match is often right, so that being right means little."""
    chance = [row["match_chance"] for row in record.watched if "match_chance" in row]
    if not chance or chance[0] < COARSE or not record.dense:
        return None
    return Found(
        "warning",
        f"The grid is too small: a random match of two cells is right in {percent(chance[0], 0)} of the cases, so that"
        " the dense loss means little. Use a larger --image-size, or --output-stride 16 or 8.",
    )


def long_queue(record: Record) -> Found | None:
    """A queue longer than the data holds keys of the query's own image, as negatives."""
    length = record.recipe.get("queue_length")
    rows = [row for row in record.metrics if row.get("epoch")]
    if not length or not rows or not record.recipe.get("batch_size"):
        return None
    images = round(rows[-1]["step"] * record.recipe["batch_size"] / rows[-1]["epoch"])
    if length <= images:
        return None
    return Found(
        "warning",
        f"The queue of {length} keys is longer than the data ({images} images): an image's own earlier keys are among"
        " its negatives. Use a shorter --queue-length, or --method simclr.",
    )


def _named(name: str) -> str:
    return "retrieval on the labeled images" if name == "probe" else "match accuracy on fixed views"


def shown(name: str, value: float) -> str:
    """A value of the headline as a user reads it."""
    return f"{value:.1f} mIoU" if name == "probe" else percent(value)
