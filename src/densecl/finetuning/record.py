"""finetune.json: what a run was asked for, what it learned from, and what came of it.

Loads nothing heavy, so that mistakes are told at once.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from densecl.errors import UserError, flag
from densecl.evaluation.given import make_settings
from densecl.files import replacing
from densecl.finetuning.settings import FREE, TuningSettings
from densecl.names import shown

if TYPE_CHECKING:
    from densecl.finetuning.tuned import Tuned

NAME = "finetune.json"

#: Larger files are no record.
MOST_BYTES = 16 * 1024**2

#: What is asked for beside the settings.
WHAT = ("weights", "task", "data", "backbone")

#: Files that a run has before its first checkpoint. A folder with nothing else can be begun anew.
EARLY = frozenset((NAME, "metrics.csv", ".lock", "checkpoints", "best.safetensors"))


@dataclasses.dataclass(frozen=True)
class Asked:
    """What a run was asked for."""

    weights: str
    task: str
    data: str
    backbone: str | None
    settings: TuningSettings

    def plain(self) -> dict[str, Any]:
        """In the words of the file."""
        what = {name: getattr(self, name) for name in WHAT}
        return what | json.loads(json.dumps(dataclasses.asdict(self.settings)))


def agree_with_past(
    out: Path, resume: bool, given: Mapping[str, str], settings: Mapping[str, Any]
) -> tuple[Asked, Mapping[str, Any]]:
    """What is asked for. If the run in `out` is resumed, what is not given comes from there.

    Args:
        out: folder of the run.
        resume: whether it is resumed.
        given: of `WHAT`, what was given.
        settings: that were given.

    Returns:
        That, and the record of the run so far; an empty one if there is none.

    Raises:
        UserError: `out` is taken, the run in it has other settings, or something is missing.
    """
    if out.exists() and not out.is_dir():
        raise UserError(f"--out {out} is a file, not a folder.")
    given = {name: _absolute(value) if name in ("weights", "data") else value for name, value in given.items()}
    past: Mapping[str, Any] = {}
    if resume and (out / NAME).is_file():
        past = read_record(out / NAME)
    elif not resume:
        check_free(out)
    merged: dict[str, Any] = {**past.get("asked", {}), **given, **settings}
    for name, example in (("weights", "resnet50"), ("task", "detection or --task segmentation"), ("data", "FOLDER")):
        if merged.get(name) is None:
            if resume:
                raise UserError(
                    f"--resume: there is no run in {out} yet. Give WEIGHTS, --task and --data to begin one."
                )
            how = "Give WEIGHTS, such as a run's folder" if name == "weights" else f"Give --{name} {example}"
            raise UserError(f"{how}.")
    what = {name: merged.pop(name, None) for name in WHAT}
    asked = Asked(**what, settings=make_settings(TuningSettings, merged))
    if past:
        now, then = asked.plain(), past["asked"]
        differences = [
            f"{flag(name) if name != 'weights' else 'WEIGHTS'} {shown(then.get(name))} -> {shown(value)}"
            for name, value in now.items()
            if name not in FREE and value != then.get(name)
        ]
        if differences:
            raise UserError(
                f"The run in {out} has other settings: {'; '.join(differences)}. Give its own, or another --out."
            )
    return asked, past


def _absolute(path: str) -> str:
    """The path as seen from anywhere, if it is one: a run need not be resumed from the same folder."""
    if not os.path.exists(os.path.expanduser(path)):
        return path
    return os.path.abspath(os.path.expanduser(path))


def check_free(out: Path) -> None:
    """
    Raises:
        UserError: there is more in `out` than what a run leaves before its first checkpoint.
    """
    begun = (out / "checkpoints" / "last.ckpt").is_file()
    taken = [path.name for path in out.iterdir() if path.name not in EARLY] if out.is_dir() else []
    if begun or taken:
        hint = "Go on with --resume, or" if (out / NAME).is_file() else "It holds other files:"
        raise UserError(f"--out {out} exists already. {hint} choose another folder.")


def read_record(path: Path) -> Mapping[str, Any]:
    """
    Raises:
        UserError: it cannot be read, or is damaged.
    """
    damaged = UserError(f"{path} is damaged: it does not say what the run was asked for. Begin anew in another --out.")
    try:
        with path.open("rb") as file:
            content = json.loads(file.read(MOST_BYTES))
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}.") from error
    except (ValueError, RecursionError) as error:
        raise damaged from error
    asked = content.get("asked") if isinstance(content, dict) else None
    if not isinstance(asked, dict) or not all(isinstance(asked.get(name), str) for name in ("weights", "task", "data")):
        raise damaged
    if set(asked) - {*WHAT, *(each.name for each in dataclasses.fields(TuningSettings))}:
        raise damaged
    return content


def write_record(out: Path, asked: Asked, about: Mapping[str, Any], result: Mapping[str, Any] | None = None) -> None:
    """Writes what a run was asked for, what is known of it, and what came of it.

    Raises:
        UserError: it cannot be written.
    """
    from densecl.training.checkpoints import writing  # loads torch

    content = {"asked": asked.plain(), **about, "result": _finite(result)}
    with writing(out / NAME), replacing(out / NAME) as file:
        file.write((json.dumps(content, indent=2, allow_nan=False) + "\n").encode())


def about(tuned: Tuned, counts: tuple[int, int]) -> dict[str, Any]:
    """What is known of a run before it begins."""
    known = dataclasses.asdict(tuned)
    for later in ("threshold", "step", "scores"):
        del known[later]
    return {"network": known, "images": dict(zip(("train", "validation"), counts, strict=True))}


def _finite(value: Any) -> Any:
    """The same with null for numbers that JSON does not have."""
    if isinstance(value, Mapping):
        return {name: _finite(one) for name, one in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value
