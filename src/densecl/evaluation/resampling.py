"""How sure is a difference on these test images? A paired bootstrap of the images says it where no seed drew anything.

Efron and Tibshirani, "An Introduction to the Bootstrap", 1993, chapters 8 and 13.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64, Int32, Integer

from densecl.evaluation.verdict import CONFIDENCE, NO_SPREAD, Outcome, Verdict, t_quantile

#: How often images are drawn anew. Percentiles of 1000 and more are steady to the decimal that is shown.
DRAWS = 4000

#: Draws that are scored at a time: they bound the memory, whatever the number of images and classes.
CHUNK = 250

#: With fewer images than this, the interval would be a guess.
FEWEST_IMAGES = 10


@dataclass(frozen=True, eq=False)
class Tally:
    """What each test image adds to a score that is the mean over classes of sum(hits) / sum(total).

    The mIoU is one: pixels of the intersection, and of the union. So is an accuracy, with a single class: 1 or 0, and
    1. Classes without a total do not count, as in `dense.score`.
    """

    hits: Int32[np.ndarray, "images classes"]
    total: Int32[np.ndarray, "images classes"]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Tally) and all(
            np.array_equal(*pair) for pair in ((self.hits, other.hits), (self.total, other.total))
        )

    __hash__ = None  # pyright: ignore[reportAssignmentType]

    def __repr__(self) -> str:
        return f"Tally of {len(self)} images"

    def __len__(self) -> int:
        return len(self.hits)

    @classmethod
    def empty(cls, images: int, classes: int) -> Tally:
        """Zeros, to be filled in by `set`."""
        return cls(*(np.zeros((images, classes), dtype=np.int32) for _ in range(2)))

    def set(self, image: int, hits: np.ndarray, total: np.ndarray) -> None:
        """What one image adds, by class."""
        self.hits[image], self.total[image] = hits, total

    def take(self, images: Sequence[int]) -> Tally:
        """Of some of the images."""
        return Tally(self.hits[list(images)], self.total[list(images)])

    def scores(self, times: Integer[np.ndarray, "batch images"]) -> Float64[np.ndarray, "batch"]:
        """The score of each draw, in percent. `times` says how often it holds each image."""
        # Sums of pixels are exact in float64, whose product is far faster than that of integers.
        times = times.astype(np.float64)
        hits, total = times @ self.hits.astype(np.float64), times @ self.total.astype(np.float64)
        ratios = np.divide(hits, total, out=np.zeros_like(hits), where=total > 0)
        return 100 * ratios.sum(axis=1) / np.maximum((total > 0).sum(axis=1), 1)


def draw_images(images: int, draws: int = DRAWS) -> Iterator[Integer[np.ndarray, "_ {images}"]]:
    """How often each image is drawn, in `CHUNK`s of draws. Each draw has as many images as there are.

    The same for the same number of images, so that the same call says the same.
    """
    generator = np.random.default_rng(0)
    for start in range(0, draws, CHUNK):
        count = min(CHUNK, draws - start)
        drawn = generator.integers(images, size=(count, images)) + images * np.arange(count)[:, None]
        yield np.bincount(drawn.ravel(), minlength=count * images).reshape(count, images)


def judge_images(mine: Tally, others: Tally, seed: int) -> Verdict:
    """The verdict on the difference of two scores on the same test images, without a draw of anything else.

    Both are scored on the same draws of the images, with replacement. The interval lies between the percentiles of the
    differences. These are widened as Student's t is wider than the normal distribution, and by the bias of the variance
    of so many images: the expanded percentile interval (Hesterberg, "What Teachers Should Know About the Bootstrap",
    The American Statistician 69, 2015). Percentiles alone are too narrow for few images.

    Args:
        mine: of the weights that are judged.
        others: of the baseline.
        seed: that stands for all, since nothing depends on it.
    """
    images = len(mine)
    everything = np.ones((1, images), dtype=np.int64)
    mean = float(mine.scores(everything)[0] - others.scores(everything)[0])
    if images < FEWEST_IMAGES:
        return Verdict("not drawn", mean, {seed: mean}, images=images)
    found = np.concatenate([mine.scores(times) - others.scores(times) for times in draw_images(images)])
    tail = outer_share(images)
    low, high = (float(value) for value in np.quantile(found, (tail, 1 - tail)))
    if high - low <= NO_SPREAD:  # the same weights, or images that are all alike: no width would feign certainty
        return Verdict("unclear", mean, {seed: mean}, images=images)
    outcome: Outcome = "better" if low > 0 else "worse" if high < 0 else "unclear"
    return Verdict(outcome, mean, {seed: mean}, interval=(low, high), images=images)


def outer_share(images: int) -> float:
    """The share of the draws that lies beyond each end of the interval."""
    expanded = math.sqrt(images / (images - 1)) * t_quantile((1 + CONFIDENCE) / 2, images - 1)
    return statistics.NormalDist().cdf(-expanded)
