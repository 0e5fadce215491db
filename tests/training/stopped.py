"""A run that a signal stops after a certain step, in this process or, given to `launch`, in several."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from densecl.config.recipe import Recipe
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
