from __future__ import annotations

import dataclasses

import pytest

from densecl.config.compose import make_recipe
from densecl.config.recipe import Recipe
from densecl.errors import UserError


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"dense_weight": 1.5}, "dense_weight must lie in 0..1, not 1.5."),
        ({"dense_weight": "nan"}, "dense_weight must lie in 0..1, not nan."),
        (
            {"method": "mocco"},
            "method takes auto, moco, densecl, simclr, byol, simsiam, barlow, vicreg or dino, not 'mocco'. Did you",
        ),
        (
            {"queue_length": "autoo"},
            "queue_length takes a whole number or auto or none, not 'autoo'. Did you mean 'auto'?",
        ),
        ({"queue_length": 0}, "queue_length must be at least 1, not 0."),
        ({"queue_length": 2.5}, "queue_length takes a whole number or auto or none, not '2.5'."),
        ({"image_size": True}, "image_size takes a whole number, not 'True'."),
        ({"symmetric": "yes"}, "symmetric takes true or false or auto, not 'yes'."),
        ({"jitter": (0.4, 0.4)}, "jitter takes 4 numbers or auto, not '0.4 0.4'."),
        ({"jitter": (0.4, 0.4, 0.4, 0.6)}, "jitter takes brightness, contrast and saturation"),
        ({"crop_scale": (0.5, 0.2)}, "crop_scale takes a smallest and a largest fraction"),
        ({"mean": (0.5, 0.5, 0.5)}, "Give mean and std together"),
        ({"mean": (0.5,), "std": (0.5,)}, "mean takes one number a channel: 3, not 1."),
        ({"mean": (0, 0, 0), "std": (1, 0, 1)}, "std must be greater than 0 in every channel, not 1.0 0.0 1.0."),
        ({"image_size": 96, "use_size": 64}, "use_size=64: a view of image_size=96 shows more than a whole image"),
        ({"dense_stage": (0,)}, "dense_stage counts from 1, or from -1 for the last, not 0."),
        ({"grid": 1}, "grid must be at least 2"),
        ({"output_stride": 4}, "output_stride must be 8, 16 or 32, not 4."),
        (
            {"temperature": 0.2, "temperature_max": 0.1},
            "temperature_max must be at least temperature=0.2, not 0.1.",
        ),
        ({"local_crop_size": 96}, "local_crop_size=96 does nothing without local_crops."),
        (
            {"local_crop_size": "none", "local_crops": 2},
            "local_crop_size=None: local_crops need a size",
        ),
        ({"epochs": 3, "steps": 4}, "Give only one of epochs and steps"),
        ({"time_limit": "8"}, "time_limit takes a number and a unit"),
        ({"time_limit": "0m"}, "time_limit must be longer than nothing"),
        ({"batch_size": 5, "devices": 2}, "batch_size=5 cannot be shared evenly by 2 devices."),
        ({"seed": -1}, "seed must lie in"),
        ({"loggers": ("wandb", "wandb")}, "loggers names a logger twice"),
        ({"data": ""}, "data is missing"),
        ({"imagesize": 3}, "unknown setting 'imagesize'. Did you mean 'image_size'?"),
    ],
)
def test_wrong_settings_are_one_clear_line(settings: dict, complaint: str) -> None:
    with pytest.raises(UserError) as caught:
        make_recipe(**{"data": "images", **settings})
    assert str(caught.value).startswith(complaint)
    assert "\n" not in str(caught.value)


def test_a_recipe_made_directly_is_checked_too() -> None:
    with pytest.raises(UserError, match="batch_size must be at least 1"):
        Recipe(data="images", batch_size=0)
    with pytest.raises(UserError, match="temperature must be greater"):
        dataclasses.replace(Recipe(data="images"), temperature=0.0)
