"""What happens between two steps: numbers are written, checkpoints saved, and the run is told to stop."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
import torch.distributed as dist
from lightning.pytorch.loggers import Logger
from rich.console import Console

from densecl.images.batch import Batch
from densecl.images.quarantine import Quarantine
from densecl.images.sources import ImageSource
from densecl.interrupts import Interrupts
from densecl.model import save_backbone
from densecl.model.distributed import mean_over_processes, world_size
from densecl.progress import Display
from densecl.training.checkpoints import FORMAT, Checkpoint, save_checkpoint, writing
from densecl.training.diagnosis import MEASURES, CollapseAlarm, FixedPairs, diagnose, not_finite
from densecl.training.logs import Loggers, Table
from densecl.training.module import DenseCLModule
from densecl.training.peers import Peers

#: Columns of metrics.csv. `epoch` is a fraction; `data_wait` is the share of the time since the last row in which
#: training waited for data; `seconds` is the time spent training since the run began, interruptions left out.
COLUMNS = (
    "step",
    "epoch",
    *MEASURES[:5],
    "learning_rate",
    "dense_weight",
    "key_momentum",
    "temperature",
    *MEASURES[5:],
    "images_per_second",
    "data_wait",
    "seconds",
)

#: Columns that no repetition of a run gives again.
TIMINGS = ("images_per_second", "data_wait", "seconds")

#: Columns of match_accuracy.csv: matching by the backbone's features on fixed view pairs, and guessing.
MATCH_COLUMNS = ("step", "match_accuracy", "match_chance")


class Clock:
    """The seconds a run has been training, interruptions left out. All processes see the same."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._before = seconds
        self._start = time.monotonic()

    def start(self) -> None:
        self._start = time.monotonic()

    def read(self) -> float:
        """What this process's own clock says; `seconds` is what all agreed upon."""
        return self._before + time.monotonic() - self._start


class Recorder(pl.Callback):
    """Watches a run of `DenseCLModule` and keeps what is worth keeping.

    After every step that is due: a row of metrics.csv and of the other loggers; the match accuracy on fixed views;
    ``checkpoints/last.ckpt`` with ``backbone.safetensors``. What is due follows from the step alone, but for
    checkpoints by the clock, which change nothing of the run.

    Args:
        out: the run's folder.
        source: the images.
        batch_size: images per step, over all processes.
        total_steps: of the run; None: until the time limit.
        time_limit: seconds; None: until the last step.
        clock: of the run.
        log_every: steps between rows.
        checkpoint_every: steps between checkpoints.
        checkpoint_minutes: minutes between checkpoints, whichever comes first.
        interrupts: signals that ask the run to stop.
        quarantine: for the bad images of each batch.
        fixed_pairs: on which to measure the backbone's match accuracy.
        loggers: that shall have the numbers of metrics.csv, too.
        console: on the first process, where to show how it goes.
        peers: the other processes, which wait while the first one measures and saves.

    Attributes:
        done: steps done in all.
        row: the last one of metrics.csv.
        stopped_by: the signal that ended the run before its time, or None.
    """

    def __init__(
        self,
        out: Path,
        *,
        source: ImageSource,
        batch_size: int,
        total_steps: int | None,
        time_limit: float | None,
        clock: Clock,
        log_every: int,
        checkpoint_every: int,
        checkpoint_minutes: float,
        interrupts: Interrupts,
        quarantine: Quarantine,
        fixed_pairs: FixedPairs,
        loggers: list[Logger],
        console: Console | None,
        peers: Peers,
    ) -> None:
        self.out = out
        self.source = source
        self.batch_size = batch_size
        self.total_steps = total_steps
        self.time_limit = time_limit
        self.clock = clock
        self.log_every = log_every
        self.checkpoint_every = checkpoint_every
        self.checkpoint_minutes = checkpoint_minutes
        self.interrupts = interrupts
        self.quarantine = quarantine
        self.fixed_pairs = fixed_pairs
        self.loggers = Loggers(loggers, self._say)
        self.console = console
        self.peers = peers
        self.display: Display | None = None
        self.alarm = CollapseAlarm()
        self.stopped_by: int | None = None
        self.done = 0
        self.row: dict[str, float | int] = {}
        self._status = "failed"

    # --- Lightning's hooks ----------------------------------------------------------------------

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert isinstance(pl_module, DenseCLModule)
        # By now Lightning has installed a handler of its own, which talks to other processes from within the signal.
        self.interrupts.listen()
        # Agreeing on the CPU does not stall a GPU; NCCL knows no CPU.
        if world_size() > 1:
            self._agreement: Any = dist.new_group(backend="gloo", timeout=self.peers.patience)
        self.done = start = pl_module.start_step
        if trainer.is_global_zero:
            self.metrics = Table(self.out / "metrics.csv", COLUMNS, last_step=start if start > 0 else -1)
            self.matches = Table(self.out / "match_accuracy.csv", MATCH_COLUMNS, last_step=start if start > 0 else -1)
            if start == 0:
                self._measure_matches(pl_module, 0)
        self.peers.first_is_done("the start")
        if self.console is not None:
            self.display = Display(self.console, self.total_steps, start)  # its thread begins after the workers' fork
        self._saved_at = time.monotonic()
        self.clock.start()
        self._window = _Window()

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Batch, batch_idx: int
    ) -> None:
        self._window.fetched()
        with writing(self.quarantine.path):
            self.quarantine.record(batch.bad)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        assert isinstance(pl_module, DenseCLModule)
        self._window.worked()
        if (batch_idx + 1) % trainer.accumulate_grad_batches:
            pl_module.last = None
            self._window.batch_ended()
            return
        self.done = done = pl_module.step
        signal, minutes = self._agree()
        out_of_time = self.time_limit is not None and self.clock.seconds >= self.time_limit
        ends = done == self.total_steps or out_of_time
        self.stopped_by = None if ends else signal
        if ends or done == 1 or done % self.log_every == 0:
            self._log(trainer, pl_module, done)
        pl_module.last = None
        due = done % self.checkpoint_every == 0
        saves = ends or due or self.stopped_by is not None or minutes >= self.checkpoint_minutes
        if trainer.is_global_zero:
            if ends or due:
                self._measure_matches(pl_module, done)
            if saves:
                self._save(pl_module)
            if self.display is not None:
                self.display.step(done, self._seconds_left(done))
        if saves:
            self.peers.first_is_done(f"step {done}")
            self._saved_at = time.monotonic()
        if out_of_time or self.stopped_by is not None:
            trainer.should_stop = True
        self._window.batch_ended()

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._status = "success"

    # --- the parts ------------------------------------------------------------------------------

    def close(self) -> None:
        """Leaves the terminal and the loggers in order, however the run ended."""
        if self.display is not None:
            self.display.close()
        self.loggers.close(self._status)

    def _agree(self) -> tuple[int | None, float]:
        """All processes take the latest of their clocks, and learn of the signal that any of them has received.

        Returns:
            The signal, and the minutes since the last checkpoint.
        """
        minutes = (time.monotonic() - self._saved_at) / 60
        own = [self.clock.read(), float(self.interrupts.received or 0), minutes]
        news = torch.tensor(own, dtype=torch.float64)
        if world_size() > 1:
            dist.all_reduce(news, dist.ReduceOp.MAX, group=self._agreement)
        seconds, signal, minutes = news.tolist()
        self.clock.seconds = seconds
        return int(signal) or None, minutes

    def _log(self, trainer: pl.Trainer, module: DenseCLModule, done: int) -> None:
        assert module.last is not None
        measures = mean_over_processes(diagnose(module.model, *module.last)).tolist()  # waits for the device
        rate, waiting = self._window.close(self.batch_size // trainer.accumulate_grad_batches)
        self._check_finite(module)
        settings = {
            "learning_rate": module.settings.learning_rate,
            "dense_weight": module.settings.dense_weight,
            "key_momentum": _or_nan(module.settings.key_momentum),
            "temperature": _or_nan(module.settings.temperature),
        }
        timings = {"images_per_second": rate, "data_wait": waiting, "seconds": self.clock.seconds}
        measured = dict(zip(MEASURES, measures, strict=True))
        self.row = {"step": done, "epoch": done * self.batch_size / len(self.source), **measured, **settings, **timings}
        if trainer.is_global_zero:
            self.metrics.append(self.row)
            numbers = {name: value for name, value in self.row.items() if name != "step" and value == value}
            self.loggers.log(numbers, done)
            if self.display is not None:
                self.display.report(done, _shown(self.row), self._seconds_left(done))
        self.alarm.check(done, self.row)

    def _say(self, text: str) -> None:
        if self.console is not None:
            self.console.print(text, highlight=False, soft_wrap=True, markup=False)

    def _check_finite(self, module: DenseCLModule) -> None:
        first_bad = int(module.first_bad_step)
        if first_bad < torch.iinfo(torch.int64).max:
            raise not_finite(first_bad + 1)

    def _measure_matches(self, module: DenseCLModule, done: int) -> None:
        accuracy, chance = self.fixed_pairs.match_accuracy(module.model.backbone)
        self.matches.append({"step": done, "match_accuracy": accuracy, "match_chance": chance})

    def _save(self, module: DenseCLModule) -> None:
        """Writes checkpoint and backbone, but never weights that are not finite."""
        self._check_finite(module)
        if not torch.nn.utils.get_total_norm(module.model.parameters()).isfinite():
            raise not_finite(self.done)
        checkpoint = Checkpoint(
            format=FORMAT,
            step=self.done,
            seconds=self.clock.seconds,
            images=len(self.source),
            fingerprint=self.source.fingerprint(),
            model=module.model.state_dict(),
            optimizer=module.trainer.optimizers[0].state_dict(),
        )
        # The result first: a run whose checkpoint says that it is complete then has one.
        result = self.out / "backbone.safetensors"
        with writing(result):
            try:
                save_backbone(module.model.backbone, result, module.normalization)
            finally:  # if that fails, the run can still go on from here, and its result be written then
                save_checkpoint(checkpoint, self.out / "checkpoints" / "last.ckpt")

    def _seconds_left(self, done: int) -> float | None:
        if self.time_limit is not None:
            return max(0.0, self.time_limit - self.clock.seconds)
        rate = self.row.get("images_per_second")
        if not rate or self.total_steps is None:
            return None
        return (self.total_steps - done) * self.batch_size / rate


def _or_nan(value: float | None) -> float:
    """What a method does not have stays empty in the tables."""
    return math.nan if value is None else value


class _Window:
    """Measures the time since the last row: working and waiting for data. What is done between steps is left out."""

    def __init__(self) -> None:
        self.batches = 0
        self._waited = self._worked = 0.0
        self._mark: float | None = None

    def fetched(self) -> None:
        """The next batch has come. (The first one comes late, with the start of the workers, and does not count.)"""
        if self._mark is not None:
            self._waited += self._lap()
        self._mark = time.monotonic()

    def worked(self) -> None:
        """A batch is done (as far as the host knows: a GPU may still be at it)."""
        self._worked += self._lap()
        self.batches += 1

    def batch_ended(self) -> None:
        """Everything that follows a batch is done."""
        self._mark = time.monotonic()

    def close(self, batch_size: int) -> tuple[float, float]:
        """Images per second, and the share of waiting; begins anew."""
        self._worked += self._lap()
        total = self._waited + self._worked
        numbers = self.batches * batch_size / total, self._waited / total
        self.batches, self._waited, self._worked = 0, 0.0, 0.0
        return numbers

    def _lap(self) -> float:
        assert self._mark is not None
        now = time.monotonic()
        passed, self._mark = now - self._mark, now
        return passed


def _shown(row: Mapping[str, float | int]) -> str:
    """What of a row of metrics.csv is worth a glance."""
    return (
        f"epoch {row['epoch']:.2f}  loss {row['loss']:.3f}  {row['images_per_second']:.0f} images/s"
        f"  waiting for data {row['data_wait']:.0%}"
    )
