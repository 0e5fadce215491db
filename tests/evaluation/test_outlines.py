from __future__ import annotations

import functools
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from densecl.errors import UserError
from densecl.evaluation.boxed import BoxedFiles
from densecl.evaluation.boxes.annotated import Annotated, Object, complaint
from densecl.evaluation.boxes.outlines import drawn, packed, read_outline, unpacked

read = functools.partial(read_outline, fail=functools.partial(complaint, "here"))


@given(st.integers(0, 10_000), st.integers(1, 40), st.integers(1, 40))
def test_run_lengths_are_read_back(seed: int, width: int, height: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    mask = (torch.rand(height, width, generator=generator) < torch.rand((), generator=generator)).to(torch.uint8)
    text = packed(mask)
    assert torch.equal(unpacked(text), mask)
    outline = read(text, (width, height))
    assert outline is not None and torch.equal(outline.draw(width, height), mask)
    counts = torch.unique_consecutive(mask.T.flatten(), return_counts=True)[1].tolist()
    runs = [0, *counts] if mask[0, 0] else counts
    plain = read({"size": [height, width], "counts": runs}, (width, height))
    assert plain is not None and torch.equal(plain.draw(width, height), mask)


def test_outlines_at_any_size() -> None:
    expected = torch.zeros(16, 20, dtype=torch.uint8)
    expected[2:10, 4:12] = 1
    square = [4, 2, 12, 2, 12, 10, 4, 10]
    outlines = [
        read([square], (20, 16)),
        read([[side / (20, 16)[axis % 2] for axis, side in enumerate(square)]], (20, 16), relative=True),
        read(packed(expected), (20, 16)),
    ]
    for outline in outlines:
        assert outline is not None
        assert torch.equal(outline.draw(20, 16), expected)
        assert torch.equal(outline.draw(40, 32), expected.repeat_interleave(2, 0).repeat_interleave(2, 1))
        assert torch.equal(outline.draw(10, 8), expected[::2, ::2])
    two = read([square, [16, 2, 20, 2, 20, 6, 16, 6]], (20, 16))  # an object in two parts
    assert two is not None and two.draw(20, 16).sum() == 64 + 16
    far = read([[-1e30, 0, 1e30, 0, 1e30, 1e30, -1e30, 1e30]], (20, 16))  # and takes no gigabytes
    assert far is not None and far.draw(20, 16).sum() == 20 * 16
    assert read(None, (20, 16)) is None and read([], (20, 16)) is None
    assert drawn([], 20, 16).shape == (0, 16, 20)


@pytest.mark.parametrize(
    ("given", "complaint"),
    [
        ("text", "its segmentation is 'text'"),
        ([[1, 2, 3, 4]], "is no polygon"),
        ([[1, 2, 3, 4, 5, "x"]], "is no polygon"),
        ([{}], "is no polygon"),
        ({"size": [20, 16], "counts": [320]}, "its mask has the size"),
        ({"size": [16, 20]}, "the counts of its mask are null"),
        ({"size": [16, 20], "counts": [300]}, "are 300 pixels, but the image has 320"),
        ({"size": [16, 20], "counts": [-1, 321]}, "expected run lengths"),
        ({"size": [16, 20], "counts": [True] * 320}, "expected run lengths"),
        ({"size": [16, 20], "counts": "~~~~~~~~~~~~~~~~~~~~~~"}, "expected run lengths"),
        ({"size": [16, 20], "counts": "o"}, "expected run lengths"),
    ],
)
def test_outlines_that_are_none(given: object, complaint: str) -> None:
    with pytest.raises(UserError, match=f"^here: .*{complaint}"):
        read(given, (20, 16))


def test_outlines_are_kept_only_if_they_are_asked_for(tmp_path: Path) -> None:
    from PIL import Image

    Image.new("RGB", (20, 16)).save(tmp_path / "a.png")
    item = Annotated(tmp_path / "a.png", [Object((4, 2, 12, 10), "x", "here", [[4, 2, 12, 2, 12, 10]])])
    assert BoxedFiles([item], ["x"], channels=3)[0].outlines == ()
    (outline,) = BoxedFiles([item], ["x"], channels=3, outlines=True)[0].outlines
    assert 0 < outline.draw(20, 16).sum() < 64
    without = item._replace(objects=[item.objects[0]._replace(outline=None)])
    with pytest.raises(UserError, match="here: the x has a box and no outline"):
        BoxedFiles([without], ["x"], channels=3, outlines=True)
