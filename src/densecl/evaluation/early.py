"""Mistakes of a call of `evaluate` that can be told before torch is loaded, which takes seconds.

All of it is checked once more where it is used. Here it is only told sooner.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from densecl.evaluation.arms import arms_of, find_baseline
from densecl.evaluation.given import make_settings
from densecl.evaluation.settings import Settings
from densecl.evaluation.split_places import check_some_labels
from densecl.evaluation.tasks import TASKS


def check_early(
    weights: Sequence[str], tasks: Sequence[str], data: str, settings: Mapping[str, Any], baseline: Sequence[str] = ()
) -> None:
    """
    Args:
        weights: as they were given, at least one.
        tasks: names of the table.
        data: that is there.
        settings: fields of `Settings`.
        baseline: names of some of the weights.

    Raises:
        UserError: a value out of its range, a baseline that is none of the weights, or no labels where a task needs a
            label for every pixel.
    """
    chosen = make_settings(Settings, settings)
    find_baseline(arms_of(list(dict.fromkeys(weights))), baseline)
    lists = any(split is not None and split.endswith(".txt") for split in (chosen.train_split, chosen.test_split))
    if not lists and any(TASKS[name].labels_pixels for name in tasks):  # a list may lie anywhere
        check_some_labels(Path(data).expanduser(), chosen.train_split)
