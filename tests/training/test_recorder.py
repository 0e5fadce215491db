"""The recorder between the steps of a run that trains nothing, on a clock that the test moves."""

from __future__ import annotations

import csv
import errno
import io
import itertools
import math
import os
import signal
from collections.abc import Callable
from pathlib import Path
from unittest.mock import MagicMock, Mock

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.loggers import Logger
from rich.console import Console
from safetensors.torch import load_file, save_file

from densecl.errors import UserError
from densecl.images.batch import Batch
from densecl.images.pairs import BadRecord
from densecl.images.quarantine import Quarantine
from densecl.images.sources import ImageSource
from densecl.interrupts import Interrupts
from densecl.model import Backbone, Scheduled
from densecl.normalization import Normalization
from densecl.training import best, recorder, table
from densecl.training.alarms import PATIENCE
from densecl.training.checkpoints import load_checkpoint
from densecl.training.diagnosis import MEASURES
from densecl.training.fixed_pairs import FixedPairs, Seen
from densecl.training.module import DenseCLModule
from densecl.training.peers import Peers
from densecl.training.recorder import Recorder
from densecl.training.rhythm import Rhythm
from densecl.training.run import pretrain
from densecl.training.schedules import Settings
from densecl.training.timeline import Timeline
from densecl.training.voice import Voice
from densecl.training.watching import Watching

IMAGES, BATCH_SIZE = 20, 4  # five steps an epoch
WAIT, WORK = 1.0, 3.0  # seconds of a step


def keep_metadata(backbone: object, path: Path, normalization: object, said: dict[str, str]) -> None:
    """In place of a backbone: a file that says what it would."""
    needed = {"architecture": "none", "in_channels": "1", "output_stride": "null", "mean": "[0]", "std": "[1]"}
    save_file({"weight": torch.ones(1)}, path, needed | said)


class Run:
    """A run of fakes around a real `Recorder`.

    Args:
        out: its folder.
        monkeypatch: puts fakes where the model would be measured and saved.
        steps: of the run; None: until the time limit.
        time_limit: in seconds.
        start: steps done before.
        rhythm: see `Rhythm`; by default nothing is due between the first step and the last.
        first: whether this is the first process.
        accumulate: batches a step.
        measures: of each step; all are 1 by default.
        matched: the match accuracies that are measured, one after the other, the last one again and again.
        patience: see `Watching`.
        keep_best: see `Recorder`.
    """

    def __init__(
        self,
        out: Path,
        monkeypatch: pytest.MonkeyPatch,
        *,
        steps: int | None = 6,
        time_limit: float | None = None,
        start: int = 0,
        rhythm: tuple[int, int, float] = (100, 100, 1e9),
        first: bool = True,
        accumulate: int = 1,
        measures: dict[str, float] | None = None,
        matched: tuple[float, ...] = (0.5,),
        patience: int | None = None,
        keep_best: bool = False,
    ) -> None:
        self.out = out
        self.now = 1000.0
        timeline = Timeline.plan(IMAGES, BATCH_SIZE, steps=steps, time_limit=time_limit)
        timeline.now = lambda: self.now
        self.screen = io.StringIO()
        self.logger = Mock(spec=Logger)
        self.peers = Mock(spec=Peers)
        self.peers.agree.side_effect = lambda numbers: numbers
        self.interrupts = Mock(spec=Interrupts, received=None)
        self.fixed_pairs = Mock(spec=FixedPairs, first_pairs=None)  # nothing to draw
        seen = [Seen(accuracy, 0.125, 20, 0.25, math.nan, torch.eye(4)) for accuracy in matched]
        self.fixed_pairs.measure.side_effect = itertools.chain(seen, itertools.repeat(seen[-1]))
        self.source = MagicMock(spec=ImageSource)
        self.source.__len__.return_value = IMAGES
        self.source.fingerprint.return_value = "these images"
        self.trainer = Mock(
            spec=pl.Trainer, is_global_zero=first, accumulate_grad_batches=accumulate, should_stop=False
        )
        self.trainer.optimizers = [Mock()]
        self.trainer.precision_plugin.state_dict.return_value = {}
        self.trainer.optimizers[0].state_dict.return_value = {}
        self.module = Mock(
            spec=DenseCLModule,
            trainer=self.trainer,
            step=start,
            settings=Settings(0.1, Scheduled(dense_weight=0.5, key_momentum=0.99, temperature=0.2)),
            first_bad_step=torch.tensor(torch.iinfo(torch.int64).max),
            origin={},
        )
        self.module.model = Mock(guidance=None, backbone=Mock(spec=Backbone))
        self.module.normalization = Normalization((0.5,), (0.5,))
        self.weight = torch.ones(1)
        self.module.model.parameters.side_effect = lambda: [self.weight]
        self.module.model.state_dict.side_effect = lambda: {"weight": self.weight.clone()}
        measured = torch.tensor([(measures or {}).get(name, 1.0) for name in MEASURES])
        monkeypatch.setattr(recorder, "measure", lambda *_: measured)
        monkeypatch.setattr(recorder, "save_backbone", lambda backbone, path, *_: path.touch())
        monkeypatch.setattr(best, "save_backbone", keep_metadata)
        self.recorder = Recorder(
            out,
            source=self.source,
            batch_size=BATCH_SIZE,
            timeline=timeline.going_on(start, 4.0 * start),
            rhythm=Rhythm(*rhythm),
            interrupts=self.interrupts,
            quarantine=Quarantine(out / "quarantine.csv", IMAGES),
            watching=Watching(out, self.fixed_pairs, patience=patience),
            loggers=[self.logger] if first else [],
            voice=Voice(Console(file=self.screen)) if first else None,
            in_epochs=True,
            peers=self.peers,
            keep_best=keep_best,
        )

    def train(
        self, steps: int, bad: dict[int, tuple[BadRecord, ...]] | None = None, each: Callable[[int], object] = id
    ) -> Run:
        """Trains for so many steps, or until it is told to stop.

        Args:
            steps: to do.
            bad: bad images of the batches with these numbers (from 0).
            each: is called with the number of each step (from 1), before the recorder learns that it is done.
        """
        if not hasattr(self.recorder, "_window"):
            self.recorder.on_train_start(self.trainer, self.module)
        accumulate = self.trainer.accumulate_grad_batches
        for number in range(steps * accumulate):
            batch = Mock(spec=Batch, bad=(bad or {}).get(number, ()))
            self.now += WAIT / accumulate
            self.recorder.on_train_batch_start(self.trainer, self.module, batch, number)
            self.now += WORK / accumulate
            self.module.last = (Mock(loss=torch.tensor(1.0)), [Mock(), Mock()])
            if (number + 1) % accumulate == 0:
                self.module.step += 1
                each(self.module.step)
            self.recorder.on_train_batch_end(self.trainer, self.module, None, batch, number)
            assert self.module.last is None
            if self.trainer.should_stop:
                break
        return self

    def rows(self, name: str = "metrics.csv") -> list[dict[str, str]]:
        with (self.out / name).open(newline="") as file:
            return list(csv.DictReader(file))

    def steps(self, name: str = "metrics.csv") -> list[int]:
        return [int(row["step"]) for row in self.rows(name)]

    @property
    def saved(self) -> int | None:
        """The step of the checkpoint."""
        path = self.out / "checkpoints" / "last.ckpt"
        return load_checkpoint(path)["step"] if path.exists() else None


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Run]:
    return lambda **settings: Run(tmp_path, monkeypatch, **settings)


# --- what is written, and when ------------------------------------------------------------------------


def test_rows_come_at_the_first_step_at_their_turn_and_at_the_end(make) -> None:
    run = make(steps=8, rhythm=(3, 100, 1e9)).train(8)
    assert run.steps() == [1, 3, 6, 8]
    assert [row["epoch"] for row in run.rows()] == ["0.2", "0.6", "1.2", "1.6"]
    assert run.recorder.row["step"] == 8
    calls = [(call.kwargs["step"], call.args[0]) for call in run.logger.log_metrics.call_args_list]
    logged = {step: numbers for step, numbers in calls if "loss" in numbers}
    assert list(logged) == [1, 3, 6, 8]
    assert "step" not in logged[3] and logged[3]["epoch"] == 0.6
    assert {
        step: numbers["watched/match_accuracy"] for step, numbers in calls if "loss" not in numbers
    } == dict.fromkeys(range(9), 0.5)


def test_what_means_nothing_stays_empty_and_is_not_logged(make) -> None:
    run = make(measures={"dense_loss": float("nan")}).train(1)
    assert run.rows()[0]["dense_loss"] == ""
    logged = [call.args[0] for call in run.logger.log_metrics.call_args_list]
    assert not any("dense_loss" in numbers or "watched/probe" in numbers for numbers in logged)
    assert any("global_loss" in numbers for numbers in logged)


def test_checkpoints_come_at_their_turn_and_at_the_end(make) -> None:
    run = make(steps=8, rhythm=(100, 3, 1e9))
    saved = []
    run.train(8, each=lambda step: saved.append(run.saved))
    assert saved == [None, None, None, 3, 3, 3, 6, 6]
    assert run.saved == 8
    waits = [call.args[0] for call in run.peers.first_is_done.call_args_list]
    assert waits == ["the start", *(f"step {step}" for step in range(1, 9))]  # for measurements, too


def test_what_a_checkpoint_holds(make) -> None:
    run = make(steps=3).train(3)
    checkpoint = load_checkpoint(run.out / "checkpoints" / "last.ckpt")
    assert (checkpoint["images"], checkpoint["fingerprint"]) == (IMAGES, "these images")
    assert checkpoint["seconds"] == 3 * (WAIT + WORK)
    assert torch.equal(checkpoint["model"]["weight"], run.weight)
    assert (run.out / "backbone.safetensors").exists()


def test_the_result_is_there_before_the_checkpoint_that_says_so(make, monkeypatch) -> None:
    order: list[str] = []
    run = make(steps=1)
    monkeypatch.setattr(recorder, "save_backbone", lambda *_: order.append("backbone"))
    monkeypatch.setattr(recorder, "save_checkpoint", lambda *_: order.append("checkpoint"))
    run.train(1)
    assert order == ["backbone", "checkpoint"]


def test_checkpoints_by_the_clock_count_from_the_last_one_of_either_kind(make) -> None:
    # A step takes 4 seconds, so that a fifth of a minute has three. Every fifth step is due by number.
    run = make(steps=10, rhythm=(100, 5, 0.2))
    saved = []
    run.train(10, each=lambda step: saved.append(run.saved))
    assert saved == [None, None, None, 3, 3, 5, 5, 5, 8, 8]
    assert run.steps() == [1, 10]  # the clock asks for no rows,
    assert run.steps("watched.csv") == list(range(11))  # and does not move the measurements


@pytest.mark.parametrize("steps", [23, 200])
def test_it_is_measured_before_training_and_ten_times_in_a_run_of_any_length(make, steps: int) -> None:
    run = make(steps=steps, rhythm=(1000, 1000, 1e9)).train(steps)
    first, *_ = rows = run.rows("watched.csv")
    assert run.steps("watched.csv") == [math.ceil(steps * tenth / 10) for tenth in range(11)]
    assert all(row | {"step": "0"} == first for row in rows)
    known = {"match_accuracy": "0.5", "match_chance": "0.125", "pairs": "20", "cell_spread": "0.25", "moved": "0"}
    assert first.items() >= known.items() and float(first["effective_rank"]) == pytest.approx(4)
    assert first["image_spread"] == first["probe"] == ""  # not measured


def test_with_a_time_limit_it_is_measured_at_tenths_of_the_time(make) -> None:
    run = make(steps=None, time_limit=80.0).train(100)
    assert run.steps("watched.csv") == [0, *range(2, 21, 2)]  # a step takes four seconds


def test_a_resumed_run_measures_as_many_pairs_as_before(make) -> None:
    make(steps=10, rhythm=(1, 3, 1e9)).train(3)
    run = make(steps=10, rhythm=(1, 3, 1e9), start=3)
    run.train(1)
    run.fixed_pairs.keep_to.assert_called_once_with(20)


def test_a_signal_during_the_first_measurement_ends_the_run_before_its_first_step(make) -> None:
    run = make()

    def interrupted(backbone: object, *, stop: Callable[[], bool], show: Callable[[int, int], None]) -> None:
        show(8, 64)
        run.interrupts.received = signal.SIGTERM
        assert stop()

    run.fixed_pairs.measure.side_effect = interrupted
    run.recorder.on_train_start(run.trainer, run.module)
    assert run.trainer.should_stop and run.recorder.stopped_by == signal.SIGTERM
    assert run.steps("watched.csv") == [] and run.saved is None
    assert run.screen.getvalue().splitlines() == ["measuring, pair 9 of 64"]


def test_between_rows_that_are_far_apart_the_latest_loss_is_shown(make, monkeypatch) -> None:
    monkeypatch.setattr("densecl.progress.LINE_EVERY", 0.0)
    run = make(steps=4)
    losses = iter((9.0, 8.0, 7.0, 6.0))

    def computed(step: int) -> None:
        run.module.last = Mock(loss=torch.tensor(next(losses))), [Mock(), Mock()]

    run.train(4, each=computed)
    lines = [line for line in run.screen.getvalue().splitlines() if line.startswith("step")]
    assert lines[1].startswith("step 2/4  loss 8.000  match 50.0 %  rank 4  1.0 images/s") and "epoch 0.40" in lines[1]
    assert run.steps() == [1, 4] and run.recorder.row["loss"] == 1.0  # what is measured over all processes


def test_a_loss_that_is_shown_after_each_measurement_is_that_of_the_step(make, monkeypatch) -> None:
    monkeypatch.setattr("densecl.progress.Display.stale", False)  # each measurement shows the numbers anew
    shown = []
    monkeypatch.setattr(recorder, "in_brief", lambda row, *rest, **more: shown.append((row["step"], row["loss"])) or [])
    run = make(steps=4)

    def computed(step: int) -> None:
        run.module.last = Mock(loss=torch.tensor(float(9 - step))), [Mock(), Mock()]

    run.train(4, each=computed)
    assert [loss for _, loss in shown] == [1.0, 7.0, 6.0, 1.0]  # of rows 1 and 4 the mean over all processes


def test_a_resumed_run_drops_the_rows_that_its_checkpoint_does_not_know(make) -> None:
    make(steps=8, rhythm=(1, 3, 1e9)).train(5)
    run = make(steps=8, rhythm=(1, 3, 1e9), start=3)
    run.recorder.on_train_start(run.trainer, run.module)
    assert run.steps() == [1, 2, 3] and run.steps("watched.csv") == [0, 1, 2, 3]
    run.train(5)
    assert run.steps() == list(range(1, 9)) and run.steps("watched.csv") == list(range(9))
    assert run.recorder.done == run.saved == 8


def test_a_run_of_an_older_version_goes_on_with_what_it_measured(make) -> None:
    make(steps=10, rhythm=(1, 3, 1e9)).train(3)
    run = make(steps=10, rhythm=(1, 3, 1e9), start=3)
    (run.out / "watched.csv").unlink()
    (run.out / "match_accuracy.csv").write_text(
        "step,match_accuracy,match_chance,pairs\n0,0.2,0.1,12\n3,0.3,0.1,12\n4,1,1,12\n"
    )
    run.train(1)
    run.fixed_pairs.keep_to.assert_called_once_with(12)
    rows = run.rows("watched.csv")
    assert [(row["step"], row["match_accuracy"], row["moved"]) for row in rows] == [
        ("0", "0.2", ""),
        ("3", "0.3", ""),
        ("4", "0.5", ""),  # what it has moved from is not known
    ]


# --- the best weights, and when it stops early ----------------------------------------------------------

RISE_AND_FALL = (0.5, 0.2, 0.3, 0.4, 0.35, 0.3, 0.4)


def test_the_best_weights_are_kept_and_the_start_is_none_of_them(make) -> None:
    run = make(steps=6, keep_best=True, matched=RISE_AND_FALL)
    kept = []
    run.train(6, each=lambda step: kept.append(best.kept(run.out)))
    assert [found and found.moment.step for found in kept] == [None, 1, 2, 3, 3, 3]
    assert best.kept(run.out) == best.Kept("match_accuracy", best.Moment(3, 0.4))  # the first of two that are equal
    assert make(steps=6, matched=RISE_AND_FALL).train(6).recorder.stopped_early is False


@pytest.mark.parametrize("lost", ["save_checkpoint", "save_backbone"])
def test_killed_between_checkpoint_and_best_weights_a_run_has_both_in_the_end(make, monkeypatch, lost: str) -> None:
    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    each = (1, 100, 1e9)
    run = make(steps=6, keep_best=True, matched=RISE_AND_FALL, rhythm=each).train(2)
    assert run.saved == 2
    with monkeypatch.context() as patch:
        patch.setattr(recorder if lost == "save_checkpoint" else best, lost, killed)
        with pytest.raises(KeyboardInterrupt):
            run.train(1)
    assert run.saved == (2 if lost == "save_checkpoint" else 3) and best.kept(run.out).moment.step == 2
    again = make(steps=6, keep_best=True, start=run.saved, matched=RISE_AND_FALL[run.saved + 1 :], rhythm=each)
    again.train(6 - run.saved)
    assert best.kept(run.out).moment.step == 3 and again.steps("watched.csv") == list(range(7))


def test_a_run_stops_early_after_so_many_measurements_without_a_new_best(make) -> None:
    run = make(steps=10, patience=2, matched=(0.1, 0.2, 0.3, 0.3, 0.25)).train(10)
    assert run.recorder.stopped_early and run.recorder.done == run.saved == 4 and run.recorder.stopped_by is None
    assert "Stopped early after step 4: match accuracy was best with 30.0 % after step 2." in run.screen.getvalue()
    other = make(steps=10, patience=2, first=False)  # it measures nothing, and is told
    other.peers.agree.side_effect = lambda numbers: [1.0] if len(numbers) == 1 and other.module.step == 4 else numbers
    assert other.train(10).recorder.done == 4
    again = make(steps=10, patience=2, start=2, matched=(0.3, 0.25), rhythm=(1, 100, 1e9))
    again.train(10)  # what it has from before, counts
    assert again.recorder.done == 4


# --- time ---------------------------------------------------------------------------------------------


def test_the_timings_of_a_row_are_those_since_the_row_before(make) -> None:
    run = make(steps=5, rhythm=(2, 100, 1e9)).train(5)
    first, second, third, last = run.rows()
    # The wait for the first batch does not count as waiting: its workers were starting.
    assert first["images_per_second"] == f"{BATCH_SIZE / WORK:.6g}"
    assert first["data_wait"] == "0"
    for row in (second, third, last):
        assert float(row["images_per_second"]) == pytest.approx(BATCH_SIZE / (WAIT + WORK))
        assert float(row["data_wait"]) == pytest.approx(WAIT / (WAIT + WORK))
    assert [float(row["seconds"]) for row in run.rows()] == [4.0, 8.0, 16.0, 20.0]


def test_saving_does_not_count_as_work(make, monkeypatch) -> None:
    run = make(steps=4, rhythm=(1, 1, 1e9))

    def slowly(*_: object) -> None:
        run.now += 50

    monkeypatch.setattr(recorder, "save_checkpoint", slowly)
    run.train(4)
    assert float(run.rows()[-1]["images_per_second"]) == pytest.approx(BATCH_SIZE / (WAIT + WORK))


def test_seconds_go_on_from_the_checkpoint(make) -> None:
    run = make(steps=8, start=5, rhythm=(1, 100, 1e9)).train(2)
    assert [float(row["seconds"]) for row in run.rows()] == [24.0, 28.0]


def test_batches_of_one_step_make_one_row(make) -> None:
    run = make(steps=3, accumulate=2, rhythm=(1, 2, 1e9)).train(3)
    assert run.steps() == [1, 2, 3] and run.saved == 3
    assert float(run.rows()[-1]["images_per_second"]) == pytest.approx(BATCH_SIZE / (WAIT + WORK))


def test_the_user_sees_how_it_goes_and_how_long_it_will(make, monkeypatch) -> None:
    monkeypatch.setattr("densecl.progress.LINE_EVERY", 0.0)
    run = make(steps=4, rhythm=(1, 100, 1e9)).train(4)
    _, first, *_, last = run.screen.getvalue().splitlines()
    assert (
        first == "step 1/4  loss 1.000  match 50.0 %  rank 4  1.3 images/s  waiting for data 0 %  epoch 0.20  9 s left"
    )
    assert last.startswith("step 4/4  loss 1.000") and last.endswith("epoch 0.80  0 s left")


# --- the end ------------------------------------------------------------------------------------------


def test_a_run_ends_after_its_last_step(make) -> None:
    run = make(steps=3).train(10)
    assert run.trainer.should_stop and run.recorder.done == run.saved == 3


def test_a_run_ends_at_its_time_limit(make) -> None:
    run = make(steps=None, time_limit=10.0).train(10)
    assert run.recorder.done == run.saved == 3  # the first step that ends after ten seconds
    assert run.recorder.stopped_by is None
    assert run.steps() == [1, 3]


def test_all_processes_go_by_the_latest_of_their_clocks(make) -> None:
    run = make(steps=None, time_limit=10.0)
    run.peers.agree.side_effect = lambda numbers: [numbers[0] + 7, *numbers[1:]] if len(numbers) > 1 else numbers
    assert run.train(10).recorder.done == 1
    assert run.recorder.row["seconds"] == 11.0


@pytest.mark.parametrize("own", [True, False])
def test_a_signal_to_any_process_saves_and_stops_all(make, own: bool) -> None:
    run = make()

    def receive(step: int) -> None:
        if step == 4 and own:
            run.interrupts.received = signal.SIGTERM
        elif step == 4:
            run.peers.agree.side_effect = lambda numbers: [numbers[0], float(signal.SIGTERM), numbers[2]]

    run.train(6, each=receive)
    assert run.trainer.should_stop
    assert run.recorder.stopped_by == signal.SIGTERM
    assert run.recorder.done == run.saved == 4
    assert run.steps() == [1]  # a run that goes on has the same rows as one that was not stopped


def test_a_signal_in_the_last_step_changes_nothing(make) -> None:
    run = make(steps=2)
    run.interrupts.received = signal.SIGINT
    run.peers.agree.side_effect = lambda numbers: numbers if run.module.step == 2 else [0.0 for _ in numbers]
    run.train(2)
    assert run.recorder.stopped_by is None and run.saved == 2


@pytest.mark.parametrize("status", ["failed", "success"])
def test_the_loggers_learn_how_the_run_ended(make, status: str) -> None:
    run = make(steps=2).train(2)
    if status == "success":
        run.recorder.on_train_end(run.trainer, run.module)
    run.recorder.close()
    run.logger.finalize.assert_called_once_with(status)


# --- several processes --------------------------------------------------------------------------------


def test_only_the_first_process_writes(make) -> None:
    run = make(steps=4, rhythm=(1, 2, 1e9), first=False).train(4)
    assert not list(run.out.iterdir())
    assert run.screen.getvalue() == ""
    run.fixed_pairs.measure.assert_not_called()
    assert run.recorder.row["step"] == 4  # it has the numbers, too, for the alarm
    waits = [call.args[0] for call in run.peers.first_is_done.call_args_list]
    assert waits == ["the start", "step 1", "step 2", "step 3", "step 4"]
    assert run.trainer.should_stop


def test_every_process_takes_part_in_each_agreement(make) -> None:
    counts = []
    for first in (True, False):
        run = make(steps=3, first=first).train(3)
        counts.append(run.peers.agree.call_count)
    assert counts == [5, 5]  # twice at the start, and after each step


# --- what goes wrong ----------------------------------------------------------------------------------


def refused(*_: object, **__: object) -> None:
    raise OSError(errno.EIO, os.strerror(errno.EIO))


def fails(run: Run, what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """From now on this cannot be written."""
    if what in ("metrics.csv", "watched.csv"):
        append = table.append
        monkeypatch.setattr(table, "append", lambda path, text: refused() if path.name == what else append(path, text))
    elif what == "quarantine.csv":
        monkeypatch.setattr(run.recorder.quarantine, "record", refused)
    else:
        run.fixed_pairs.measure.side_effect = refused


@pytest.mark.parametrize(
    ("what", "saved"),
    [("metrics.csv", 4), ("watched.csv", 4), ("quarantine.csv", 3), ("quarantine.csv of the fixed pairs", 4)],
)
def test_a_file_that_cannot_be_written_ends_the_run_but_what_was_trained_is_saved(
    make, monkeypatch, what: str, saved: int
) -> None:
    run = make(rhythm=(1, 4, 1e9)).train(3)
    assert run.saved is None
    fails(run, what, monkeypatch)
    name = what.split()[0]
    message = rf"^Cannot write .*{name}: Input/output error\. .*go on with resume=True; the last checkpoint is whole\.$"
    with pytest.raises(UserError, match=message):
        run.train(1)
    assert run.saved == saved


def test_too_many_bad_images_end_the_run_but_what_was_trained_is_saved(make) -> None:
    bad = tuple(BadRecord(f"{number}.png", "no image", 0) for number in range(IMAGES))
    run = make()
    with pytest.raises(UserError, match="images cannot be used"):
        run.train(6, bad={3: bad})
    assert run.saved == 3


@pytest.mark.parametrize(("batch", "saved"), [(4, 2), (5, None)])
def test_in_the_middle_of_a_step_there_is_nothing_to_save(make, batch: int, saved: int | None) -> None:
    run = make(accumulate=2)
    bad = tuple(BadRecord(f"{number}.png", "no image", 0) for number in range(IMAGES))
    with pytest.raises(UserError, match="images cannot be used"):
        run.train(6, bad={batch: bad})
    assert run.saved == saved


@pytest.mark.parametrize("start", [0, 3])
def test_before_the_first_step_there_is_nothing_to_save(make, monkeypatch, start: int) -> None:
    run = make(start=start)
    fails(run, "quarantine.csv", monkeypatch)
    with pytest.raises(UserError, match=r"Cannot write .*quarantine.csv"):
        run.train(1)
    assert run.saved is None


def test_what_is_saved_already_is_not_saved_again(make, monkeypatch) -> None:
    run = make(rhythm=(100, 2, 1e9)).train(2)
    assert run.saved == 2
    monkeypatch.setattr(recorder, "save_checkpoint", None)  # is not called
    fails(run, "quarantine.csv", monkeypatch)
    with pytest.raises(UserError, match=r"Cannot write .*quarantine.csv"):
        run.train(1)


def test_where_the_checkpoint_cannot_be_written_either_the_old_one_stays(make, monkeypatch) -> None:
    run = make(rhythm=(1, 2, 1e9)).train(2)
    fails(run, "metrics.csv", monkeypatch)
    monkeypatch.setattr(recorder, "save_backbone", refused)
    monkeypatch.setattr("densecl.training.checkpoints.replacing", refused)
    with pytest.raises(UserError, match=r"^Cannot write .*last.ckpt: Input/output error\. .*checkpoint is whole\.$"):
        run.train(1)
    assert run.saved == 2


def test_another_process_saves_nothing_for_want_of_a_file(make, monkeypatch) -> None:
    run = make(first=False).train(3)
    fails(run, "quarantine.csv", monkeypatch)
    with pytest.raises(UserError, match=r"Cannot write .*quarantine.csv"):
        run.train(1)
    assert run.saved is None


def test_weights_that_are_not_finite_are_not_saved(make, monkeypatch) -> None:
    run = make(rhythm=(100, 2, 1e9)).train(2)
    run.weight = torch.tensor([float("nan")])
    with pytest.raises(UserError, match=r"Step 4: the loss or a weight is no longer a finite number"):
        run.train(2)
    assert run.saved == 2
    run.module.first_bad_step = torch.tensor(6)
    fails(run, "quarantine.csv", monkeypatch)
    with pytest.raises(UserError, match=r"Step 7: the loss or a weight is no longer a finite number"):
        run.train(1)
    assert run.saved == 2


def test_a_collapsed_run_ends_and_is_not_saved(make) -> None:
    run = make(steps=100, rhythm=(1, 100, 1e9), measures={"image_spread": 0.0})
    with pytest.raises(UserError, match=f"Step {PATIENCE}: collapsed"):
        run.train(100)
    assert run.saved is None


def test_a_real_run_goes_on_from_the_step_whose_row_could_not_be_written(tiny, tmp_path: Path, monkeypatch) -> None:
    recipe = tiny(steps=5)
    whole = load_file(pretrain(recipe, tmp_path / "whole").backbone)
    append = table.append

    def at_the_third(path: Path, text: bytes) -> None:
        if path.name == "metrics.csv" and text.startswith(b"3,"):
            refused()
        append(path, text)

    with monkeypatch.context() as patch:
        patch.setattr(table, "append", at_the_third)
        with pytest.raises(UserError, match=r"metrics.csv: Input/output error\. .*the last checkpoint is whole"):
            pretrain(recipe, tmp_path / "run")
    assert load_checkpoint(tmp_path / "run" / "checkpoints" / "last.ckpt")["step"] == 3
    resumed = load_file(pretrain(recipe, tmp_path / "run", resume=True).backbone)
    assert all(torch.equal(resumed[name], tensor) for name, tensor in whole.items())
