"""How well a backbone's features find matching places, followed on the same view pairs through a run."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

import torch
from lightning.fabric.utilities import move_data_to_device

from densecl.augment import augment
from densecl.borrowed import evaluating
from densecl.images.batch import collate
from densecl.images.pairs import BadRecord, CropPairDataset
from densecl.model import Backbone
from densecl.model.correspondence import correspondence
from densecl.normalization import Normalization

#: Number of view pairs.
FIXED_PAIRS = 256

#: Pairs that go through the backbone at a time.
FIXED_PAIRS_AT_ONCE = 32

#: The epoch that the pairs are drawn for. No run reaches it, so training never sees these crops.
FIXED_EPOCH = 2**32 - 1


class FixedPairs:
    """View pairs that stay the same through a run, to measure the backbone's match accuracy on.

    They are drawn as in training, colors included, from images all over the data. Each measurement reads them anew, so
    that they take no memory in between.

    Args:
        pairs: of the run.
        normalization: of the run.
        record_bad: gets those of their images that cannot be used.
        shift_brightness: of the run, see `augment`.
    """

    def __init__(
        self,
        pairs: CropPairDataset,
        normalization: Normalization,
        record_bad: Callable[[Iterable[BadRecord]], None],
        *,
        shift_brightness: bool = False,
    ) -> None:
        self.pairs = pairs
        self.shift_brightness = shift_brightness
        self.normalization = normalization
        self.record_bad = record_bad
        count = min(FIXED_PAIRS, len(pairs))
        self.places = [(FIXED_EPOCH, number * len(pairs) // count) for number in range(count)]

    def match_accuracy(self, backbone: Backbone) -> tuple[float, float]:
        """The accuracy of matching cells by the backbone's features, and its chance level.

        The backbone is in evaluation mode, as it will be when it is used.
        """
        device = next(backbone.parameters()).device
        measured = []
        with evaluating(backbone):
            for start in range(0, len(self.places), FIXED_PAIRS_AT_ONCE):
                batch = collate([self.pairs[place] for place in self.places[start : start + FIXED_PAIRS_AT_ONCE]])
                self.record_bad(batch.bad)
                crops = move_data_to_device((batch.pairs.first, batch.pairs.second), device)
                first, second = (
                    augment(crop, self.normalization, shift_brightness=self.shift_brightness) for crop in crops
                )
                query_features, key_features = (backbone(views.pixels).float() for views in (first, second))
                found = correspondence(query_features, key_features, first, second)
                guessed = found.right.float().mean(dim=2)  # probability that a random match of a cell is right
                measured.append(torch.stack([found.hits.sum(), guessed.sum(), found.judged.sum()]))
        hits, guesses, judged = torch.stack(measured).sum(dim=0).tolist()
        return (hits / judged, guesses / judged) if judged else (math.nan, math.nan)
