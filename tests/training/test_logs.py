from __future__ import annotations

import sys
from pathlib import Path

import pytest
from lightning.pytorch.loggers.logger import DummyLogger

from densecl.errors import UserError
from densecl.training.logs import Loggers, start_loggers


def test_a_missing_logger_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    monkeypatch.setattr("lightning.pytorch.loggers.wandb._WANDB_AVAILABLE", False)
    with pytest.raises(UserError, match="pip install wandb"):
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
