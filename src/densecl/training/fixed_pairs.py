"""How well a backbone's features find matching places, followed on the same view pairs through a run."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from lightning.fabric.utilities import move_data_to_device
from torch import Tensor

from densecl.augment import augment
from densecl.borrowed import evaluating
from densecl.images.batch import collate
from densecl.images.pairs import BadRecord, CropPairDataset
from densecl.model import Backbone
from densecl.model.correspondence import correspondence
from densecl.normalization import Normalization
from densecl.views import CropPair, Views

#: The most and the fewest view pairs, whatever the length of the run.
MOST_PAIRS, FEWEST_PAIRS = 256, 64

#: Pairs that go through the backbone at a time. Between them a signal is noticed.
PAIRS_AT_ONCE = 8

#: How often a run measures, beside the first time.
TIMES = 10

#: A measurement may cost this fraction of a tenth of the run. A pair is two forward passes; in a step an image is two
#: forward and two backward passes, which cost as much as six.
COST = 0.1

#: Seconds that the first measurement may take. On a slower machine fewer pairs are measured.
MOST_SECONDS = 20.0

#: The pairs stay in memory up to this many bytes. Beyond it they are read and drawn anew each time.
KEPT_BYTES = 256 * 2**20

#: The epoch that the pairs are drawn for. No run reaches it, so training never sees these crops.
FIXED_EPOCH = 2**32 - 1


class Matched(NamedTuple):
    """How often matching by the backbone's features finds the right cell."""

    accuracy: float  # 0 to 1; nan if no cell could be judged
    chance: float  # its chance level
    pairs: int  # of views, that were measured


class FirstPairs(NamedTuple):
    """The first of the pairs, `PAIRS_AT_ONCE` at most, and what the backbone made of them."""

    pair: CropPair  # on the CPU, the colors unchanged
    first: Views
    second: Views
    query_features: Float[Tensor, "batch channels rows cols"]
    key_features: Float[Tensor, "batch channels rows cols"]


def pairs_for(images_seen: int | None) -> int:
    """How many pairs a run measures: so many that all measurements cost a tenth of it.

    Args:
        images_seen: images of all its steps. None: not known, with a time limit.
    """
    if images_seen is None:
        return MOST_PAIRS
    return min(MOST_PAIRS, max(FEWEST_PAIRS, int(images_seen / TIMES * COST * 6 / 2)))


class FixedPairs:
    """View pairs that stay the same through a run, to measure the backbone's match accuracy on.

    They are drawn as in training, colors included, from images all over the data. The first measurement may end early,
    on a slow machine or because of a signal; the later ones then measure as many pairs as it did.

    Args:
        pairs: of the run.
        normalization: of the run.
        record_bad: gets those of their images that cannot be used.
        shift_brightness: of the run, see `augment`.
        count: how many pairs.
        seconds: that the first measurement may take.

    Attributes:
        first_pairs: those, as the backbone saw them in the last measurement.
    """

    def __init__(
        self,
        pairs: CropPairDataset,
        normalization: Normalization,
        record_bad: Callable[[Iterable[BadRecord]], None],
        *,
        shift_brightness: bool = False,
        count: int = MOST_PAIRS,
        seconds: float = MOST_SECONDS,
    ) -> None:
        self.pairs = pairs
        self.shift_brightness = shift_brightness
        self.normalization = normalization
        self.record_bad = record_bad
        self.seconds: float | None = seconds
        count = min(count, len(pairs))
        spread = [number * len(pairs) // count for number in range(count)]
        # In an order in which those from a part of the data do not come one after the other.
        order = np.random.default_rng(0).permutation(count)
        self.places = [(FIXED_EPOCH, spread[number]) for number in order]
        self.first_pairs: FirstPairs | None = None
        self._kept: dict[int, CropPair] = {}  # by the number of their first pair

    def keep_to(self, count: int) -> None:
        """Measures the first so many pairs alone, as an earlier part of the run did."""
        self.places, self.seconds = self.places[:count], None

    def match_accuracy(
        self,
        backbone: Backbone,
        *,
        stop: Callable[[], bool] = lambda: False,
        show: Callable[[int, int], None] = lambda done, total: None,
    ) -> Matched | None:
        """The accuracy of matching cells by the backbone's features, and its chance level.

        The backbone is in evaluation mode, as it will be when it is used.

        Args:
            backbone: what is measured.
            stop: is asked every few pairs. If it says yes, there is no measurement.
            show: is told every few pairs how many are done, of how many.

        Returns:
            None if it was stopped.
        """
        device = next(backbone.parameters()).device
        measured = []
        done, started = 0, time.monotonic()
        with evaluating(backbone):
            while done < len(self.places):
                show(done, len(self.places))
                if stop():
                    return None
                pair = self._read(done)
                crops = move_data_to_device((pair.first, pair.second), device)
                first, second = (
                    augment(crop, self.normalization, shift_brightness=self.shift_brightness) for crop in crops
                )
                query_features, key_features = (backbone(views.pixels).float() for views in (first, second))
                if done == 0:
                    self.first_pairs = FirstPairs(pair, first, second, query_features, key_features)
                found = correspondence(query_features, key_features, first, second)
                guessed = found.right.float().mean(dim=2)  # probability that a random match of a cell is right
                measured.append(torch.stack([found.hits.sum(), guessed.sum(), found.judged.sum()]))
                done = min(done + PAIRS_AT_ONCE, len(self.places))
                if self.seconds is not None and done >= FEWEST_PAIRS // 2:
                    measured[-1].cpu()  # waits for a GPU, so that the clock tells the truth
                    if time.monotonic() - started > self.seconds:
                        break
        self.keep_to(done)
        hits, guesses, judged = torch.stack(measured).sum(dim=0).tolist()
        return Matched(hits / judged, guesses / judged, done) if judged else Matched(math.nan, math.nan, done)

    def _read(self, start: int) -> CropPair:
        """The pairs from this number on, as many as go through the backbone at a time."""
        if start in self._kept:
            return self._kept[start]
        batch = collate([self.pairs[place] for place in self.places[start : start + PAIRS_AT_ONCE]])
        self.record_bad(batch.bad)
        pair = batch.pairs._replace(local=())
        size = pair.first.pixels.nbytes + pair.second.pixels.nbytes
        if size * len(self.places) <= KEPT_BYTES * PAIRS_AT_ONCE:
            self._kept[start] = pair
        return pair
