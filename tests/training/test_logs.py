from __future__ import annotations

import csv
import math
import sys
from pathlib import Path

import pytest
from lightning.pytorch.loggers.logger import DummyLogger

from densecl.errors import UserError
from densecl.training.logs import Loggers, Table, start_loggers

COLUMNS = ("step", "loss")


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_rows_are_readable_at_once_and_nan_stays_empty(tmp_path: Path) -> None:
    table = Table(tmp_path / "metrics.csv", COLUMNS)
    table.append({"step": 1, "loss": 0.5, "other": 3.0})
    table.append({"step": 2, "loss": math.nan})
    assert rows(tmp_path / "metrics.csv") == [{"step": "1", "loss": "0.5"}, {"step": "2", "loss": ""}]


def test_a_resumed_table_ends_with_the_checkpoints_step(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    table = Table(path, COLUMNS)
    for step in range(1, 8):
        table.append({"step": step, "loss": step / 2})
    with path.open("a") as file:
        file.write("8,3.")  # killed while writing
    Table(path, COLUMNS, last_step=5).append({"step": 6, "loss": 9.0})
    assert [row["step"] for row in rows(path)] == ["1", "2", "3", "4", "5", "6"]
    assert rows(path)[-1]["loss"] == "9"


def test_half_a_row_is_dropped_even_if_its_step_counts(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    path.write_text("step,loss\n4,1.25\n5,1.")
    Table(path, COLUMNS, last_step=10)
    assert rows(path) == [{"step": "4", "loss": "1.25"}]


def test_a_new_run_begins_an_empty_table(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    path.write_text("step,loss\n4,1.25\n")
    Table(path, COLUMNS)
    assert path.read_text() == "step,loss\n"


def test_a_missing_logger_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    monkeypatch.setattr("lightning.pytorch.loggers.wandb._WANDB_AVAILABLE", False)
    with pytest.raises(UserError, match=r"pip install 'densecl\[wandb\]'"):
        start_loggers(("wandb",), tmp_path, 0, {})


def test_a_logger_that_cannot_start_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class UsageError(Exception):
        """What wandb raises where nobody is logged in."""

    class Experiment:
        def __init__(self, *_: object, **__: object) -> None: ...

        def log_hyperparams(self, settings: object) -> None:
            raise UsageError("api_key not configured (no-tty).\nCall wandb.login(key=[your_api_key])" + 500 * "!")

    for name, logger in (("wandb", "WandbLogger"), ("mlflow", "MLFlowLogger")):
        monkeypatch.setattr(f"lightning.pytorch.loggers.{logger}", Experiment)
        with pytest.raises(UserError, match=rf"loggers {name} cannot start: api_key not.* or leave it out") as error:
            start_loggers((name,), tmp_path, 0, {})
        assert "\n" not in error.value.args[0] and len(error.value.args[0]) < 400
    (tmp_path / "tensorboard").touch()  # where its folder should be
    with pytest.raises(UserError, match="loggers tensorboard cannot start: .*tensorboard"):
        start_loggers(("tensorboard",), tmp_path, 0, {})


def test_names_that_are_no_utf_8(tmp_path: Path) -> None:
    (logger,) = start_loggers(("tensorboard",), tmp_path / "run[x]", 0, {"data": "images\udcff"})
    logger.log_metrics({"loss": 1.0}, step=1)
    logger.finalize("success")
    with pytest.raises(UserError, match="loggers tensorboard cannot start: .* is no UTF-8. .* or leave it out"):
        start_loggers(("tensorboard",), tmp_path / "run\udcff", 0, {})


def test_a_logger_that_fails_is_left_out(tmp_path: Path) -> None:
    class Failing(DummyLogger):
        def log_metrics(self, *_: object, **__: object) -> None:
            raise ValueError("you tried to log 1.0") from OSError("no space")

    class AtTheEnd(DummyLogger):
        def finalize(self, status: str) -> None:
            raise RuntimeError(f"{status}, but no server")

    told: list[str] = []
    loggers = Loggers([Failing(), AtTheEnd()], told.append)
    for step in range(2):
        loggers.log({"loss": 1.0}, step)
    loggers.close("success")
    assert told == [
        "warning: Failing fails and is left out from now on: no space",
        "warning: AtTheEnd fails and is left out from now on: success, but no server",
    ]
