"""Settings of what a run watches and keeps: labeled images, numbers, checkpoints, loggers."""

from __future__ import annotations

from typing import Generic, Literal

from densecl.config.setting import COUNT, POSITIVE, Open, Range, setting, settings

_EACH_ONCE = Range(lambda loggers: len(set(loggers)) == len(loggers), "names a logger twice")


#: A run measures ten times beside the first.
_TIMES = Range(lambda count: 1 <= count <= 9, "must lie in 1..9: a run measures about ten times")
_CLASSES = Range(lambda count: 2 <= count <= 255, "must lie in 2..255")


@settings
class RecordSettings(Generic[Open]):
    probe: str | None = setting(
        None,
        "Folder of labeled images, as for evaluate --task retrieval. About ten times a run, retrieval on at most 20 of"
        " val (else of test), by the labels of 20 of train, says how good the frozen backbone is. Nothing is learned"
        " from them.",
        free=True,
    )
    probe_ignore: tuple[int, ...] | None = setting(
        None,
        "Labels there that do not count; 255 never does.",
        Range(lambda labels: labels and all(0 <= label <= 255 for label in labels), "takes labels from 0 to 255"),
        free=True,
    )
    probe_classes: int | None = setting(None, "Labels there are 0 to N-1. none: as many as occur.", _CLASSES, free=True)
    keep_best: bool = setting(
        False,
        "Keep the best weights as RUN/best.safetensors, beside the last: by the probe, without one by match accuracy,"
        " which is a rough guide.",
        free=True,
    )
    stop_early: int | None = setting(
        None,
        "End the run after so many measurements in a row, of about ten in all, without a new best by the same number;"
        " 3 is careful. The learning rate has then not come down as planned, so a shorter run often ends better.",
        _TIMES,
        free=True,
    )
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
