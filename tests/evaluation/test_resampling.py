"""The bootstrap of test images, against one written out in float64 and against its own promise."""

from __future__ import annotations

import statistics

import numpy as np
import pytest

from densecl.evaluation.resampling import DRAWS, FEWEST_IMAGES, Tally, draw_images, judge_images, outer_share


def tally(images: int, classes: int, seed: int, skill: float = 0.5) -> Tally:
    draw = np.random.default_rng(seed)
    total = draw.integers(1, 400, size=(images, classes)) * draw.integers(0, 2, size=(images, classes))
    hits = draw.binomial(total, skill)
    return Tally(hits.astype(np.int32), total.astype(np.int32))


def test_the_interval_is_that_of_a_plain_bootstrap() -> None:
    """Images drawn one by one, and the IoU of each class from the sums, all in float64."""
    mine, others = tally(40, 5, 0), tally(40, 5, 1, 0.45)
    verdict = judge_images(mine, others, seed=3)
    draw, differences = np.random.default_rng(7), []
    for _ in range(4000):
        chosen = draw.integers(40, size=40)
        scores = []
        for each in (mine, others):
            hits, total = each.hits[chosen].sum(axis=0, dtype=np.float64), each.total[chosen].sum(axis=0)
            scores.append(100 * np.mean([hits[label] / total[label] for label in range(5) if total[label]]))
        differences.append(scores[0] - scores[1])
    # Student's t with 39 degrees of freedom is 2.0227 at 97.5 %; times sqrt(40 / 39) it is 2.0485.
    tail = statistics.NormalDist().cdf(-2.0485)
    assert outer_share(40) == pytest.approx(tail, rel=1e-3)
    expected = np.quantile(differences, (tail, 1 - tail))
    width = expected[1] - expected[0]
    assert verdict.interval == pytest.approx(expected, abs=0.06 * width)  # both are of random draws
    assert (verdict.images, list(verdict.differences)) == (40, [3])
    assert judge_images(mine, others, seed=3) == verdict  # the same call says the same


def test_each_draw_has_as_many_images_as_there_are() -> None:
    drawn = np.concatenate(list(draw_images(12)))
    assert drawn.shape == (DRAWS, 12) and (drawn.sum(axis=1) == 12).all()
    assert drawn.mean(axis=0) == pytest.approx(np.ones(12), abs=0.08)
    assert drawn.var() == pytest.approx(11 / 12, abs=0.03)  # of a binomial with 12 trials


def test_classes_that_a_draw_lacks_do_not_count() -> None:
    few = Tally(np.array([[5, 0, 0], [2, 3, 0]], dtype=np.int32), np.array([[10, 0, 0], [10, 4, 0]], dtype=np.int32))
    assert few.scores(np.array([[2, 0], [1, 1], [0, 2]])) == pytest.approx([50.0, (35 + 75) / 2, (20 + 75) / 2])
    assert few.take([1]).scores(np.array([[1]])) == pytest.approx([(20 + 75) / 2])
    assert few == few.take([0, 1]) and few != few.take([1, 0]) and repr(few) == "Tally of 2 images"


def test_like_weights_cannot_be_told_apart() -> None:
    verdict = judge_images(tally(100, 3, 0), tally(100, 3, 0), 0)
    assert (verdict.outcome, verdict.mean, verdict.interval) == ("unclear", 0, None)
    assert verdict.sentence("imagenet", "mIoU") == "cannot tell: the same as imagenet on each of the 100 test images"


def test_clear_and_unclear_differences() -> None:
    one, other = tally(100, 3, 0, 0.6), tally(100, 3, 0, 0.5)
    better, worse = judge_images(one, other, 0), judge_images(other, one, 0)
    assert better.interval is not None and better.interval[0] > 0
    assert better.mean == pytest.approx(10, abs=1)
    half = (better.interval[1] - better.interval[0]) / 2
    how = "on images like these (95 % by resampling the 100 test images)"
    decimals = 2 if half < 0.095 else 1
    size = f"{better.mean:.{decimals}f} ± {half:.{decimals}f}"
    assert better.sentence("imagenet", "mIoU") == f"better than imagenet by {size} mIoU {how}"
    assert worse.sentence("imagenet", "mIoU") == f"worse than imagenet by {size} mIoU {how}: do not use it"
    close = judge_images(tally(12, 3, 0), tally(12, 3, 1), 0)
    assert close.outcome == "unclear"
    sentence = close.sentence("imagenet", "mIoU")
    assert sentence.startswith("cannot tell: ") and "needed" not in sentence and sentence.endswith("12 test images)")


@pytest.mark.parametrize("images", [1, FEWEST_IMAGES - 1])
def test_few_images_say_nothing(images: int) -> None:
    verdict = judge_images(tally(images, 3, 0, 0.9), tally(images, 3, 0, 0.1), 0)
    assert (verdict.outcome, verdict.interval) == ("not drawn", None)
    plural = "s" * (images > 1)
    assert f"on these images; {images} test image{plural} cannot say how sure that is" in verdict.sentence("b", "mIoU")


@pytest.mark.parametrize("images", [FEWEST_IMAGES, 40])
def test_the_interval_holds_the_truth_about_as_often_as_it_says(images: int) -> None:
    """Two accuracies that differ by 10 points, on images that are sometimes hard for both."""
    draw, held = np.random.default_rng(0), []
    ones = np.full((images, 1), 20, dtype=np.int32)
    for _ in range(150):
        ease = draw.beta(4, 4, size=(images, 1)) * 0.8
        mine, others = (draw.binomial(20, ease + more).astype(np.int32) for more in (0.1, 0.0))
        interval = judge_images(Tally(mine, ones), Tally(others, ones), 0).interval
        assert interval is not None
        held.append(interval[0] < 10 < interval[1])
    assert statistics.fmean(held) >= 0.91  # two standard deviations of 150 trials below 0.95
