"""What cannot be asked of `DenseCL`: unknown choices, and settings that method, backbone and batch do not go with."""

from __future__ import annotations

from typing import get_args

from densecl.choices import DenseNegatives, DenseSoftening, DenseStatistics, KeyNorm, Matching
from densecl.errors import UserError
from densecl.model.backbone import Backbone
from densecl.model.distributed import world_size
from densecl.model.methods import Method


def check_choices(
    *,
    key_norm: KeyNorm | None,
    matching: Matching,
    dense_negatives: DenseNegatives | None,
    dense_softening: DenseSoftening,
    dense_statistics: DenseStatistics | None,
) -> None:
    """Raises UserError for a word that is not among the choices of its setting."""
    for name, value, kind in (
        ("key_norm", key_norm, KeyNorm),
        ("matching", matching, Matching),
        ("dense_negatives", dense_negatives, DenseNegatives),
        ("dense_softening", dense_softening, DenseSoftening),
        ("dense_statistics", dense_statistics, DenseStatistics),
    ):
        if value is not None and value not in get_args(kind):
            raise UserError(f"{name} is one of {', '.join(get_args(kind))}, not '{value}'.")


def check_key_norm(key_norm: KeyNorm | None, method: Method, backbone: Backbone) -> None:
    """Raises UserError if `key_norm` is given, but there is no momentum encoder with batch norm."""
    if key_norm is None:
        return
    if not backbone.uses_batch_statistics:
        lacks = "has no batch norm. Leave it out."
        if backbone.norm_statistics_frozen:
            lacks = "has its statistics frozen. Leave it out, or take --no-freeze-norm-statistics."
        raise UserError(f"--key-norm {key_norm}: {backbone.name} {lacks}")
    if method.keys != "momentum-encoder":
        raise UserError(f"--key-norm {key_norm}: {method.name} has no key encoder. Leave it out.")


def check_negatives(dense_negatives: DenseNegatives | None, method: Method) -> None:
    """Raises UserError for negatives that the method does not know, if it has any."""
    if dense_negatives is not None and dense_negatives not in (method.dense_negatives or (dense_negatives,)):
        known = " or ".join(method.dense_negatives)
        raise UserError(f"--dense-negatives {dense_negatives}: {method.name} has {known}.")


def check_softening(softening: DenseSoftening, method: Method, dense_negatives: DenseNegatives | None) -> None:
    """Raises UserError for a softer dense loss that the method or its negatives cannot have."""
    if softening == "propagation" and not method.compares_directions:
        raise UserError(
            f"--dense-softening propagation: {method.name} does not compare cells by direction. Leave it out."
        )
    if softening == "weighted-negatives" and not method.dense_negatives:
        raise UserError(f"--dense-softening weighted-negatives: {method.name} has no negatives. Leave it out.")
    if softening == "weighted-negatives" and dense_negatives not in ("batch", "others"):
        raise UserError(
            "--dense-softening weighted-negatives goes by the negatives' features, which a queue or pooled vectors do"
            " not have. Give --dense-negatives batch or others."
        )


def check_batch(images: int, method: Method, dense_negatives: DenseNegatives | None, *, training: bool) -> None:
    """Raises UserError for a batch that is too small to learn from.

    Args:
        images: in the batch of this process.
        method: that learns.
        dense_negatives: where it takes them from.
        training: in evaluation mode, heads have their batch-norm statistics and take one image, too.
    """
    if (training or method.statistics) and images < method.least_batch:
        raise UserError(
            f"--method {method.name} takes statistics over the batch {method.needs_batch_in}:"
            f" it needs at least {method.least_batch} images per device, not {images}."
        )
    if dense_negatives == "others" and images * world_size() == 1:
        raise UserError("--dense-negatives others: a batch of one image has no others. Raise --batch-size.")
