"""Copies against a comparison of all pairs."""

from __future__ import annotations

from collections import Counter

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from densecl.checking.copies import NEAR, Copies, near_copies
from densecl.checking.survey import HASH_BYTES, Survey


def make_survey(images=4, **changed):
    """A survey of images that are all in order and all different."""
    generator = np.random.default_rng(0)
    facts = {
        "kinds": Counter({"a JPEG image": images}),
        "sides": np.full((images, 2), 300, np.int32),
        "deep": np.zeros(images, bool),
        "gray": np.zeros(images, bool),
        "constant": np.zeros(images, bool),
        "digest": generator.integers(0, 256, (images, HASH_BYTES), dtype=np.uint8),
        "look": generator.integers(0, 2**64, images, dtype=np.uint64),
        "bad": [],
        "readable": np.ones(images, bool),
        "seconds": 1.0,
    }
    return Survey(**{**facts, **changed})


@given(st.data())
def test_near_copies_are_those_of_all_pairs(data):
    # A few hashes, each with some bits changed, so that there is much to find.
    count = data.draw(st.integers(1, 30))
    centers = data.draw(st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=3))
    look = []
    for _ in range(count):
        value = data.draw(st.sampled_from(centers))
        for bit in data.draw(st.lists(st.integers(0, 63), max_size=5)):
            value ^= 1 << bit
        look.append(value)
    compared = np.flatnonzero(data.draw(st.lists(st.booleans(), min_size=count, max_size=count)))
    expected, kept = list(range(count)), []
    for image in compared.tolist():
        near = [other for other in kept if (look[image] ^ look[other]).bit_count() <= NEAR]
        expected[image] = min(near, default=image)
        if not near:
            kept.append(image)
    assert near_copies(np.array(look, np.uint64), compared).tolist() == expected


def test_exact_copies_lead_to_the_first_and_are_not_near_ones():
    digest = np.arange(6 * HASH_BYTES, dtype=np.uint8).reshape(6, HASH_BYTES)
    digest[[2, 4]] = digest[1]
    digest[5] = digest[0]
    readable = np.array([False, True, True, True, True, False])
    look = np.array([9, 9, 9, 8, 9, 9], np.uint64)
    copies = Copies(make_survey(6, digest=digest, readable=readable, look=look))
    assert copies.exact.tolist() == [0, 1, 1, 3, 1, 5]
    assert copies.near.tolist() == [0, 1, 2, 1, 4, 5]
    assert (copies.exact_count, copies.near_count) == (2, 1)


def test_pictures_of_one_color_are_not_like_each_other():
    copies = Copies(make_survey(2, look=np.zeros(2, np.uint64), constant=np.ones(2, bool)))
    assert copies.near_count == copies.exact_count == 0
