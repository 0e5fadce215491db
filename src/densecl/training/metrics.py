"""What stands in a row of metrics.csv, and which numbers stand beside the bar."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from densecl.training.diagnosis import GUIDED_MEASURES, MEASURES
from densecl.training.schedules import Settings

Row = dict[str, float | int]

#: Columns that differ each time a run is repeated.
TIMINGS = (
    "images_per_second",
    "data_wait",  # fraction of the time since the last row that was spent waiting for data
    "seconds",  # spent training since the run began; pauses between two parts of a run do not count
)

#: Fraction of the time since the last row that the frozen networks took: a teacher, an anchor.
FROZEN_SHARE = "frozen_share"

#: Columns of metrics.csv.
COLUMNS = (
    "step",
    "epoch",  # with a fraction
    *MEASURES[:5],
    "learning_rate",
    "dense_weight",
    "key_momentum",
    "temperature",
    *MEASURES[5:],
    *TIMINGS,
)

#: Columns that metrics.csv has further right if the run follows frozen networks.
FOLLOWING = (*GUIDED_MEASURES, FROZEN_SHARE)


def metrics_row(
    step: int, epoch: float, measures: Sequence[float], settings: Settings, timings: tuple[float, float, float]
) -> Row:
    """A row of metrics.csv.

    Args:
        step: steps done.
        epoch: epochs done.
        measures: the `MEASURES`.
        settings: of this step. What the method does not have is nan, which stays empty in the file.
        timings: the `TIMINGS`.
    """
    return {
        "step": step,
        "epoch": epoch,
        **dict(zip(MEASURES, measures, strict=True)),
        "learning_rate": settings.learning_rate,
        "dense_weight": settings.method.dense_weight,
        "key_momentum": math.nan if settings.method.key_momentum is None else settings.method.key_momentum,
        "temperature": math.nan if settings.method.temperature is None else settings.method.temperature,
        **dict(zip(TIMINGS, timings, strict=True)),
    }


def in_brief(
    row: Mapping[str, float | int], watched: Mapping[str, float | int], *, in_epochs: bool, sign: str = ""
) -> list[str]:
    """The numbers that a user wants to see while the run goes on, the most important one first.

    Args:
        row: with the loss; and with images per second and the fraction of waiting, as far as they are known: a resumed
            run has none before its first row.
        watched: the last row of watched.csv, as far as it was measured.
        in_epochs: whether the length of the run is given in epochs, so that they mean something to the user.
        sign: of what is wrong (`verdicts.telling`); "": nothing is.
    """
    rate, waiting = row.get("images_per_second"), row.get("data_wait")
    numbers = [f"loss {row['loss']:.3f}"]
    if "probe" in watched:
        numbers.append(f"probe {watched['probe']:.1f} mIoU")
    if "match_accuracy" in watched:
        numbers.append(f"match {watched['match_accuracy']:.1%}".replace("%", " %"))
    if "effective_rank" in watched:
        numbers.append(f"rank {watched['effective_rank']:.0f}")
    if sign:
        numbers.append(sign)
    if rate is not None:
        numbers.append(f"{rate:.1f} images/s" if rate < 10 else f"{rate:.0f} images/s")
    if waiting is not None:
        numbers.append(f"waiting for data {waiting:.0%}".replace("%", " %"))
    if in_epochs:
        numbers.append(f"epoch {row['epoch']:.2f}")
    return numbers
