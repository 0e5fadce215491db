from __future__ import annotations

import pytest
import torch

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
