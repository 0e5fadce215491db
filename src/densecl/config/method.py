"""Settings of the method: the objective, how cells are matched, and what keys and negatives are."""

from __future__ import annotations

import math
from typing import Generic

from densecl.choices import DenseNegatives, DenseSoftening, DenseStatistics, KeyNorm, Matching, MethodName
from densecl.config.setting import (
    COUNT,
    FRACTION,
    FRACTION_ABOVE_0,
    NOT_NEGATIVE,
    POSITIVE,
    Open,
    Range,
    setting,
    settings,
)

_GRID = Range(lambda grid: grid >= 2, "must be at least 2: with one cell, dense learning means nothing")
_STAGES = Range(lambda stages: len(stages) > 0 and 0 not in stages, "counts from 1, or from -1 for the last")
_ENDS = Range(
    lambda ends: all(0 < value < math.inf for value in ends),
    "takes one at the start and one after the warm-up, both above 0",
)
_SPLIT = Range(lambda images: images >= 2, "must be at least 2: one image has no batch statistics")


@settings
class MethodSettings(Generic[Open]):
    method: MethodName | Open = setting(
        "auto",
        "The self-supervised objective. It is used twice: on image vectors and on cells.",
        choices={
            "auto": "simclr; but moco where a batch is too small to find negatives in, or where a setting of moco's"
            " keys is given",
            "moco": "contrast with a queue of keys from a momentum encoder [paper]",
            "densecl": "moco at --dense-weight 0.5",
            "simclr": "contrast within the batch",
            "byol": "predict the momentum encoder's view; no negatives",
            "simsiam": "predict the other view with stop-gradient; no negatives",
            "barlow": "Barlow Twins: decorrelate the dimensions of the embedding",
            "vicreg": "keep each dimension's variance, remove covariances",
            "dino": "match the momentum teacher's distribution over prototypes",
        },
    )
    dense_weight: float = setting(
        0.5, "Weight of the dense loss, 0 to 1. 0 is the plain global method [paper: 0.5].", FRACTION
    )
    dense_warmup_steps: int = setting(
        0, "Steps at dense weight 0 before the dense loss joins [authors: 10000 helps at full scale].", NOT_NEGATIVE
    )
    dense_stage: tuple[int, ...] | None = setting(
        None,
        "Stages of the backbone on which the dense loss acts; each has its own head. They count from 1; -1 is the last."
        " Not given: the last [paper].",
        _STAGES,
    )
    dim: int | Open | None = setting(
        "auto",
        "Length of an embedding; for dino the number of prototypes. auto: the method's, 128 for moco [paper].",
        COUNT,
    )
    hidden_dim: int | None = setting(
        None,
        "Width of the hidden layers of the projection heads. Not given: the method's; for moco the backbone's own width"
        " [paper].",
        COUNT,
    )
    grid: int | None = setting(
        None, "Pool the feature map to this many cells a side before matching and before the dense head.", _GRID
    )
    temperature: float | Open | None = setting(
        "auto", "Temperature of the softmax over similarities. auto: the method's, 0.2 for moco [paper].", POSITIVE
    )
    temperature_max: float | None = setting(
        None,
        "Let the temperature swing between --temperature and this, as a cosine [Kukleva et al. 2023].",
        POSITIVE,
    )
    temperature_period: float = setting(1.0, "Length of one swing, as a fraction of the run.", FRACTION_ABOVE_0)
    teacher_temperature: tuple[float, float] | Open | None = setting(
        "auto", "dino: temperature of the teacher at the start and after its warm-up. auto: 0.04 0.07 [DINO].", _ENDS
    )
    teacher_warmup: float = setting(
        0.1, "dino: length of that warm-up, as a fraction of the run [DINO: 30 of 300 epochs].", FRACTION
    )
    queue_length: int | Open | None = setting(
        "auto",
        "moco: number of keys kept as negatives [paper: 65536]. auto: by the number of images and the key momentum."
        " Longer queues fail.",
        COUNT,
    )
    key_momentum: float | Open | None = setting(
        "auto",
        "Fraction of its old weights that the momentum encoder keeps in a step [paper: 0.999]. auto: by the length of"
        " the run.",
        FRACTION,
    )
    key_momentum_end: float | Open | None = setting(
        "auto",
        "Value that --key-momentum reaches at the end, on a cosine. auto: the method's, 1 for byol and dino.",
        FRACTION,
    )
    key_norm: KeyNorm | Open | None = setting(
        "auto",
        "How batch norm in the momentum encoder is kept from giving the answer away.",
        choices={
            "shuffle": "shuffle the images across devices",
            "split": "statistics over random sub-batches of --key-split images",
            "ema": "use a moving average of the query encoder's statistics",
            "auto": "shuffle; with --recipe paper on one device split",
        },
    )
    key_split: int = setting(32, "Images per sub-batch with --key-norm split [paper: 32 per device].", _SPLIT)
    matching: Matching = setting(
        "geometry",
        "How a query cell finds its positive in the other view.",
        choices={
            "geometry": "the cell that shows the same place, as the crops are known",
            "features": "the cell with the most similar backbone feature [paper]",
            "mutual": "as features, but only if the two cells choose each other",
            "both": "half the loss by features, half by geometry",
        },
    )
    match_radius: float = setting(
        0.7,
        "With geometry: how far apart two matched cells may lie, in diagonals of the larger cell [PixPro].",
        POSITIVE,
    )
    match_top_k: float = setting(
        1.0, "Fraction of an image's cells to keep: those with the best matches [VICRegL: 0.4].", FRACTION_ABOVE_0
    )
    dense_negatives: DenseNegatives | Open | None = setting(
        "auto",
        "moco, simclr: what a cell is told apart from.",
        choices={
            "batch": "all cells of the batch, but those that show the same place (auto)",
            "others": "all cells of the batch's other images",
            "pooled": "pooled dense vectors of other images; for moco a queue of them [paper]",
            "cells": "moco: a queue of single cells",
        },
    )
    dense_softening: DenseSoftening = setting(
        "none",
        "A softer dense loss, which does not tell apart what looks alike.",
        choices={
            "none": "each cell by itself [paper]",
            "propagation": "moco, simclr, byol, simsiam: a query cell takes over what similar cells of its view say"
            " [PixPro]",
            "weighted-negatives": "moco, simclr: negatives whose backbone features resemble the query's count less",
        },
    )
    dense_statistics: DenseStatistics | Open | None = setting(
        "auto",
        "barlow, vicreg: over what the statistics of the dense loss are taken.",
        choices={
            "cells": "all matched cells of the batch (auto)",
            "position": "the batch, at each position of the map [VICRegL]",
        },
    )
    symmetric: bool | Open = setting(
        "auto", "Use the second view as query, too. auto: as in the method's paper; for moco no."
    )
