"""What a run has left in its folder, read for its report.

A run's folder may come from a stranger. It is data, never code: tables, YAML, JSON and safetensors are read, of each no
more than a run writes, and what is damaged or missing is left out.
"""

from __future__ import annotations

import csv
import json
import os
import stat
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from densecl.errors import UserError
from densecl.names import from_cell, listing, shown
from densecl.verdicts.record import numbers
from densecl.watched_file import FORMER_WATCHED, WATCHED, watched_file

#: Bytes that are read at most.
MOST_RECIPE, MOST_TABLE, MOST_RESULTS, MOST_PICTURE = 1_000_000, 64 * 2**20, 8 * 2**20, 4 * 2**20

#: What `densecl finetune` leaves, and no run of pretrain.
FINETUNED = "finetune.json"

#: Of a log: from its beginning and from its end.
LOG_HEAD, LOG_TAIL = 32_768, 16_384

#: Rows of a table that are kept, evenly spread: more than a screen has columns.
MOST_ROWS = 2000

#: Rows of quarantine.csv that are shown.
MOST_BAD = 200

#: Files of results that are shown.
MOST_EVALUATIONS = 8

Row = dict[str, float]


@dataclass(frozen=True)
class Evaluation:
    """A file that `densecl evaluate` wrote, and the picture of its curve if it has one."""

    name: str
    content: Mapping[str, Any]
    curve: bytes | None = None  # PNG


@dataclass(frozen=True)
class RunFiles:
    """A run, as far as its files say it."""

    folder: Path
    recipe: Mapping[str, Any]
    said: Mapping[str, str]  # the metadata of backbone.safetensors
    metrics: Sequence[Row]
    watched: Sequence[Row]
    log_head: Sequence[str]
    log_tail: Sequence[str]
    bad: Sequence[tuple[str, str]] = ()  # name and reason
    bad_count: int = 0
    damage: Sequence[str] = ()  # sentences: which rows of its tables were left out
    evaluations: Sequence[Evaluation] = field(default=())

    @property
    def name(self) -> str:
        return self.folder.name


def check_run(folder: Path) -> None:
    """
    Raises:
        UserError: the folder holds no run.
    """
    if not folder.is_dir():
        raise UserError(f"{shown(folder)} is not a folder. Give the folder of a run, the --out of densecl pretrain.")
    if (folder / "recipe.yaml").is_file():
        return
    if (folder / FINETUNED).is_file():
        looks = [name for name in ("validation.png", "metrics.csv", FINETUNED) if (folder / name).is_file()]
        raise UserError(
            f"{shown(folder)} is a run of finetune; a report is made of runs of pretrain. Look at"
            f" {listing(looks, 'and')} in that folder."
        )
    if not (folder / "metrics.csv").is_file():
        raise UserError(
            f"{shown(folder)} holds no run: it has neither recipe.yaml nor metrics.csv. Give the --out of densecl"
            " pretrain."
        )


def read_run(folder: Path) -> RunFiles:
    """The run in a folder.

    Raises:
        UserError: it is none.
    """
    check_run(folder)
    metrics, watched = read_table(folder / "metrics.csv"), read_table(watched_file(folder))
    bad = _read_quarantine(folder / "quarantine.csv")
    head, tail = _read_log(folder / "train.log")
    return RunFiles(
        folder=folder,
        recipe=_read_recipe(folder / "recipe.yaml"),
        said=_read_metadata(folder / "backbone.safetensors"),
        metrics=metrics.rows,
        watched=watched.rows,
        damage=tuple(filter(None, (metrics.damage, watched.damage))),
        log_head=head,
        log_tail=tail,
        bad=bad[:MOST_BAD],
        bad_count=len(bad),
        evaluations=_read_evaluations(folder),
    )


def changed(folder: Path) -> tuple[tuple[str, int, int], ...]:
    """Says whether the files of a run are still those: their names, sizes and times."""
    paths = [folder / name for name in ("recipe.yaml", "metrics.csv", WATCHED, FORMER_WATCHED)]
    paths += [folder / "quarantine.csv", *folder.glob("moments/*.safetensors"), *folder.glob("evaluation*")]
    found = []
    for path in sorted(paths):
        try:
            status = path.stat()
        except OSError:
            continue
        found.append((path.name, status.st_size, status.st_mtime_ns))
    return tuple(found)


# --- the files ----------------------------------------------------------------------------------------------------


def read_bytes(path: Path, most: int) -> bytes | None:
    """The content of a regular file of at most `most` bytes; None if there is none such. (A pipe would never end.)"""
    try:
        with open(path, "rb", opener=_at_once) as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode) or status.st_size > most:
                return None
            return file.read(most)
    except OSError:
        return None


def _at_once(path: str, flags: int) -> int:
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


def _read_recipe(path: Path) -> dict[str, Any]:
    """Settings that are numbers, words, or lists of these. Nothing else is in a recipe."""
    content = read_bytes(path, MOST_RECIPE)
    try:
        found = yaml.safe_load((content or b"").decode("utf-8", "replace"))
    except (yaml.YAMLError, ValueError, RecursionError):
        return {}
    if not isinstance(found, dict):
        return {}
    plain = str, int, float, bool, type(None)
    return {
        name: value
        for name, value in found.items()
        if isinstance(name, str)
        and (
            isinstance(value, plain)
            or (isinstance(value, list) and len(value) <= 64 and all(isinstance(one, plain) for one in value))
        )
    }


def _read_metadata(path: Path) -> dict[str, str]:
    if not path.is_file():
        return {}
    import safetensors

    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            return dict(file.metadata() or {})
    except (safetensors.SafetensorError, OSError):
        return {}


class TableRead(NamedTuple):
    """What a table of numbers holds."""

    rows: list[Row]
    damage: str = ""  # which rows were left out; "": none


def read_table(path: Path) -> TableRead:
    """The whole rows of a table of numbers, at most `MOST_ROWS`.

    A cell that is no finite number is left out, and so is a row of other cells than the head says, or without a step.
    """
    content = read_bytes(path, MOST_TABLE)
    if content is None:
        return TableRead([])
    lines = content.decode("utf-8", "replace").split("\n")
    lines.pop()  # of a whole file it is empty; a run that goes on may be writing it
    head, *lines = (line.removesuffix("\r") for line in lines or [""])
    names = head.split(",")
    rows: list[Row] = []
    lost, after = 0, None
    for line in lines:
        cells = line.split(",")
        found = numbers([dict(zip(names, cells, strict=True))]) if len(cells) == len(names) else []
        if not found and not lost:
            after = rows[-1]["step"] if rows else None
        rows += found
        lost += not found
    if len(rows) > MOST_ROWS:
        last = len(rows) - 1
        places = sorted({round(number * last / (MOST_ROWS - 1)) for number in range(MOST_ROWS)})
        rows = [rows[place] for place in places]
    if not lost:
        return TableRead(rows)
    where = "from the first one on" if after is None else f"the first after step {after:.0f}"
    what = "1 damaged row was" if lost == 1 else f"{lost} damaged rows were"
    return TableRead(rows, f"{path.name}: {what} left out, {where}")


def _read_quarantine(path: Path) -> list[tuple[str, str]]:
    content = read_bytes(path, MOST_TABLE)
    if content is None:
        return []
    try:
        rows = list(csv.reader(content.decode("utf-8", "replace").splitlines()))
    except csv.Error:
        return []
    return [(from_cell(row[0]), from_cell(row[1])) for row in rows[1:] if len(row) == 2]


def _read_log(path: Path) -> tuple[list[str], list[str]]:
    """Its first and its last lines. They are the same ones if it is short."""
    try:
        with open(path, "rb", opener=_at_once) as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                return [], []
            head = file.read(LOG_HEAD)
            file.seek(max(0, status.st_size - LOG_TAIL))
            tail = file.read(LOG_TAIL)
    except OSError:
        return [], []
    return head.decode("utf-8", "replace").splitlines(), tail.decode("utf-8", "replace").splitlines()


def _read_evaluations(folder: Path) -> list[Evaluation]:
    """The results of `densecl evaluate` in the run's folder, as it names them by itself."""
    found = []
    for path in sorted(folder.glob("evaluation*.json"), key=lambda path: (len(path.name), path.name)):
        content = read_bytes(path, MOST_RESULTS)
        try:
            results = json.loads(content or b"null")
        except (ValueError, RecursionError):
            continue
        if isinstance(results, dict) and isinstance(results.get("summary"), list):
            curve = read_bytes(path.with_name(f"{path.stem}-curve.png"), MOST_PICTURE)
            is_png = curve is not None and curve.startswith(b"\x89PNG\r\n\x1a\n")
            found.append(Evaluation(path.name, results, curve if is_png else None))
        if len(found) == MOST_EVALUATIONS:
            break
    return found
