"""The same view pairs through a whole run: how well the backbone's features find matching places, and its cells."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
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
from densecl.training.diagnosis import spread
from densecl.views import CropPair, Views

#: The most and the fewest view pairs, whatever the length of the run.
MOST_PAIRS, FEWEST_PAIRS = 256, 32

#: Cells that are looked at one by one: of each first view so many, and no more than this in all. What is done with
#: them then takes a fraction of a second, whatever the backbone.
CELLS_OF_A_VIEW, MOST_CELLS = 16, 1024

#: Pairs that go through the backbone at a time. Between them a signal is noticed.
PAIRS_AT_ONCE = 8

#: How often a run measures, beside the first time.
TIMES = 10

#: All measurements of a run may cost this fraction of it.
COST = 0.02

#: What a training step costs for an image, in forward passes of a view as they are measured here. By counting it would
#: be 6: two forward passes, and two backward passes that cost as much as two. But here passes are in 32 bits, and cells
#: are matched. Measured with a ResNet-10-t at 64 px, whose steps are in bf16, it is 4.
PASSES_OF_AN_IMAGE = 4

#: Seconds that the first measurement may take, with reading the images. On a slower machine fewer pairs are measured.
MOST_SECONDS = 20.0

#: The pairs stay in memory up to this many bytes. Beyond it they are read and drawn anew each time.
KEPT_BYTES = 256 * 2**20

#: The epoch that the pairs are drawn for. No run reaches it, so training never sees these crops.
FIXED_EPOCH = 2**32 - 1


class Seen(NamedTuple):
    """What the backbone makes of the fixed pairs."""

    accuracy: float  # of matching cells by their features, 0 to 1; nan if no cell could be judged
    chance: float  # its chance level
    pairs: int  # of views, that were measured
    cell_spread: float  # of the cells within a view, 0 (all the same) to 1: `diagnosis.spread`
    image_spread: float  # of the views' mean features, 0 to 1; nan for a single view
    cells: Float[Tensor, "cells channels"]  # L2-normalized, some of each first view, always the same; on the CPU


class FirstPairs(NamedTuple):
    """The first of the pairs, `PAIRS_AT_ONCE` at most, and what the backbone made of them."""

    pair: CropPair  # on the CPU, the colors unchanged
    first: Views
    second: Views
    query_features: Float[Tensor, "batch channels rows cols"]
    key_features: Float[Tensor, "batch channels rows cols"]


def pairs_for(images_seen: int | None, beside: float = 0.0) -> int:
    """How many pairs a run measures: so many that all it measures costs `COST` of it, but at least `FEWEST_PAIRS`.

    Args:
        images_seen: images of all its steps. None: not known, with a time limit.
        beside: what else is measured each time, in forward passes of a view.
    """
    if images_seen is None:
        return MOST_PAIRS
    passes = images_seen * PASSES_OF_AN_IMAGE * COST / (TIMES + 1) - beside
    return min(MOST_PAIRS, max(FEWEST_PAIRS, int(passes / 2)))


class FixedPairs:
    """View pairs that stay the same through a run, to measure the backbone on.

    They are drawn as in training, colors included, from images all over the data. The first measurement may end early,
    on a slow machine or because of a signal; the later ones then measure as many pairs as it did. Fewer pairs are
    always the first ones of more, so that a run which is made longer goes on with the same.

    Args:
        pairs: of the run.
        normalization: of the run.
        record_bad: gets those of their images that cannot be used.
        shift_brightness: of the run, see `augment`.
        count: how many pairs.
        seconds: of computing that the first measurement may take.

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
        most = min(MOST_PAIRS, len(pairs))
        # In an order in which those from a part of the data do not come one after the other.
        order = np.random.default_rng(0).permutation(most)
        self.places = [(FIXED_EPOCH, int(number) * len(pairs) // most) for number in order[:count]]
        self.first_pairs: FirstPairs | None = None
        self._kept: dict[int, CropPair] = {}  # by the number of their first pair

    def keep_to(self, count: int) -> None:
        """Measures the first so many pairs alone, as an earlier part of the run did."""
        self.places, self.seconds = self.places[:count], None

    def allow_for(self, seconds: float) -> None:
        """The first measurement may take less by the time that something beside it takes each time."""
        if self.seconds is not None:
            self.seconds = max(0.0, self.seconds - seconds)

    def measure(
        self,
        backbone: Backbone,
        *,
        stop: Callable[[], bool] = lambda: False,
        show: Callable[[int, int], None] = lambda done, total: None,
    ) -> Seen | None:
        """How well cells are matched by the backbone's features, and the cells themselves.

        The backbone is in evaluation mode, as it will be when it is used.

        Args:
            backbone: what is measured.
            stop: is asked every few pairs. If it says yes, there is no measurement.
            show: is told every few pairs how many are done, of how many.

        Returns:
            None if it was stopped.
        """
        device = next(backbone.parameters()).device
        counts, spreads, vectors, cells = [], [], [], []
        done, started, computed = 0, time.monotonic(), 0.0
        with evaluating(backbone):
            while done < len(self.places):
                show(done, len(self.places))
                if stop():
                    return None
                pair = self._read(done)
                began = time.monotonic()
                crops = move_data_to_device((pair.first, pair.second), device)
                first, second = (
                    augment(crop, self.normalization, shift_brightness=self.shift_brightness) for crop in crops
                )
                query_features, key_features = (backbone(views.pixels).float() for views in (first, second))
                if done == 0:
                    self.first_pairs = FirstPairs(pair, first, second, query_features, key_features)
                found = correspondence(query_features, key_features, first, second)
                guessed = found.right.float().mean(dim=2)  # probability that a random match of a cell is right
                counts.append(torch.stack([found.hits.sum(), guessed.sum(), found.judged.sum()]))
                of_views = F.normalize(query_features.flatten(2).transpose(1, 2), dim=2)
                spreads.append(spread(of_views))
                vectors.append(F.normalize(query_features.mean(dim=(2, 3)), dim=1))
                cells += [_some(view, done + number) for number, view in enumerate(of_views)]
                done = min(done + PAIRS_AT_ONCE, len(self.places))
                if self.seconds is not None:
                    counts[-1].cpu()  # waits for a GPU, so that the clock tells the truth
                    now = time.monotonic()
                    computed += now - began
                    slow = computed > self.seconds or now - started > MOST_SECONDS
                    if slow and done >= FEWEST_PAIRS // 2:
                        break
        self.keep_to(done)
        hits, guesses, judged = torch.stack(counts).sum(dim=0).tolist()
        return Seen(
            accuracy=hits / judged if judged else math.nan,
            chance=guesses / judged if judged else math.nan,
            pairs=done,
            cell_spread=torch.cat(spreads).mean().item(),
            image_spread=spread(torch.cat(vectors)).item() if done > 1 else math.nan,
            cells=torch.cat(cells)[:MOST_CELLS].cpu(),
        )

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


def _some(view: Float[Tensor, "all channels"], number: int) -> Float[Tensor, "some channels"]:
    """The cells of a view that are looked at: others in each view, but the same whenever that view is seen."""
    if len(view) <= CELLS_OF_A_VIEW:
        return view
    chosen = np.random.default_rng(number).choice(len(view), CELLS_OF_A_VIEW, replace=False)
    return view[torch.from_numpy(np.sort(chosen)).to(view.device)]
