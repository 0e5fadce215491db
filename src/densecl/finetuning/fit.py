"""The steps of a fine-tuning, and what is kept between them: rows, the best weights, checkpoints."""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from signal import Signals
from typing import Any

import torch
from torch import nn

from densecl.errors import UserError
from densecl.evaluation.dense import device_of
from densecl.evaluation.fine_tuning import LEARNING_RATE, Descent, Learning
from densecl.finetuning.checkpoint import FORMAT, Checkpoint, save_checkpoint
from densecl.finetuning.tuned import Tuned, save_tuned
from densecl.finetuning.tuning import Tuning, Validation
from densecl.interrupts import Interrupts
from densecl.progress import Display
from densecl.training.checkpoints import writing
from densecl.training.table import Table

BEST, LAST, CHECKPOINT = "best.safetensors", "last.safetensors", "checkpoints/last.ckpt"

#: Columns of metrics.csv before those of the task.
COLUMNS = ("step", "loss", "learning_rate", "images_per_second", "seconds")

#: Columns that a repeated run does not have alike.
TIMINGS = frozenset(("images_per_second", "seconds"))


class Fit:
    """A network while it is fine-tuned.

    Args:
        tuning: the task.
        learning: the network, and how it learns.
        tuned: what the network is.
        out: folder of the run.
        say: shows a line to the user.

    Attributes:
        best: the best validation so far, and the step that it followed.
        last: the latest validation.
        seconds: spent on steps.
    """

    def __init__(self, tuning: Tuning, learning: Learning, tuned: Tuned, out: Path, say: Callable[[str], None]) -> None:
        settings = tuning.settings
        self.tuning = tuning
        self.learning = learning
        self.model: nn.Module = learning.model
        self.device = device_of(self.model)
        self.tuned = tuned
        self.out = out
        self.say = say
        self.descent = Descent(
            self.model.parameters(),
            tuning.steps,
            learning.loss_at,
            learning_rate=settings.learning_rate or LEARNING_RATE,
        )
        self.validate_every = settings.validate_every or max(1, tuning.steps // 5)
        self.best: tuple[int, Validation] | None = None
        self.last: Validation | None = None
        self.seconds = 0.0
        self._losses: list[float] = []

    # --- going on ---------------------------------------------------------------------------------------------------

    def resume(self, checkpoint: Checkpoint, fingerprint: str) -> None:
        """Goes on from a checkpoint. Call it where torch's random numbers are those of the run (`seeded`).

        Raises:
            UserError: it is of other data, or of another network.
        """
        path = self.out / CHECKPOINT
        if checkpoint["fingerprint"] != fingerprint:
            raise UserError(
                f"{path} is of other data: images or labels have changed since. Begin anew in another --out."
            )
        try:
            self.model.load_state_dict(checkpoint["model"])
            self.descent.optimizer.load_state_dict(checkpoint["optimizer"])
            self.learning.generator.set_state(checkpoint["generator"])
            torch.set_rng_state(checkpoint["random"])
            if checkpoint["random_gpu"] is not None and self.device.type == "cuda":
                torch.cuda.set_rng_state(checkpoint["random_gpu"], self.device)
            if checkpoint["best"] is not None:
                step, scores, threshold = (checkpoint["best"][name] for name in ("step", "scores", "threshold"))
                self.best = step, Validation(scores, threshold)
        except (RuntimeError, ValueError, KeyError, TypeError) as error:
            raise UserError(f"{path} does not fit the run: {str(error).splitlines()[0][:120]}.") from error
        self.descent.done = checkpoint["step"]
        self.seconds = checkpoint["seconds"]
        self._losses = list(checkpoint["losses"])

    # --- the steps --------------------------------------------------------------------------------------------------

    def run(self, display: Display, interrupts: Interrupts, fingerprint: str) -> Signals | None:
        """All steps that are left.

        Returns:
            The signal that ended the run before its time, once all is saved.

        Raises:
            UserError: the loss is not finite, or something cannot be written.
        """
        settings, descent = self.tuning.settings, self.descent
        self.table = Table(
            self.out / "metrics.csv", (*COLUMNS, *self.tuning.columns), last_step=descent.done if descent.done else -1
        )
        saved = time.monotonic()
        while descent.done < descent.steps:
            started = time.monotonic()
            self._losses.append(descent.step().item())
            self.seconds += time.monotonic() - started
            done, ended = descent.done, descent.done == descent.steps
            validated = ended or done % self.validate_every == 0
            if validated:
                self._validate()
            if validated or done == 1 or done % settings.log_every == 0:
                self._log(display, self.last if validated else None)
            display.step(done, done / descent.steps, self._seconds_left())
            signal = None if ended else interrupts.received
            minutes = (time.monotonic() - saved) / 60
            turn = done % settings.checkpoint_every == 0 or minutes >= settings.checkpoint_minutes
            if ended or turn or signal is not None:
                self._save(fingerprint)
                saved = time.monotonic()
            if signal is not None:
                return signal
        return None

    def _validate(self) -> None:
        self.last = self.tuning.validate(self.model, self.tuned)
        decisive = self.tuning.columns[0]
        better = self.best is None or self.last.scores[decisive] > self.best[1].scores[decisive]
        if better:
            self.best = self.descent.done, self.last
            self._check_finite()
            with writing(self.out / BEST):
                save_tuned(self.model, self.described(self.last), self.out / BEST)
        shown = ", ".join(
            f"{name} {value:.1f}" for name, value in self.last.scores.items() if not name.startswith("iou_")
        )
        self.say(f"step {self.descent.done}: {shown}{' (the best so far)' if better else ''}")

    def described(self, validation: Validation | None) -> Tuned:
        """What the network is now."""
        scores, threshold = (validation.scores, validation.threshold) if validation is not None else ({}, None)
        return dataclasses.replace(self.tuned, step=self.descent.done, scores=dict(scores), threshold=threshold)

    def _log(self, display: Display, validation: Validation | None) -> None:
        done = self.descent.done
        loss = statistics.fmean(self._losses)
        row: dict[str, Any] = {
            "step": done,
            "loss": loss,
            "learning_rate": self.descent.rate(done - 1),
            "images_per_second": done * self.tuning.batch_size / self.seconds,
            "seconds": self.seconds,
        }
        if validation is not None:
            row |= {name: value for name, value in validation.scores.items() if name in self.tuning.columns}
            if validation.threshold is not None:
                row["threshold"] = validation.threshold
        with writing(self.table.path):
            self.table.append(row)
        display.report(done, (f"loss {loss:.3f}",), self._seconds_left())
        self._losses = []

    def _save(self, fingerprint: str) -> None:
        self._check_finite()
        gpu = torch.cuda.get_rng_state(self.device) if self.device.type == "cuda" else None
        best = None
        if self.best is not None:
            step, validation = self.best
            best = {"step": step, "scores": dict(validation.scores), "threshold": validation.threshold}
        current = self.last if self.descent.done % self.validate_every == 0 or self._ended else None
        with writing(self.out / LAST):
            save_tuned(self.model, self.described(current), self.out / LAST)
        checkpoint = Checkpoint(
            format=FORMAT,
            step=self.descent.done,
            seconds=self.seconds,
            fingerprint=fingerprint,
            model=self.model.state_dict(),
            optimizer=self.descent.optimizer.state_dict(),
            losses=list(self._losses),
            best=best,
            generator=self.learning.generator.get_state(),
            random=torch.get_rng_state(),
            random_gpu=gpu,
        )
        save_checkpoint(checkpoint, self.out / CHECKPOINT)

    @property
    def _ended(self) -> bool:
        return self.descent.done == self.descent.steps

    def _check_finite(self) -> None:
        if not nn.utils.get_total_norm(self.model.parameters()).isfinite():
            raise UserError(
                f"Fine-tuning diverged by step {self.descent.done} of {self.descent.steps}. Try a lower"
                " --learning-rate."
            )

    def _seconds_left(self) -> float:
        return self.seconds / self.descent.done * (self.descent.steps - self.descent.done)
