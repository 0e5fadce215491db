"""A teacher and an anchor: what goes together, and what is recorded."""

from __future__ import annotations

import math
from typing import Any

import pytest

from densecl.config import automatic
from densecl.config.compose import make_recipe
from densecl.config.facts import Facts, Machine, Network, Pixels, Teacher
from densecl.config.resolve import Resolution, resolve
from densecl.errors import UserError
from densecl.model import METHODS


def resolved(
    *,
    teacher_channels_taken: int = 3,
    teacher_grid: tuple[int, int] = (7, 7),
    teacher_grids: dict[int, tuple[int, int]] | None = None,
    grid: tuple[int, int] = (7, 7),
    license: str | None = "apache-2.0",
    receptive_field: float = math.inf,
    **asked: Any,
) -> Resolution:
    """The resolved settings of a run with a teacher, if `asked` names one."""
    teacher = Teacher(
        name="lite",
        channels=teacher_channels_taken,
        grids=teacher_grids or {(asked.get("teacher_size") or 224): teacher_grid},
        license=license,
        whose_license="its file says so" if license else "",
    )
    facts = Facts(
        images=1000,
        pixels=Pixels(),
        network=Network(
            name="resnet18",
            stride=32,
            grid=grid,
            receptive_field=receptive_field,
            batch_norm=True,
            batch_statistics=True,
        ),
        machine=Machine(gpus=0, cores=8, fast_in_bf16=False, why_bf16="so it is"),
        methods=METHODS,
        teacher=teacher if asked.get("teacher") else None,
    )
    return resolve(make_recipe(**{"data": "images", "devices": 1, "nodes": 1, "steps": 100, **asked}), facts)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"teacher_weight": 0.0}, "teacher_weight must lie above 0 and up to 1, not 0.0"),
        ({"teacher_weight": 1.5}, "teacher_weight must lie above 0"),
        ({"teacher_objective": "cosin"}, "teacher_objective takes cosine, relational or both.*Did you mean 'cosine'"),
        ({"teacher_size": 8}, "teacher_size must be at least 16 pixels"),
        ({"teacher_channels": (-1, 0, 1)}, "teacher_channels takes the numbers of channels, counted from 0"),
        ({"teacher_channels": (0, 1, 3)}, r"the images have 3 channels, counted from 0, so there is no 3"),
        ({"teacher_license": " "}, "teacher_license must not be empty"),
        ({"anchor": -1.0}, "anchor must be at least 0"),
        ({"anchor": 0.5}, "anchor=0.5 keeps the features near those of init. Give that, too"),
        ({"teacher": "x", "local_crops": 2}, "local_crops belong to the self-supervised loss.*teacher_weight=0.5"),
    ],
)
def test_wrong_settings(settings: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        resolved(**settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"teacher_channels": (0, 1)}, r"names 2 channels, but the teacher lite takes 3"),
        ({"channels": 1, "mean": 0.5, "std": 0.5}, "Say with teacher_channels which ones it shall see, such as 0 0 0"),
        (
            {"channels": 2, "mean": (0.5, 0.5), "std": (1, 1)},
            r"takes images of 3 channels, and these have 2.*0 1 0",
        ),
        (
            {"teacher_grid": (1, 1), "batch_size": 2, "accumulate": 2},
            "teacher_standardize=True: the teacher makes one cell of a batch.*or teacher_standardize=False",
        ),
        (
            {"teacher_grid": (1, 1), "teacher_objective": "both"},
            "teacher_objective both compares the cells of an image, but the teacher's feature",
        ),
        (
            {"grid": (1, 1), "teacher_objective": "relational"},
            "the student's feature map has one alone. Use image_size=128 or output_stride",
        ),
        (
            {"grid": (1, 1), "init": "x", "anchor": 1.0},
            "anchor_form gram compares the cells of an image",
        ),
    ],
)
def test_what_does_not_go_with_the_teacher(settings: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        resolved(teacher="lite", **settings)


def test_one_cell_will_do_for_the_cosine_alone() -> None:
    made = resolved(teacher="lite", grid=(1, 1), batch_size=1)
    assert made.resolved.batch_size == 1  # no method takes statistics over it
    made = resolved(teacher="lite", teacher_grid=(1, 1), batch_size=1, teacher_standardize=False)
    assert made.resolved.batch_size == 1
    with pytest.raises(UserError, match="dense learning would mean nothing"):
        resolved(teacher="lite", teacher_weight=0.5, grid=(1, 1))


def test_the_license_is_recorded_and_said() -> None:
    made = resolved(teacher="lite")
    assert made.resolved.teacher_license == "apache-2.0" and "teacher_license" in made.resolved.settled
    assert "--teacher-license apache-2.0 (its file says so)" in made.reasons
    assert resolved(teacher="lite", teacher_license="mine").resolved.teacher_license == "mine"
    assert resolved().resolved.teacher_license is None


@pytest.mark.parametrize(
    ("grids", "student", "size"),
    [
        ({96: (6, 6)}, (6, 6), 96),
        ({96: (3, 3), 192: (6, 6)}, (6, 6), 192),
        ({98: (7, 7)}, (6, 6), 98),  # a ViT of 14 pixels a cell, which takes no 96
        ({224: (3, 3)}, (6, 6), 224),  # it takes this size alone
    ],
)
def test_the_teacher_gets_as_many_cells_as_the_student(grids, student, size) -> None:
    made = resolved(teacher="lite", image_size=96, teacher_grids=grids, grid=student)
    assert made.resolved.teacher_size == size and "teacher_size" in made.resolved.settled
    assert any(reason.startswith(f"--teacher-size {size} (") for reason in made.reasons)
    few = any("it takes no size with more" in warning for warning in made.warnings)
    assert few == (grids[size] < student)


def test_the_starting_weights_as_a_teacher_see_views_at_twice_their_size() -> None:
    made = resolved(teacher="init", init="x", image_size=96, teacher_grids={192: (6, 6)}, grid=(3, 3))
    assert made.resolved.teacher_size == 192
    (reason,) = (reason for reason in made.reasons if reason.startswith("--teacher-size 192 (twice a view"))
    assert reason.endswith("larger image: 6x6 cells; the student has 3x3)") and made.warnings == ()
    finer = resolved(teacher="init", init="x", image_size=96, teacher_grids={192: (6, 6), 384: (12, 12)}, grid=(12, 12))
    assert finer.resolved.teacher_size == 384
    for grids, given in (({96: (3, 3)}, {}), ({64: (3, 3)}, {"teacher_size": 64})):
        small = resolved(teacher="init", init="x", image_size=96, teacher_grids=grids, grid=(3, 3), **given)
        assert any("the copy sees no more of a view than the student" in warning for warning in small.warnings)
    with pytest.raises(UserError, match="teacher_cache keeps maps of whole images, and teacher init is to see"):
        resolved(teacher="init", init="x", teacher_cache="maps")
    with pytest.raises(UserError, match="teacher init follows the weights of init. Give that, too"):
        resolved(teacher="init")
    with pytest.raises(UserError, match="teacher_backbone: teacher init is of the network that is trained"):
        resolved(teacher="init", init="x", teacher_backbone="resnet18")


@pytest.mark.parametrize(
    ("view", "stride", "grid", "size"),
    [
        (96, 32, (6, 6), 192),
        (96, 14, (6, 6), 98),
        (224, 32, (7, 7), 224),
        (100, 32, (2, 2), 128),
        (64, 16, (4, 8), 128),
    ],
)
def test_sizes_for_enough_cells_are_whole_cells_and_no_smaller_than_a_view(view, stride, grid, size) -> None:
    assert automatic.teacher_size(view, stride, grid) == size


def test_with_an_earlier_stage_the_teacher_follows_the_last_map_all_the_same() -> None:
    known = Network(name="x", stride=16, grid=(12, 12), last_grid=(6, 6), batch_norm=True, batch_statistics=True)
    assert known.followed_grid == (6, 6)


def test_an_unknown_license_is_said_plainly() -> None:
    made = resolved(teacher="lite", license=None)
    assert made.resolved.teacher_license == "unknown"
    assert any("teacher-license unknown (nothing says it; look it up" in reason for reason in made.reasons)


def test_weights_that_teach_themselves_have_one_license() -> None:
    made = resolved(teacher="init", init="x", init_license="mine")
    assert made.resolved.teacher_license == "mine"
    assert "--teacher-license mine (that of the starting weights)" in made.reasons
    assert resolved(teacher="init", init="x").resolved.teacher_license == "unknown"


def test_distillation_alone_speaks_of_no_method() -> None:
    assert any(reason.startswith("--method") for reason in resolved(teacher="lite", teacher_weight=0.5).reasons)
    made = resolved(teacher="lite", receptive_field=435.0, image_size=96)
    assert not any(reason.startswith("--method") for reason in made.reasons)
    assert made.warnings == ()
    alone = resolved(teacher="lite", batch_size=1)
    assert alone.resolved.method == "moco" and not any("momentum" in reason for reason in alone.reasons)


@pytest.mark.parametrize(
    ("settings", "warning"),
    [
        ({"teacher_standardize": False}, "--teacher-standardize does nothing without --teacher"),
        ({"teacher_objective": "both"}, "--teacher-objective does nothing without --teacher"),
        ({"teacher_backbone": "resnet18"}, "--teacher-backbone does nothing without --teacher"),
        ({"anchor_form": "cells"}, "--anchor-form does nothing without --anchor"),
        ({"teacher": "x", "method": "byol"}, "--method does nothing with --teacher-weight 1, distillation alone"),
        ({"teacher": "x", "teacher_grid": (2, 2)}, "the teacher's feature map has 2x2 cells, fewer than the student's"),
    ],
)
def test_what_is_likely_not_meant(settings: dict, warning: str) -> None:
    assert any(one.startswith(warning) for one in resolved(**settings).warnings)


def test_a_teacher_and_an_anchor_without_warnings() -> None:
    settings = {
        "teacher_objective": "both",
        "teacher_size": 96,
        "teacher_channels": (2, 1, 0),
        "anchor_form": "cells",
    }
    assert resolved(teacher="lite", init="x", anchor=1.0, **settings).warnings == ()
