"""What was run, on what, how long and how fast; how the settings of several runs differ; what to type next."""

from __future__ import annotations

import re
import shlex
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from densecl.comparing import comparison, size_in
from densecl.names import few
from densecl.progress import duration
from densecl.reporting.run_files import RunFiles

#: Notes of a run to itself, and settings that say where and not what.
NO_SETTINGS = ("settled",)

#: As `Voice` writes it.
_TIMED = re.compile(r"(\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d)\S*\s+(.*)")


class Fact(NamedTuple):
    """A line of the page: what it is, and its value."""

    name: str
    value: str


class Command(NamedTuple):
    """A command, and what it is for."""

    what: str
    words: str


def what_was_run(run: RunFiles) -> list[Fact]:
    """The backbone, the method, the images and the machine, as far as the files say them."""
    recipe, said = run.recipe, run.said
    data = recipe.get("data")
    sources = [str(one) for one in data] if isinstance(data, list) else [str(data)] if data is not None else []
    images = f" ({_thousands(said['images'])} images)" if said.get("images", "").isdigit() else ""
    size = recipe.get("image_size")
    stride = recipe.get("output_stride")
    backbone = [str(recipe["backbone"])] if "backbone" in recipe else []
    backbone += [f"{size} px"] if size else []
    backbone += [f"a cell every {stride} px"] if isinstance(stride, int) else []
    method = said.get("method") or recipe.get("method")
    weight = recipe.get("dense_weight")
    loss = "" if method == "distillation" or not isinstance(weight, int | float) else f", dense weight {weight:g}"
    start = _with_license(recipe.get("init"), recipe.get("init_license")) or "random weights"
    facts = [
        Fact("Images", (few(sources) if sources else "") + images),
        Fact("Backbone", ", ".join(backbone)),
        Fact("Started from", start if recipe else "unknown: no readable recipe"),
        Fact("Method", f"{method}{loss}" if method else ""),
        Fact("Teacher", _with_license(said.get("teacher", recipe.get("teacher")), said.get("teacher_license"))),
        Fact("Length", _length(run)),
        Fact("Time", _time(run)),
        Fact("Speed", _speed(run)),
        Fact("Begun", started(run) or ""),
        Fact("Made with", "; ".join(_machine(run.log_head))),
    ]
    return [fact for fact in facts if fact.value]


def _with_license(name: Any, license: Any) -> str:
    return f"{name} (license: {license})" if name and license else str(name or "")


def steps_done(run: RunFiles) -> int | None:
    last = max((rows[-1]["step"] for rows in (run.metrics, run.watched) if rows), default=None)
    written = run.said.get("steps", "")
    known = [int(last)] if last is not None else []
    return max([*known, *([int(written)] if written.isdigit() and len(written) < 12 else [])], default=None)


def steps_in_all(run: RunFiles) -> int | None:
    """How many steps the run shall have. With epochs or a time limit only its log says it."""
    steps = run.recipe.get("steps")
    if isinstance(steps, int):
        return steps
    for line in run.log_head:
        found = re.search(r"\b(\d{1,12}) steps into ", line)
        if found:
            return int(found[1])
    return None


def stopped_early(run: RunFiles) -> bool:
    """Whether `--stop-early` has ended it."""
    return any("Stopped early after step" in line for line in run.log_tail)


def complete(run: RunFiles) -> bool:
    """Whether it has all the steps that it shall have."""
    done, total = steps_done(run), steps_in_all(run)
    if total is not None and done is not None:
        return done >= total
    return any("Done after " in line for line in run.log_tail)


def _length(run: RunFiles) -> str:
    done, total = steps_done(run), steps_in_all(run)
    if done is None:
        return ""
    of = f" of {_thousands(total)}" if total is not None and total != done else ""
    batch = run.recipe.get("batch_size")
    at = f" of {_thousands(batch)} images" if isinstance(batch, int) else ""
    epoch = run.metrics[-1].get("epoch") if run.metrics else None
    epochs = f", {epoch:.3g} epochs" if epoch else ""
    return f"{_thousands(done)}{of} steps{at}{epochs}"


def _time(run: RunFiles) -> str:
    seconds = run.metrics[-1].get("seconds") if run.metrics else None
    return "" if seconds is None else f"{duration(seconds)} of training"


def _speed(run: RunFiles) -> str:
    rates = [row["images_per_second"] for row in run.metrics if "images_per_second" in row]
    if not rates:
        return ""
    rate = statistics.median(rates)
    waits = [row["data_wait"] for row in run.metrics if "data_wait" in row]
    waiting = f", {100 * statistics.fmean(waits):.0f} % of the time waiting for data" if waits else ""
    return f"{rate:.3g} images/s on average (median){waiting}"


def started(run: RunFiles) -> str | None:
    """When the log begins, without seconds."""
    for line in run.log_head[:50]:
        found = _TIMED.match(line)
        if found:
            return found[1].replace("T", " ")[:16]
    return None


def _machine(lines: Sequence[str]) -> list[str]:
    """The lines of `made_with`."""
    texts = [found[2] if (found := _TIMED.match(line)) else line for line in lines[:100]]
    return [text for text in texts if re.match(r"densecl \d|Linux|macOS|Windows|GPU \d", text)][:6]


def settings_of(run: RunFiles) -> list[Fact]:
    """Every setting of the recipe."""
    return [Fact(name, _as_typed(value)) for name, value in run.recipe.items() if name not in NO_SETTINGS]


def different_settings(runs: Sequence[RunFiles]) -> list[tuple[str, list[str]]]:
    """The settings in which runs differ, with the value of each run; "-" where a run does not say it."""
    names = dict.fromkeys(name for run in runs for name in run.recipe if name not in NO_SETTINGS)
    rows = [(name, [_as_typed(run.recipe[name]) if name in run.recipe else "-" for run in runs]) for name in names]
    return [(name, values) for name, values in rows if len(set(values)) > 1]


def _as_typed(value: Any) -> str:
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "on" if value else "off"
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)


def next_commands(run: RunFiles) -> list[Command]:
    """What repeats the run, goes on with it, judges it and hands it over."""
    out = str(run.folder)
    recipe, beside = run.recipe, Path(out)
    data = recipe.get("data")
    first = str(data[0] if isinstance(data, list) and data else data or "FOLDER")
    data = "FOLDER" if first.startswith("dataset:") else first
    init = recipe.get("init")
    other = "random" if not isinstance(init, str) else init
    found = []
    if str(recipe.get("backbone", "")).startswith("module:") or first.startswith("dataset:"):
        return [Command("Repeat it", "the same call of densecl.pretrain, with another out")]
    again = ("densecl", "pretrain", "--config", str(beside / "recipe.yaml"), "--out", f"{out}-again")
    found.append(Command("Repeat it", shlex.join(again)))
    if not complete(run) and not stopped_early(run):
        found.append(Command("Go on with it", shlex.join(("densecl", "pretrain", "--out", out, "--resume"))))
    judge = comparison(out, other, data, task="correspondence")
    found.append(Command("Compare it with what it began with, without labels", judge))
    probe = recipe.get("probe")
    task, labels = ("segmentation", probe) if isinstance(probe, str) else ("detection", "LABELED")
    size = size_in(run.log_tail) if task == "segmentation" else None
    labeled = comparison(out, other, labels, size, task=task)
    found.append(Command("Compare it on images with labels", labeled))
    export = ("densecl", "export", out, "--to", "timm", "--out", f"{out}-timm")
    found.append(Command("Hand it to another library", shlex.join(export)))
    return found


def _thousands(number: int | str) -> str:
    return f"{int(number):,}"
