"""Settings of what a run keeps: how often it writes numbers and checkpoints, and to which loggers."""

from __future__ import annotations

from typing import Generic, Literal

from densecl.config.setting import COUNT, POSITIVE, Open, Range, setting, settings

_EACH_ONCE = Range(lambda loggers: len(set(loggers)) == len(loggers), "names a logger twice")


@settings
class RecordSettings(Generic[Open]):
    log_every: int = setting(10, "Steps between rows of metrics.csv.", COUNT, free=True)
    checkpoint_every: int = setting(1000, "Steps between checkpoints.", COUNT, free=True)
    checkpoint_minutes: float = setting(
        10.0, "Minutes between checkpoints, whichever comes first.", POSITIVE, free=True
    )
    loggers: tuple[Literal["tensorboard", "wandb", "mlflow"], ...] = setting(
        ("tensorboard",), "Loggers beside metrics.csv; 'none' for none.", _EACH_ONCE, free=True
    )


@settings
class PresetSettings(Generic[Open]):
    recipe: Literal["auto", "paper"] = setting(
        "auto",
        "The named set of defaults.",
        choices={
            "auto": "chosen by the data and the machine, for runs of minutes to days",
            "paper": "the authors' values for COCO. They had 8 devices of 32 images each. On one device the keys' batch"
            " norm still sees 32 images at a time, but the queries' sees the whole batch",
        },
    )
    settled: tuple[str, ...] = setting(
        (),
        "Written by the run: the settings that it chose itself. It chooses anew where what they rest on is given.",
        free=True,
    )
