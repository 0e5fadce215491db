"""Settings of frozen networks that the backbone follows: a teacher, and its own starting weights as an anchor."""

from __future__ import annotations

from typing import Any, Generic

from densecl.choices import STARTING_WEIGHTS, AnchorForm, TeacherObjective
from densecl.config.setting import FRACTION_ABOVE_0, NOT_NEGATIVE, TEXT, VIEW_SIZE, Open, Range, setting, settings

_CHANNELS = Range(
    lambda channels: len(channels) > 0 and min(channels) >= 0, "takes the numbers of channels, counted from 0"
)


@settings
class TeacherSettings(Generic[Open]):
    teacher: str | None = setting(
        None,
        "Follow the cells of this frozen network: a timm model with its weights, such as"
        " vit_small_patch14_dinov2.lvd142m, a run, or a file of weights. init: the weights of --init, which see a view"
        " at twice its size.",
        free=True,  # a resumed run compares the weights themselves
    )
    teacher_backbone: str | None = setting(
        None, "The timm model that a file of weights belongs to, if the file does not say it.", free=True
    )
    teacher_weight: float = setting(
        1.0,
        "Weight of the teacher's loss; the self-supervised one has the rest. 1: distillation alone.",
        FRACTION_ABOVE_0,
    )
    teacher_objective: TeacherObjective = setting(
        "cosine",
        "How the student follows the teacher.",
        choices={
            "cosine": "each cell, through a linear head that is thrown away, points where the teacher's points",
            "relational": "the cells of an image are as similar to each other as the teacher's are",
            "both": "the sum of the two",
        },
    )
    teacher_standardize: bool = setting(
        True,
        "Bring each feature of the teacher to mean 0 and deviation 1 over the cells of a batch. So all count alike.",
        before=False,
    )
    teacher_size: int | Open | None = setting(
        "auto",
        "Side in pixels at which the teacher sees a view. auto: --image-size, or more where its map would have fewer"
        " cells than the student's; with --teacher init twice --image-size. none: --image-size.",
        VIEW_SIZE,
    )
    teacher_channels: tuple[int, ...] | None = setting(
        None,
        "Channels of the images that the teacher sees, counted from 0, such as 2 1 0. Not given: all of them.",
        _CHANNELS,
    )
    teacher_cache: str | None = setting(
        None,
        "Folder that keeps the teacher's maps of whole images; views are cut out of them. Pays for a large teacher and"
        " many epochs.",
    )
    teacher_license: str | Open | None = setting(
        "auto",
        "License of the teacher's weights, which is recorded with the result. auto: what the weights say of it.",
        TEXT,
        free=True,
    )
    anchor: float = setting(
        0.0, "Weight of a loss that keeps the features near those of the starting weights. Needs --init.", NOT_NEGATIVE
    )
    anchor_form: AnchorForm = setting(
        "gram",
        "What the anchor keeps.",
        choices={
            "gram": "how similar the cells of an image are to each other [DINOv3]",
            "cells": "where each cell points",
        },
    )


def distills_alone(settings: Any) -> bool:
    """Whether a run has no self-supervised loss: the teacher's is all."""
    return settings.teacher is not None and settings.teacher_weight == 1


def teaches_itself(settings: Any) -> bool:
    """Whether the teacher is a frozen copy of the starting weights, which sees a view at twice its size."""
    return settings.teacher == STARTING_WEIGHTS
