"""Each thing to put right is told beyond its limit, and not below it."""

from __future__ import annotations

import numpy as np
import pytest

from densecl.checking.copies import Copies
from densecl.checking.findings import problems, reasons_to_leave_out, remarks
from tests.checking.test_copies import make_survey

IMAGES = 100


def mask(count: int) -> np.ndarray:
    return np.arange(IMAGES) < count


def sides(count: int, side: int) -> np.ndarray:
    found = np.full((IMAGES, 2), 300, np.int32)
    found[:count, 1] = side
    return found


def twice(count: int) -> np.ndarray:
    """Hashes of which `count` are those of others."""
    digest = make_survey(IMAGES).digest
    digest[:count] = digest[count : 2 * count]
    return digest


@pytest.mark.parametrize(
    ("above", "below", "told"),
    [
        ({"readable": ~mask(6)}, {"readable": ~mask(5)}, "6 of 100 images cannot be read, and a run stops at 5%"),
        (
            {"digest": twice(11)},
            {"digest": twice(10)},
            "11 of 100 images are copies of others: 11 with",
        ),
        ({"constant": mask(2)}, {"constant": mask(1)}, "2 of 100 images have one color alone"),
        ({"sides": sides(2, 31)}, {"sides": sides(2, 32)}, "2 of 100 images have a side below 32 px"),
        ({"sides": sides(60, 111)}, {"sides": sides(60, 112)}, "111 px or less, and a view has 224. To enlarge"),
    ],
)
def test_limits(above: dict, below: dict, told: str) -> None:
    for facts, expected in ((above, 1), (below, 0)):
        survey = make_survey(IMAGES, **facts)
        found = list(problems(survey, Copies(survey), image_size=224, max_bad_images=0.05, listed=False))
        assert len(found) == expected
        assert all(told in line for line in found)
    if "constant" in above:
        (line,) = problems(
            make_survey(IMAGES, **above), Copies(make_survey(IMAGES)), image_size=224, max_bad_images=0.05, listed=True
        )
        assert "take the list that was written" in line


def test_the_size_that_is_proposed_is_one_that_is_not_complained_of() -> None:
    survey = make_survey(IMAGES, sides=sides(60, 100))
    (line,) = problems(survey, Copies(survey), image_size=224, max_bad_images=0.05, listed=False)
    assert line.endswith("Give --image-size 96.")
    assert not list(problems(survey, Copies(survey), image_size=96, max_bad_images=0.05, listed=False))


def test_remarks() -> None:
    survey = make_survey(IMAGES, sides=sides(60, 100), gray=mask(30), deep=mask(10), readable=~mask(1))
    lines = list(remarks(survey, Copies(survey), channels=3))
    assert lines == [
        "files: 100 JPEG",
        "sizes: from 100x300 to 300x300, half of them up to 100x300",
        "pixels: 69 in color, 30 gray; 89 of 8 bits and 10 of 16 bits, which are mixed",
        "1 cannot be read",
    ]


@pytest.mark.parametrize(
    ("count", "told"), [(1, "1 is nearly the same as another"), (2, "2 are nearly the same as others")]
)
def test_one_is_told_as_one(count: int, told: str) -> None:
    look = make_survey(IMAGES).look
    look[:count] = look[-1]
    survey = make_survey(IMAGES, look=look)
    assert told in list(remarks(survey, Copies(survey), channels=3))


def test_why_an_image_is_left_out() -> None:
    digest = make_survey(5).digest
    digest[1] = digest[0]
    sides = np.full((5, 2), 300, np.int32)
    sides[3] = 8
    survey = make_survey(
        5, digest=digest, sides=sides, readable=np.arange(5) != 2, bad=[(2, "empty file")], constant=np.arange(5) == 4
    )
    names = [f"/{index}.png" for index in range(5)]
    assert reasons_to_leave_out(survey, Copies(survey), names) == [
        None,
        "the same as /0.png",
        "cannot be read: empty file",
        "a side below 32 px",
        "one color alone",
    ]
