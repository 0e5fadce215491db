"""What the user is told of what the network will see."""

from __future__ import annotations

import pytest

from densecl.config.facts import Scale, Stage
from densecl.config.outlook import outlook
from tests.config.test_resolve import facts, resolved


def lines(known, **asked) -> list[str]:
    return list(outlook(resolved(known, **asked).resolved, known))


def test_the_map_and_what_a_cell_sees() -> None:
    known = facts(network={"grid": (4, 5), "receptive_field": 435.0})
    assert lines(known, image_size=128) == [
        "simclr, resnet18 at 128 px: a feature map of 4x5 cells",
        "receptive field of a cell: 435 px, 3.4 times the view",
    ]
    assert lines(facts())[1] == "receptive field of a cell: the whole image"
    assert not resolved(known, image_size=128).warnings


def test_each_stage_has_its_line() -> None:
    stages = (
        Stage(number=3, grid=(4, 4), receptive_field=211.0),
        Stage(number=4, grid=(2, 2), receptive_field=435.0),
    )
    known = facts(network={"grid": (2, 2), "receptive_field": 435.0, "stages": stages})
    assert lines(known, image_size=64, dense_stage=(3, 4)) == [
        "simclr, resnet18 at 64 px",
        "dense loss on stage 3: 4x4 cells, receptive field 211 px, 3.3 times the view",
        "dense loss on stage 4: 2x2 cells, receptive field 435 px, 6.8 times the view",
    ]
    told = resolved(known, image_size=64, dense_stage=(3, 4)).warnings
    assert not any("receptive field" in line for line in told)
    (idle,) = resolved(facts(), image_size=128, dense_stage=(3,), dense_weight=0.0).warnings
    assert idle == "--dense-stage does nothing without --dense-weight"


def test_a_receptive_field_of_several_views() -> None:
    known = facts(network={"receptive_field": 435.0})
    (warning,) = resolved(known, image_size=64).warnings
    assert warning.startswith("the receptive field of resnet18 is 6.8 times the view (in the paper 1.9 times)")
    assert not resolved(known, image_size=64, dense_weight=0.0).warnings
    assert not resolved(known, image_size=64, init="imagenet").warnings


@pytest.mark.parametrize(
    ("mean", "told"),
    [
        (0.4, "2.5 times smaller than they are in the images"),
        (1.0, "as large as they are in the images"),
        (2.0, "2 times larger than they are in the images"),
    ],
)
def test_how_large_things_are_seen(mean: float, told: str) -> None:
    known = facts(pixels={"scale": Scale(smallest=0.1, mean=mean, largest=3.0)})
    assert lines(known)[2] == f"views show things {told} (--use-size draws crops for the size of later use)"


def test_how_large_things_are_seen_with_a_size_of_use() -> None:
    known = facts(pixels={"scale": Scale(smallest=0.421, mean=0.64, largest=0.9431, use=0.64)})
    told = "views show things at 0.42 to 0.94 of their size in the images (--use-size 640: 0.64)"
    assert lines(known, use_size=640)[2] == told
    assert not resolved(known, use_size=640).warnings


def test_images_that_are_too_narrow_for_the_scale_of_use() -> None:
    known = facts(pixels={"scale": Scale(smallest=0.9, mean=1.0, largest=1.1, use=0.5)})
    (warning,) = resolved(known, use_size=300).warnings
    assert "too narrow for crops at the scale of --use-size 300" in warning and "2 times larger than in use" in warning
