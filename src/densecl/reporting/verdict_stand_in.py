"""Until densecl.verdicts is there."""

from typing import NamedTuple, Any


class Verdict(NamedTuple):
    name: str
    level: str
    step: int | None
    text: str
    measure: str
    threshold: str
    source: str


class Record(NamedTuple):
    recipe: Any
    metrics: Any
    watched: Any


def verdicts(record):
    return [
        Verdict(
            "learned",
            "good",
            60,
            "It learned: match accuracy on fixed views rose from 27.6 % to 41.0 %, and the rank of the features did not fall. Compare it on labeled images next.",
            "match accuracy",
            "a rise of more than 4.0 points",
            "noise of 64 pairs",
        ),
        Verdict(
            "loader",
            "warning",
            10,
            "The loader is the bottleneck: the machine waits for data 43 % of the time. Give more --workers, or --cache.",
            "data_wait",
            "above 0.3",
            "",
        ),
    ]
