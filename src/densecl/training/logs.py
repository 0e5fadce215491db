"""Loggers that get the numbers of a run beside metrics.csv: TensorBoard, Weights & Biases and MLflow."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from densecl.errors import UserError

if TYPE_CHECKING:
    from lightning.pytorch.loggers import Logger

#: What to do if a logger cannot start.
HELP = {
    "tensorboard": "Put that right",
    "wandb": "Log in with 'wandb login' or WANDB_API_KEY, keep it on this machine with WANDB_MODE=offline",
    "mlflow": "Look at MLFLOW_TRACKING_URI",
}


def start_loggers(names: tuple[str, ...], out: Path, last_step: int, settings: Mapping[str, Any]) -> list[Logger]:
    """Makes and starts Lightning's loggers with these names.

    They write into the run's folder; MLflow writes to MLFLOW_TRACKING_URI if that is set. In a resumed run, TensorBoard
    drops what was logged after `last_step`. For W&B and MLflow it is a new run with the same name.

    Args:
        names: some of "tensorboard", "wandb" and "mlflow".
        out: the run's folder.
        last_step: the step to go on from.
        settings: of the run, which are logged, too.

    Raises:
        UserError: if a logger's package is not installed, or the logger cannot start: nobody is logged in, there is no
            such server, the folder cannot be written.
    """
    from lightning.pytorch import loggers

    title = _as_text(out.name)
    made: list[Logger] = []
    for name in names:
        try:
            if name == "tensorboard":
                if _as_text(path := str(out.absolute())) != path:
                    # TensorBoard's own thread would fail, and we would wait for it forever.
                    raise ValueError("the name of the run's folder is no UTF-8")
                logger = loggers.TensorBoardLogger(out, name="tensorboard", version="", purge_step=last_step + 1)
                _ = logger.experiment  # makes its folder now, where a failure gets the message below
            elif name == "wandb":
                logger = loggers.WandbLogger(name=title, save_dir=out, project="densecl")
            else:
                logger = loggers.MLFlowLogger("densecl", run_name=title, save_dir=str(out / "mlruns"))
            logger.log_hyperparams({setting: _as_text(value) for setting, value in settings.items()})
        except ImportError as error:
            raise UserError(f"--loggers {name} needs a package that is not here: pip install {name}.") from error
        except Exception as error:  # each logger raises its own kinds
            raise UserError(
                f"--loggers {name} cannot start: {in_short(error)}. {HELP[name]}, or leave it out (--loggers none)."
            ) from error
        made.append(logger)
    return made


class Loggers:
    """Loggers that cannot end a run: one that fails is left out from then on.

    (If Lightning's Trainer had them, a failure of one would end the run.)

    Args:
        loggers: from `start_loggers`.
        say: shows the user a line.
    """

    def __init__(self, loggers: list[Logger], say: Callable[[str], None]) -> None:
        self.loggers = loggers
        self.say = say

    def log(self, numbers: Mapping[str, float | int], step: int) -> None:
        """Logs the numbers of a step."""
        self._each(lambda logger: logger.log_metrics(dict(numbers), step=step))

    def close(self, status: str) -> None:
        """Writes what is not written yet. The status is "success" or "failed"."""
        self._each(lambda logger: logger.finalize(status))

    def _each(self, act: Callable[[Logger], None]) -> None:
        for logger in list(self.loggers):
            try:
                act(logger)
            except Exception as error:  # each logger raises its own kinds
                self.loggers.remove(logger)
                self.say(f"warning: {type(logger).__name__} fails and is left out from now on: {in_short(error)}")


@contextlib.contextmanager
def threads_of_loggers_quiet() -> Iterator[None]:
    """Shows no traceback of TensorBoard's own thread. Its error is raised again at the next call of the logger."""
    before = threading.excepthook

    def told(failure: threading.ExceptHookArgs) -> None:
        if not type(failure.thread).__module__.startswith("tensorboard."):
            before(failure)

    threading.excepthook = told
    try:
        yield
    finally:
        threading.excepthook = before


def _as_text(value: Any) -> Any:
    """Escapes bytes of a file's name that are not UTF-8, because no logger can write them."""
    return value.encode("utf-8", "backslashreplace").decode() if isinstance(value, str) else value


def in_short(error: Exception, limit: int = 200) -> str:
    """What an error of another library says, or the error that caused it, in one line of at most `limit` characters."""
    while isinstance(error.__cause__, Exception):
        error = error.__cause__
    words = " ".join(str(error).split()).rstrip(".") or type(error).__name__
    return words if len(words) <= limit else f"{words[: limit - 3]}..."
