"""A run that a signal stops after a certain step, in this process or in several."""

from __future__ import annotations

import os
import shutil
import signal
from pathlib import Path

import pytest

from densecl.config.recipe import Recipe
from densecl.training.checkpoints import load_checkpoint
from densecl.training.launch import launch
from densecl.training.recorder import Recorder
from densecl.training.run import pretrain


def stop_after(step: int, recipe: Recipe, out: Path) -> None:
    """Runs until that step, then gets SIGTERM, which saves."""
    original = Recorder.on_train_batch_end

    def hook(self, trainer, module, *others) -> None:
        if module.step == step:
            os.kill(os.getpid(), signal.SIGTERM)
        original(self, trainer, module, *others)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Recorder, "on_train_batch_end", hook)
        with pytest.raises(SystemExit):
            pretrain(recipe, out)


def stop_and_resume(step: int, recipe: Recipe, folder: Path) -> None:
    """A run in ``run`` that stops after that step and goes on, and one in ``whole`` that does not.

    What the first one had saved stays as ``stopped.ckpt``. All of it happens in the same processes, where there are
    several: most of such a test's time is their start.
    """
    if isinstance(recipe.devices, int) and recipe.devices > 1:
        launch(_stop_and_resume, recipe.devices, step, recipe, folder)
    else:
        _stop_and_resume(step, recipe, folder)


def _stop_and_resume(step: int, recipe: Recipe, folder: Path) -> None:
    stop_after(step, recipe, folder / "run")
    if os.environ.get("RANK", "0") == "0":
        shutil.copy(folder / "run" / "checkpoints" / "last.ckpt", folder / "stopped.ckpt")
        assert load_checkpoint(folder / "stopped.ckpt")["step"] == step
    pretrain(recipe, folder / "run", resume=True)
    pretrain(recipe, folder / "whole")
