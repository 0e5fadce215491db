"""What a run says at its end: whether it learned, how to compare the result, and how to load it."""

from __future__ import annotations

import math
import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from densecl.comparing import comparison
from densecl.config.settings import Settings
from densecl.names import shown
from densecl.training import best
from densecl.training.headline import CALLED, headline
from densecl.training.table import read_rows
from densecl.verdicts.record import MOVES, PROBE_MOVES
from densecl.watched_file import watched_file

#: Pairs and labeled images, where it is not known how many there were.
_PAIRS, _IMAGES = 256, 20


def verdict(out: Path, *, random_start: bool = True, probed: int | None = None) -> list[str]:
    """Whether a run learned, by what was watched: the most telling number first.

    Args:
        out: the run's folder.
        random_start: whether the run began with random weights.
        probed: labeled images that the probe asks about.

    Returns:
        A sentence for the probe, one for the match accuracy, and one for the best weights, as far as there are any.
    """
    path = watched_file(out)
    rows = read_rows(path)
    of_probe = _of_probe(rows, random_start, probed)
    judged = of_probe is not None and not _blind(rows)
    sentences = (of_probe, _of_matches(rows, random_start, judged=judged), _of_best(out, rows))
    return [sentence for sentence in sentences if sentence is not None]


def _of_probe(rows: Sequence[Mapping[str, str]], random_start: bool, probed: int | None) -> str | None:
    if probed and len(rows) > 1 and _blind(rows):
        return (
            f"Probe (retrieval on {probed} labeled images): at the end nearly all pixels get the same label, so it"
            " cannot tell. Let densecl evaluate judge."
        )
    found = _first_and_last(rows, "probe")
    if found is None:
        return None
    first, last = found
    noise = 2 * PROBE_MOVES / math.sqrt(probed or _IMAGES)
    began_with = "random weights" if random_start else "the starting weights"
    if last - first > noise:
        said = "it learned"
    elif first - last > noise:
        said = f"worse than {began_with}: do not use it"
    elif random_start:
        said = "nothing learned yet, train longer"
    else:
        said = f"no better than {began_with}, as far as so few images can tell"
    images = f"{probed} labeled images" if probed else "labeled images"
    return f"Probe (retrieval on {images}): {first:.1f} -> {last:.1f} mIoU: {said}."


def _blind(rows: Sequence[Mapping[str, str]]) -> bool:
    """Whether the last measurement has no number of the probe, which has one unless it is blind."""
    return not rows or not rows[-1].get("probe")


def _of_matches(rows: Sequence[Mapping[str, str]], random_start: bool, *, judged: bool) -> str | None:
    """Without a verdict if the probe has given one: it asks for what is wanted, and the two may contradict."""
    found = _first_and_last(rows, "match_accuracy")
    if found is None or not (rows[-1].get("match_chance") or ""):
        return None
    (first, last), chance = found, float(rows[-1]["match_chance"])
    noise = 2 * MOVES / math.sqrt(int(rows[-1].get("pairs") or _PAIRS))
    measured = f"Match accuracy on fixed views: {_percent(first)} -> {_percent(last)} (chance {_percent(chance)})"
    if judged:
        return f"{measured}. The probe is the better judge."
    if last - first > noise:
        said = "it learned"
    elif not random_start:
        said = "no better than the starting weights by this measure; let evaluate judge"
    elif first - last > noise:
        said = "it got worse, try a lower --base-learning-rate"
    else:
        said = "nothing learned yet, train longer"
    return f"{measured}: {said}."


def _of_best(out: Path, rows: Sequence[Mapping[str, str]]) -> str | None:
    kept = best.kept(out)
    found = headline(rows)
    if kept is None or found is None or kept.name != found.name:
        return None
    value, file = found.in_words(kept.moment.value), shown(out / best.FILE)
    said = f"Best by {CALLED[kept.name]}: step {kept.moment.step}, {value}, in {file}"
    if found.best.step == 0 and found.best.value == kept.moment.value:
        return f"{said}. The weights that it began with were as good."
    if found.best.step == 0:
        return f"{said}. The weights that it began with were better: {found.in_words(found.best.value)}."
    if kept.moment.step == found.moments[-1].step:
        return f"{said}. These are the last weights, too."
    return f"{said}. The last weights have {found.in_words(found.moments[-1].value)}."


def _first_and_last(rows: Sequence[Mapping[str, str]], name: str) -> tuple[float, float] | None:
    """The first and the last value of a column; None if there are not two numbers, the last one in the last row."""
    values = [float(row[name]) for row in rows if row.get(name)]
    if len(values) < 2 or not rows[-1].get(name) or not all(map(math.isfinite, values)):
        return None
    return values[0], values[-1]


def _percent(fraction: float) -> str:
    return f"{100 * fraction:.1f} %"


def next_steps(settings: Settings[Any], out: Path, size: tuple[int, int] | None = None) -> Iterator[str]:
    """Lines that say how to see what a run learned, how to compare its result, and how to load it.

    Args:
        settings: of the run.
        out: its folder.
        size: (width, height) for the images of the probe, if these differ in size.
    """
    yield "See what it learned, on one page:"
    yield f"  {shown(shlex.join(('densecl', 'report', str(out))), 2000)}"
    weights = str(out / "backbone.safetensors")
    if settings.backbone.startswith("module:"):
        yield "Load it into a module of the same class:"
        yield "  from safetensors.torch import load_file"
        yield f"  module.load_state_dict(load_file({weights!r}))"
        return
    beside = "random" if settings.init is None else "imagenet" if settings.init == "imagenet" else settings.init
    data = "FOLDER" if settings.sources[0].startswith("dataset:") else settings.sources[0]
    if settings.probe is not None:
        command = comparison(str(out), beside, settings.probe, size, task="segmentation")
    else:
        command = comparison(str(out), beside, data, task="correspondence")
    yield f"Compare it with {'untrained weights' if beside == 'random' else 'what it began with'}:"
    yield f"  {shown(command, 2000)}"
    yield "Load it:"
    yield "  import densecl"
    yield f"  backbone, normalization = densecl.load_backbone({weights!r})"


def command_to_resume(settings: Settings[Any], out: Path) -> str:
    """What to type to go on with a run."""
    if settings.sources[0].startswith("dataset:") or settings.backbone.startswith("module:"):
        return f"the same call of densecl.pretrain and resume=True, out={str(out)!r}"
    return shown(shlex.join(("densecl", "pretrain", "--out", str(out), "--resume")), 2000)
