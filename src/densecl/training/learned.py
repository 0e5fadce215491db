"""What a run says at its end: whether it learned, how to compare the result, and how to load it."""

from __future__ import annotations

import math
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from densecl.config.settings import Settings
from densecl.names import shown
from densecl.training.table import read_rows

#: The match accuracy on one pair of views moves by about this much without learning, so that the mean over n pairs
#: moves by this over the square root of n. Twice that counts as a change.
MOVES = 0.16


def pairs_measured(path: Path) -> int | None:
    """The number of view pairs in a run's match_accuracy.csv; None if it does not say."""
    rows = read_rows(path)
    return int(rows[-1]["pairs"]) if rows and (rows[-1].get("pairs") or "").isdigit() else None


def verdict(path: Path, *, random_start: bool = True) -> str | None:
    """Whether a run learned, by its match_accuracy.csv.

    Args:
        path: of the file.
        random_start: whether the run began with random weights.

    Returns:
        A sentence; None if there are not two measurements.
    """
    rows = [row for row in read_rows(path) if row.get("match_accuracy")]
    if len(rows) < 2:
        return None
    first, last = float(rows[0]["match_accuracy"]), float(rows[-1]["match_accuracy"])
    chance = float(rows[-1]["match_chance"])
    if not all(map(math.isfinite, (first, last, chance))):
        return None
    noise = 2 * MOVES / math.sqrt(pairs_measured(path) or 256)
    if last - first > noise:
        found = "it learned"
    elif not random_start:
        found = "no better than the starting weights by this measure; let evaluate judge"
    elif first - last > noise:
        found = "it got worse, try a lower --base-learning-rate"
    else:
        found = "nothing learned yet, train longer"
    return f"Match accuracy on fixed views: {_percent(first)} -> {_percent(last)} (chance {_percent(chance)}): {found}."


def _percent(fraction: float) -> str:
    return f"{100 * fraction:.1f} %"


def next_steps(settings: Settings[Any], out: Path) -> Iterator[str]:
    """Lines that say how to compare the result of a run, and how to load it.

    Args:
        settings: of the run.
        out: its folder.
    """
    weights = str(out / "backbone.safetensors")
    if settings.backbone.startswith("module:"):
        yield "Load it into a module of the same class:"
        yield "  from safetensors.torch import load_file"
        yield f"  module.load_state_dict(load_file({weights!r}))"
        return
    beside = "random" if settings.init is None else "imagenet" if settings.init == "imagenet" else settings.init
    data = "FOLDER" if settings.sources[0].startswith("dataset:") else settings.sources[0]
    words = ("densecl", "evaluate", str(out), beside, "--task", "correspondence", "--data", data)
    yield f"Compare it with {'untrained weights' if beside == 'random' else 'what it began with'}:"
    yield f"  {shown(shlex.join(words), 2000)}"
    yield "Load it:"
    yield "  import densecl"
    yield f"  backbone, normalization = densecl.load_backbone({weights!r})"


def command_to_resume(settings: Settings[Any], out: Path) -> str:
    """What to type to go on with a run."""
    if settings.sources[0].startswith("dataset:") or settings.backbone.startswith("module:"):
        return f"the same call of densecl.pretrain and resume=True, out={str(out)!r}"
    return shown(shlex.join(("densecl", "pretrain", "--out", str(out), "--resume")), 2000)
