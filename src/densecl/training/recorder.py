"""What happens between two steps: numbers are written, checkpoints are saved, and the run learns that it must stop."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.loggers import Logger

from densecl.errors import UserError
from densecl.images.batch import Batch
from densecl.images.quarantine import Quarantine
from densecl.images.sources import ImageSource
from densecl.interrupts import Interrupts
from densecl.model import save_backbone
from densecl.model.distributed import mean_over_processes
from densecl.progress import Display, duration
from densecl.training import best
from densecl.training.alarms import CollapseAlarm, not_finite
from densecl.training.checkpoints import FORMAT, Checkpoint, save_checkpoint, writing
from densecl.training.diagnosis import MEASURES, measure
from densecl.training.fixed_pairs import COST, TIMES
from densecl.training.frozen_time import FrozenTime
from densecl.training.headline import CALLED
from densecl.training.logs import Loggers
from densecl.training.metrics import COLUMNS, FOLLOWING, Row, in_brief, metrics_row
from densecl.training.module import DenseCLModule
from densecl.training.moments import Moments
from densecl.training.peers import Peers
from densecl.training.provenance import after
from densecl.training.rhythm import Rhythm
from densecl.training.table import Table
from densecl.training.timeline import Timeline
from densecl.training.voice import LOG_FILE, Voice
from densecl.training.watching import Watching
from densecl.training.window import Window
from densecl.verdicts.record import read_record
from densecl.verdicts.telling import Telling, told_in


class Recorder(pl.Callback):
    """Watches a run of `DenseCLModule` and keeps what is worth keeping.

    After the steps for which it is due: a row of metrics.csv, also for the other loggers; a row of watched.csv;
    ``checkpoints/last.ckpt`` and ``backbone.safetensors``; ``best.safetensors``. Only the first process writes these.

    Args:
        out: the run's folder.
        source: the images.
        batch_size: images per step, over all processes.
        timeline: where the run stands; its `seconds` are set here.
        rhythm: when something is due.
        interrupts: signals that ask the run to stop.
        quarantine: for the bad images of each batch.
        watching: what is measured of the backbone.
        keep_best: keep the best weights by the headline, too.
        loggers: get the numbers of metrics.csv, too.
        voice: on the first process, tells how it goes.
        in_epochs: whether the length of the run is given in epochs.
        peers: the other processes; they wait while the first one measures and saves.

    Attributes:
        done: steps done in all.
        row: the last one of metrics.csv.
        stopped_by: the signal that ended the run before its time, or None.
        stopped_early: whether it ended before its time because it had stopped gaining.
    """

    def __init__(
        self,
        out: Path,
        *,
        source: ImageSource,
        batch_size: int,
        timeline: Timeline,
        rhythm: Rhythm,
        interrupts: Interrupts,
        quarantine: Quarantine,
        watching: Watching,
        loggers: list[Logger],
        voice: Voice | None,
        in_epochs: bool,
        peers: Peers,
        keep_best: bool = False,
    ) -> None:
        self.out = out
        self.source = source
        self.batch_size = batch_size
        self.timeline = timeline
        self.rhythm = rhythm
        self.interrupts = interrupts
        self.quarantine = quarantine
        self.watching = watching
        self.keep_best = keep_best
        self.loggers = Loggers(loggers, self._say)
        self.voice = voice
        self.in_epochs = in_epochs
        self.peers = peers
        self.display: Display | None = None
        self.alarm = CollapseAlarm()
        self.stopped_by: int | None = None
        self.stopped_early = False
        self.done = self._saved_step = timeline.start_step
        self.row: Row = {}
        self._told_blind = False
        self._latest: Row = {}  # as `row`, but newer where rows are far apart
        self._part = self._parts_done()
        self._frozen_time: FrozenTime | None = None
        self._status = "failed"

    # --- Lightning's hooks ----------------------------------------------------------------------

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert isinstance(pl_module, DenseCLModule)
        # By now Lightning has installed a handler of its own, which talks to other processes from within the signal.
        self.interrupts.listen()
        self._began = self.timeline.now()
        self.peers.agree([0.0])  # connects them now, so that the time is not part of the first step's
        start = self.timeline.start_step
        guidance = pl_module.model.guidance
        if guidance is not None:
            self._frozen_time = FrozenTime([frozen.network for frozen in guidance.frozen])
        if trainer.is_global_zero:
            last = start if start > 0 else -1
            columns = COLUMNS if guidance is None else (*COLUMNS, *FOLLOWING)
            self.metrics = Table(self.out / "metrics.csv", columns, last_step=last)
            self.watching.open(start)
            folder, source = self.out / "moments", self.source
            self.moments = Moments(folder, pl_module.normalization, source.name, source.read, start_step=start)
            self.telling = Telling(read_record(self.out), told_in(self.out / LOG_FILE), self._say)
            if self.voice is not None:
                # Its thread must begin after the workers were forked.
                self.display = Display(self.voice.console, self.timeline.total_steps, start, log=self.voice.log)
            if start == 0:
                self._watch(pl_module)
            else:
                self._keep_best(pl_module)  # it may have been killed just before it did
        self.peers.first_is_done("the start")
        self._saved_at = self.timeline.now()
        self._window = Window(self.timeline.now)
        self.stopped_by = int(max(self.peers.agree([float(self.interrupts.received or 0)]))) or None
        if self.stopped_by is not None:  # during that measurement, which may have taken longer than a step
            trainer.should_stop = True
        if self._frozen_time is not None:
            self._frozen_time.start()
        self.timeline.start()

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Batch, batch_idx: int
    ) -> None:
        assert isinstance(pl_module, DenseCLModule)
        self._window.fetched()
        between_steps = batch_idx % trainer.accumulate_grad_batches == 0
        with self._writing(self.quarantine.path, pl_module, between_steps=between_steps):
            self.quarantine.record(batch.bad)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        assert isinstance(pl_module, DenseCLModule)
        self._window.worked()
        if (batch_idx + 1) % trainer.accumulate_grad_batches == 0:
            self._after_step(trainer, pl_module)
        else:
            pl_module.last = None
        self._window.batch_ended()

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._status = "success"
        if self.voice is not None and self.watching.seconds:
            share = self.watching.seconds / max(self.watching.seconds, self.timeline.now() - self._began)
            told = self._say if share > COST else self.voice.log
            told(f"What was watched took {duration(self.watching.seconds)}, {share:.1%} of the time.")
        time = self._frozen_time
        if time is not None and time.seconds > 0:
            steps = self.done - self.timeline.start_step
            self._say(
                f"The frozen networks took {time.seconds / time.total:.0%} of the time, {time.seconds / steps:.3g} s a"
                " step."
            )

    def close(self) -> None:
        """Leaves the terminal and the loggers in order, however the run ended."""
        if self.display is not None:
            self.display.close()
        self.loggers.close(self._status)

    # --- the parts ------------------------------------------------------------------------------

    def _after_step(self, trainer: pl.Trainer, module: DenseCLModule) -> None:
        self.done = module.step
        signal, minutes = self._agree()
        ended = self.timeline.ended(self.done)
        self.stopped_by = None if ended else signal
        part, self._part = self._part, self._parts_done()
        due = self.rhythm.after(
            self.done,
            ended=ended,
            stopped=self.stopped_by is not None,
            minutes=minutes,
            new_part=self._part > part,
        )
        if due.row:
            self._log(trainer, module, show=not due.watch)  # else it is shown with what is watched
        elif self.display is not None and (due.watch or self.display.stale):
            self._take_latest(trainer, module)
            if not due.watch:
                self._report()
        module.last = None  # its memory is free for what follows
        if self.display is not None:
            self.display.step(self.done, self.timeline.progress(self.done), self._seconds_left())
        if trainer.is_global_zero:
            if due.watch:
                self._watch(module)
            if (due.checkpoint or self.watching.stalled) and self.done > self._saved_step:
                self._save(module)
        if due.checkpoint or due.watch:
            self.peers.first_is_done(f"step {self.done}")
        if due.checkpoint:
            self._saved_at = self.timeline.now()
        if due.watch and self.watching.patience is not None and not ended:
            self.stopped_early = bool(max(self.peers.agree([float(self.watching.stalled)])))
            if self.stopped_early and (found := self.watching.headline) is not None:
                at_best = f"{found.in_words(found.best.value)} after step {found.best.step}"
                self._say(f"Stopped early after step {self.done}: {CALLED[found.name]} was best with {at_best}.")
        if ended or self.stopped_early or self.stopped_by is not None:
            trainer.should_stop = True

    def _agree(self) -> tuple[int | None, float]:
        """All processes take the latest of their clocks, and learn of a signal that any of them has received.

        Returns:
            The signal, and the minutes since the last checkpoint.
        """
        minutes = (self.timeline.now() - self._saved_at) / 60
        own = [self.timeline.read(), float(self.interrupts.received or 0), minutes]
        self.timeline.seconds, signal, minutes = self.peers.agree(own)
        return int(signal) or None, minutes

    def _log(self, trainer: pl.Trainer, module: DenseCLModule, *, show: bool) -> None:
        assert module.last is not None
        measures = mean_over_processes(measure(module.model, *module.last)).tolist()  # waits for the device
        measures, guided = measures[: len(MEASURES)], measures[len(MEASURES) :]
        rate, waiting = self._window.close(self.batch_size // trainer.accumulate_grad_batches)
        self._check_finite(module)
        timings = rate, waiting, self.timeline.seconds
        self.row = metrics_row(self.done, self.timeline.epoch(self.done), measures, module.settings, timings)
        if self._frozen_time is not None:
            self.row |= dict(zip(FOLLOWING, (*guided, self._frozen_time.share()), strict=True))
        if trainer.is_global_zero:
            with self._writing(self.metrics.path, module):
                self.metrics.append(self.row)
            numbers = {name: value for name, value in self.row.items() if name != "step" and value == value}
            self.loggers.log(numbers, self.done)
            self._latest = self.row
            self.telling.row(self.row, look=show)
            if self.display is not None and show:
                self._report()
        self.alarm.check(self.done, self.row)

    def _take_latest(self, trainer: pl.Trainer, module: DenseCLModule) -> None:
        """Between two rows that are far apart: the loss of this process, and the speed."""
        assert module.last is not None
        self._latest = self.row | {"loss": module.last[0].loss.item(), "epoch": self.timeline.epoch(self.done)}
        rate = self._window.rate(self.batch_size // trainer.accumulate_grad_batches)
        if rate is not None:
            self._latest["images_per_second"] = rate

    def _report(self) -> None:
        assert self.display is not None
        numbers = in_brief(self._latest, self.watching.last, in_epochs=self.in_epochs, sign=self.telling.sign)
        self.display.report(self.done, numbers, self._seconds_left())

    def _parts_done(self) -> int:
        """How many of the run's parts are done, after each of which the backbone is measured."""
        return int(TIMES * self.timeline.progress(self.done) + 1e-9)

    def _watch(self, module: DenseCLModule) -> None:
        """What is measured about ten times in a run, and what follows from it."""

        def show(what: str, done: int, total: int) -> None:
            if self.display is not None:
                self.display.note(f"{what} {done + 1} of {total}")

        def stop() -> bool:  # nobody waits for the first one; the others are one step long at most
            return self.done == 0 and self.interrupts.received is not None

        with self._writing(self.quarantine.path, module):
            row = self.watching.measure(module.model.backbone, self.done, stop=stop, show=show)
        if row is None:
            return
        self.moments.keep(self.done, self.watching.fixed_pairs.first_pairs)
        with self._writing(self.watching.path, module):
            self.watching.keep(row)
        measured = {name: value for name, value in self.watching.last.items() if name not in ("step", "pairs")}
        self.loggers.log({f"watched/{name}": value for name, value in measured.items()}, self.done)
        self.telling.watched_row(self.watching.last)
        if self.display is not None:
            self.display.note("")
            if self._latest:
                self._report()
        probe = self.watching.probe
        if probe is not None and probe.blind and not self._told_blind:
            self._told_blind = True
            self._say(
                f"warning: --probe gave nearly all pixels the same label after step {self.done}, so it has no number"
                " there. Its cells may be too coarse for these labels: try --output-stride 16, or a larger"
                " --image-size."
            )
        self._keep_best(module)

    def _keep_best(self, module: DenseCLModule) -> None:
        """Keeps the weights as the best, if they are.

        The checkpoint comes first. So whatever is killed when, a run that goes on from it has the best weights of what
        it knows, or makes them from the checkpoint.
        """
        found = best.newest(self.watching.headline) if self.keep_best else None
        if found is None or found.moment.step != self.done or found == best.kept(self.out):
            return
        self._check_finite(module)
        if self.done > self._saved_step:
            self._save(module)
        with self._writing(self.out / best.FILE, module):
            best.keep(module.model.backbone, self.out, module.normalization, module.origin, found)

    def _save(self, module: DenseCLModule) -> None:
        """Writes checkpoint and backbone, but never weights that are not finite."""
        self._check_finite(module)
        if not torch.nn.utils.get_total_norm(module.model.parameters()).isfinite():
            raise not_finite(self.done)
        checkpoint = Checkpoint(
            format=FORMAT,
            step=self.done,
            seconds=self.timeline.seconds,
            images=len(self.source),
            fingerprint=self.source.fingerprint(),
            model=module.model.state_dict(),
            optimizer=module.trainer.optimizers[0].state_dict(),
        )
        if self.watching.start_cells is not None:
            checkpoint["start_cells"] = self.watching.start_cells
        if loss_scale := module.trainer.precision_plugin.state_dict():  # with float16
            checkpoint["loss_scale"] = loss_scale
        # The result goes first, so that a run whose checkpoint says that it is complete has one.
        result = self.out / "backbone.safetensors"
        with writing(result):
            try:
                save_backbone(module.model.backbone, result, module.normalization, after(self.done, module.origin))
            finally:  # if the result cannot be written, the run can still go on from here and write it then
                save_checkpoint(checkpoint, self.out / "checkpoints" / "last.ckpt")
        self._saved_step = self.done

    @contextlib.contextmanager
    def _writing(self, path: Path, module: DenseCLModule, *, between_steps: bool = True) -> Iterator[None]:
        """A file of the run that cannot be written ends the run, but what it has learned is saved first.

        The same holds for bad images that end it.

        Args:
            path: the file.
            module: whose state is saved.
            between_steps: False in the middle of a step, where there is no state from which a run could go on.

        Raises:
            UserError: if the file, or then the checkpoint, cannot be written.
        """
        with writing(path):
            try:
                yield
            except (OSError, UserError):
                if module.trainer.is_global_zero and between_steps and self.done > self._saved_step:
                    self._save(module)
                raise

    def _check_finite(self, module: DenseCLModule) -> None:
        first_bad = int(module.first_bad_step)
        if first_bad < torch.iinfo(torch.int64).max:
            raise not_finite(first_bad + 1)

    def _seconds_left(self) -> float | None:
        rate = self._latest.get("images_per_second")
        return self.timeline.seconds_left(self.done, rate / self.batch_size if rate else None)

    def _say(self, text: str) -> None:
        if self.voice is not None:
            self.voice.say(text)
