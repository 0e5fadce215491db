"""The numbers that tell whether a run learns, and the alarm for one that does not."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from jaxtyping import Float
from lightning.fabric.utilities import move_data_to_device
from torch import Tensor

from densecl.augment import augment
from densecl.borrowed import evaluating
from densecl.errors import UserError
from densecl.images.batch import collate
from densecl.images.pairs import CropPairDataset
from densecl.images.quarantine import Quarantine
from densecl.model import Backbone, DenseCL, Output
from densecl.model.correspondence import correspondence
from densecl.model.distributed import world_size
from densecl.normalization import Normalization
from densecl.training.checkpoints import writing
from densecl.views import Views, cell_distances

#: What `diagnose` measures, in this order.
MEASURES = (
    "loss",  # the weighted sum
    "global_loss",
    "global_chance_loss",  # what guessing would cost: ln of the number of candidates, for methods that have some
    "dense_loss",
    "dense_chance_loss",
    "global_positive",  # similarity of an image's vector to that of its other view
    "global_negative",  # ... to those of the batch's other images
    "dense_positive",  # similarity of a cell's vector to that of its match
    "dense_negative",  # ... to those of the batch's other images' cells
    "match_accuracy",  # of matching by features, against where the cells really lie
    "match_chance",  # ... of guessing
    "distinct_matches",  # share of key cells that are some query cell's match; near 0: all cells match the same one
    "cell_spread",  # of the cell vectors within an image, 0 (all the same) to 1
    "image_spread",  # of the image vectors within the batch, 0 to 1
)

#: View pairs on which match accuracy is followed through a run, how many go through the backbone at a time, and
#: an epoch that no run reaches, so that they are none of the training's.
FIXED_PAIRS = 256
FIXED_PAIRS_AT_ONCE = 32
FIXED_EPOCH = 2**32 - 1

#: Spread below which vectors count as all the same: their mean cosine is above 1 - 1e-4.
COLLAPSED = 1e-4

#: Rows in a row that must say so before a run is stopped.
PATIENCE = 10


@torch.no_grad()
def diagnose(model: DenseCL, output: Output, first: Views, second: Views) -> Float[Tensor, "measures"]:
    """The `MEASURES` of one step, on the step's device; nan where a measure means nothing.

    Args:
        model: whose output it is.
        output: of the step.
        first: the query views.
        second: the key views.
    """
    query_features, key_features = output.query.features.float(), output.key.features.float()
    found = correspondence(query_features, key_features, first, second)

    device = output.loss.device
    nan = torch.full((), math.nan, device=device)
    global_chance, dense_chance = chance_losses(model, output, first, second)
    dense_positive = dense_negative = nan
    query_vector, key_vector = (F.normalize(side.vector.float(), dim=1) for side in (output.query, output.key))
    cells = F.normalize(query_features.flatten(2).transpose(1, 2), dim=2)  # stands in when there is no dense head
    if output.query.cells is not None and output.key.cells is not None:
        cells, key_cells = (F.normalize(side.float(), dim=2) for side in (output.query.cells, output.key.cells))
        positive = key_cells.gather(1, output.match[:, :, None].expand_as(cells))
        dense_positive = ((cells * positive).sum(dim=2) * output.weight).sum() / output.weight.sum()
        dense_negative = similarity_to_others(cells, key_cells)
    measured = {
        "loss": output.loss,
        "global_loss": output.global_loss,
        "global_chance_loss": global_chance,
        "dense_loss": output.dense_loss if output.query.cells is not None else nan,
        "dense_chance_loss": dense_chance,
        "global_positive": (query_vector * key_vector).sum(dim=1).mean(),
        "global_negative": similarity_to_others(query_vector[:, None], key_vector[:, None]),
        "dense_positive": dense_positive,
        "dense_negative": dense_negative,
        "match_accuracy": found.accuracy,
        "match_chance": found.chance,
        "distinct_matches": found.distinct,
        "cell_spread": spread(cells).mean(),
        "image_spread": spread(query_vector) if len(output.match) > 1 else nan,
    }
    return torch.stack([torch.as_tensor(measured[name], device=device).float() for name in MEASURES])


def chance_losses(
    model: DenseCL, output: Output, first: Views, second: Views
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """What guessing costs at both levels: the log of the number of candidates; nan for a loss without candidates."""
    nan = torch.full((), math.nan, device=output.loss.device)
    rows, cols = output.query.features.shape[2:]
    batch = world_size() * len(output.match)
    dense = output.query.cells is not None
    if model.method.teacher_temperature is not None:  # each prototype alike
        chance = [math.log(objective.dim) for objective in (model.global_objective, model.dense_objective) if objective]
        return nan.new_tensor(chance[0]), nan.new_tensor(chance[1]) if dense else nan
    if not model.method.dense_negatives:
        return nan, nan
    views = 1 if model.method.queue else 2  # in which a method without a queue finds negatives
    if model.global_queue is not None:
        global_chance = nan.new_tensor(math.log(len(model.global_queue.keys) + 1))
    else:
        global_chance = nan.new_tensor(math.log(views * batch - 1))
    if not dense:
        return global_chance, nan
    if model.dense_queue is not None:
        return global_chance, nan.new_tensor(math.log(len(model.dense_queue.keys) + 1))
    if model.dense_negatives == "pooled":
        return global_chance, nan.new_tensor(math.log(views * (batch - 1) + 1))
    excluded = model.no_negatives(cell_distances(first, second, rows, cols))
    excluded = excluded.scatter(2, output.match[:, :, None], False).sum(dim=2)  # all but the positive
    if views == 2:
        excluded = excluded + model.no_negatives(cell_distances(first, first, rows, cols)).sum(dim=2)
    candidates = views * rows * cols * batch - excluded
    return global_chance, (candidates.log() * output.weight).sum() / output.weight.sum()


def spread(vectors: Float[Tensor, "*batch vectors dim"]) -> Float[Tensor, "*batch"]:
    """How far unit vectors lie apart: their variance, mean |x - mean|^2 = 1 - |mean|^2, from 0 (all the same) to 1.

    It is one minus the mean cosine over all pairs, a vector with itself included.
    """
    centered = vectors.float() - vectors.float().mean(dim=-2, keepdim=True)  # 1 - |mean|^2 would lose the small ones
    return centered.square().sum(dim=-1).mean(dim=-1)


def similarity_to_others(
    query: Float[Tensor, "batch vectors dim"], key: Float[Tensor, "batch vectors dim"]
) -> Float[Tensor, ""]:
    """Mean cosine between the vectors of each image and those of the batch's *other* images; nan for one image.

    Sums of vectors suffice: the mean of all products is the product of the means.
    """
    batch = len(query)
    if batch == 1:
        return query.new_tensor(math.nan)
    query_means, key_means = query.mean(dim=1), key.mean(dim=1)
    everything = query_means.sum(dim=0) @ key_means.sum(dim=0)
    return (everything - (query_means * key_means).sum()) / (batch * (batch - 1))


class CollapseAlarm:
    """Stops a run whose vectors have all become the same: such a run does not recover."""

    def __init__(self) -> None:
        self._rows = {"image_spread": 0, "cell_spread": 0}

    def check(self, step: int, row: Mapping[str, float | int]) -> None:
        """Looks at a row of metrics; `dense_weight` in it says whether cells matter yet.

        Raises:
            UserError: if `PATIENCE` rows on end show a spread below `COLLAPSED`.
        """
        for name, what in (("image_spread", "images have"), ("cell_spread", "cells of an image have")):
            matters = name == "image_spread" or row["dense_weight"] > 0
            self._rows[name] = self._rows[name] + 1 if matters and row[name] < COLLAPSED else 0
            if self._rows[name] >= PATIENCE:
                hint = "; or --matching geometry" if name == "cell_spread" else ""
                raise UserError(
                    f"Step {step}: collapsed, all {what} had the same vector for {PATIENCE} rows of metrics.csv"
                    f" ({name} {row[name]:.1g}). Try a lower --base-learning-rate, --warmup-epochs 1, or with"
                    f" --method moco a longer --queue-length{hint}."
                )


def not_finite(step: int) -> UserError:
    """What to tell the user whose loss or weights became NaN or infinite at this step."""
    return UserError(
        f"Step {step}: the loss or a weight is no longer a finite number. What was last saved is from before."
        " Try a lower --base-learning-rate, --warmup-epochs 1, --clip-gradient 1 or --precision 32."
    )


class FixedPairs:
    """View pairs that stay the same, on which a backbone's match accuracy is followed through a run.

    They are drawn as for training, colors included, from images spread over the data, and made anew for each
    measurement, so that they take no memory in between.

    Args:
        pairs: of the run.
        normalization: of the run.
        quarantine: for the images among them that cannot be used.
        shift_brightness: of the run (`augment`).
    """

    def __init__(
        self,
        pairs: CropPairDataset,
        normalization: Normalization,
        quarantine: Quarantine,
        *,
        shift_brightness: bool = False,
    ) -> None:
        self.pairs = pairs
        self.shift_brightness = shift_brightness
        self.normalization = normalization
        self.quarantine = quarantine
        count = min(FIXED_PAIRS, len(pairs))
        self.places = [(FIXED_EPOCH, number * len(pairs) // count) for number in range(count)]

    def match_accuracy(self, backbone: Backbone) -> tuple[float, float]:
        """Accuracy and chance of matching by the features of the backbone in evaluation mode, as it will be used."""
        device = next(backbone.parameters()).device
        measured = []
        with evaluating(backbone):
            for start in range(0, len(self.places), FIXED_PAIRS_AT_ONCE):
                batch = collate([self.pairs[place] for place in self.places[start : start + FIXED_PAIRS_AT_ONCE]])
                with writing(self.quarantine.path):
                    self.quarantine.record(batch.bad)
                crops = move_data_to_device((batch.pairs.first, batch.pairs.second), device)
                first, second = (
                    augment(crop, self.normalization, shift_brightness=self.shift_brightness) for crop in crops
                )
                query_features, key_features = (backbone(views.pixels).float() for views in (first, second))
                found = correspondence(query_features, key_features, first, second)
                guessed = found.right.float().mean(dim=2)  # how likely a random match of each cell is right
                measured.append(torch.stack([found.hits.sum(), guessed.sum(), found.judged.sum()]))
        hits, guesses, judged = torch.stack(measured).sum(dim=0).tolist()
        return (hits / judged, guesses / judged) if judged else (math.nan, math.nan)
