"""Settings of the optimization: batch, optimizer, learning rate, and the length of the run."""

from __future__ import annotations

from typing import Generic, Literal

from densecl.config.setting import (
    COUNT,
    FRACTION_ABOVE_0,
    NOT_NEGATIVE,
    POSITIVE,
    TIME,
    Open,
    Range,
    setting,
    settings,
)

#: At most one of these says how long a run is.
LENGTHS = ("epochs", "steps", "time_limit")

_MOMENTUM = Range(lambda momentum: 0 <= momentum < 1, "must lie in 0..1, below 1")


@settings
class OptimizationSettings(Generic[Open]):
    batch_size: int | Open = setting(
        "auto",
        "Images per step, over all devices together [paper: 256]. auto: 256, on a CPU 64; fewer for few epochs.",
        COUNT,
    )
    optimizer: Literal["sgd", "lars", "adamw"] = setting(
        "adamw",
        "The optimizer.",
        choices={
            "adamw": "learns within the first hundred steps",
            "sgd": "with momentum [paper]",
            "lars": "for batches of thousands [SimCLR, BYOL, Barlow Twins]",
        },
    )
    base_learning_rate: float | Open = setting(
        "auto",
        "Learning rate at batch size 256. auto: adamw 0.003 (0.0005 without batch norm), sgd 0.03, lars 0.3, or as the"
        " method's paper has it.",
        POSITIVE,
    )
    learning_rate: float | Open = setting(
        "auto",
        "The peak of the learning rate. auto: --base-learning-rate x batch size / 256; for adamw x the square root of"
        " that.",
        POSITIVE,
    )
    momentum: float = setting(0.9, "Momentum of SGD and LARS [paper].", _MOMENTUM)
    weight_decay: float | Open = setting(
        "auto",
        "Weight decay. auto: 0.0001 for sgd [paper], 1.5e-6 for lars, 0.02 for adamw. With lars and adamw not on"
        " biases, norms, position embeddings and tokens.",
        NOT_NEGATIVE,
    )
    warmup_epochs: float | Open = setting(
        "auto",
        "Epochs in which the learning rate rises to its peak. auto: a tenth of the run, at most 10 [paper: 0].",
        NOT_NEGATIVE,
    )
    freeze_backbone_steps: int | Open = setting(
        "auto",
        "Steps at the start in which only the heads learn, so that random heads do not disturb trained weights. Over as"
        " many steps again the backbone's learning rate rises to theirs. auto: 0.",
        NOT_NEGATIVE,
        before=0,
    )
    layer_decay: float = setting(
        1.0,
        "Layer-wise decay of the learning rate: each layer of the backbone learns at this fraction of the rate of the"
        " next one [BEiT: 0.65 to 0.95]. 1: all at the same rate.",
        FRACTION_ABOVE_0,
    )
    schedule_per: Literal["step", "epoch"] = setting(
        "step",
        "How often the cosine schedule of the learning rate moves.",
        choices={"step": "at every step", "epoch": "at every epoch [paper]"},
    )
    clip_gradient: float | None = setting(None, "Largest norm of the gradient. Not given: no clipping.", POSITIVE)
    epochs: int | None = setting(
        None, "Length of the run in passes over the data (200 if no length is given).", COUNT, free=True
    )
    steps: int | None = setting(None, "Length of the run in steps, instead of epochs.", COUNT, free=True)
    time_limit: str | None = setting(
        None,
        "Length of the run in time, such as 90s, 8m or 12h, instead of epochs. The schedules follow the clock.",
        TIME,
        free=True,
    )
