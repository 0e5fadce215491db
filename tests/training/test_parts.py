from __future__ import annotations

import pytest
import torch
from PIL import Image
from torch.utils.data import Subset

from densecl.errors import UserError
from densecl.training import parts


@pytest.mark.parametrize(
    ("capabilities", "bf16"),
    [
        ({"amx_bf16": True, "avx512_bf16": True}, (True, False)),
        ({"amx_bf16": False, "avx512_bf16": True}, (False, True)),  # bf16 is tried, but has to be clearly faster
        ({"avx2": True}, (False,)),
        ({}, (False,)),
    ],
)
def test_what_a_cpu_is_expected_to_be_fast_at(monkeypatch, capabilities, bf16):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities, raising=False)
    precisions, reason = parts._precisions()
    assert precisions == bf16
    assert reason.startswith("the CPU has")


def test_images_are_read_at_the_same_scale_when_the_size_of_small_views_is_read_back(tiny, monkeypatch):
    asked = []
    open_source = parts.open_source

    def note(*arguments, least_side, **others):
        asked.append(least_side)
        return open_source(*arguments, least_side=least_side, **others)

    monkeypatch.setattr(parts, "open_source", note)
    recipe = tiny(image_size=48, output_stride=16, local_crops=1)
    made, _ = parts.build(recipe, None, None, None)
    assert made.recipe.local_crop_size == 64  # not the 21 pixels of three sevenths
    parts.build(made.recipe, None, None, None)
    assert asked[0] == asked[1]


def test_what_is_left_out_of_the_data_is_among_what_is_told(tiny, photos):
    (photos / "IMG_0001.HEIC").touch()
    for number in range(24):
        Image.new("L", (72, 64), number % 2).save(photos / f"{number:02}_mask.png")
    made, reasons = parts.build(tiny(), None, None, None)
    assert len(made.source) == 24
    assert any("left out: 1 .heic" in reason for reason in reasons)
    assert any("left out: 24 label maps (*_mask)" in reason for reason in reasons)


def test_items_that_are_no_images_are_refused_before_the_run(tiny):
    with pytest.raises(UserError, match=r"item 0 of the data set \(Subset\) is of type str, 'a.jpg'"):
        parts.build(tiny(data="dataset:Subset"), None, Subset(["a.jpg"] * 24, range(24)), None)
