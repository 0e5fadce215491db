"""Random numbers that depend only on the seed and on what they are for, never on what was drawn before."""

from __future__ import annotations

import numpy as np


def random_stream(seed: int, *place: int) -> np.random.Generator:
    """A generator of its own for each place, such as (epoch, index).

    The place goes in as a spawn key. As plain entropy, [1, 2] and [1, 2, 0] would give the same stream.
    """
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=place))
