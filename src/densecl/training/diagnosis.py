"""The numbers that tell whether a run learns."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from densecl.model import DenseCL, Distillation, Distilled, Output
from densecl.model.correspondence import correspondence
from densecl.model.distillation import Guided
from densecl.model.distributed import world_size
from densecl.views import Views, cell_distances

#: What `diagnose` measures, in this order.
MEASURES = (
    "loss",  # the weighted sum
    "global_loss",
    "global_chance_loss",  # chance level of the loss: ln of the number of candidates, for methods that have some
    "dense_loss",
    "dense_chance_loss",
    "global_positive",  # similarity of an image's vector to that of its other view
    "global_negative",  # ... to those of the batch's other images
    "dense_positive",  # similarity of a cell's vector to that of its match
    "dense_negative",  # ... to those of the cells of the batch's other images
    "match_accuracy",  # how often matching by features finds the cell that really lies there
    "match_chance",  # ... chance level
    "distinct_matches",  # fraction of key cells that are the match of some query cell; near 0: all match the same one
    "cell_spread",  # of the cell vectors within an image, from 0 (all the same) to 1
    "image_spread",  # of the image vectors within the batch, from 0 to 1
    "feature_spread",  # of the images' mean features, from 0 to 1: what the heads' normalization hides from the loss
)


#: What `diagnose_guided` measures, in this order.
GUIDED_MEASURES = (
    "teacher_loss",
    "anchor_loss",
    "moved",  # how far the features are from those of the starting weights: 1 - mean cosine similarity of a cell
)


def measure(model: DenseCL | Distillation, output: Output | Distilled, views: Sequence[Views]) -> Float[Tensor, "all"]:
    """The `MEASURES` of one step, then the `GUIDED_MEASURES` if it followed frozen networks."""
    if isinstance(model, DenseCL) and isinstance(output, Output):
        measured = diagnose(model, output, *views)
    else:
        assert isinstance(output, Distilled)
        measured = diagnose_distilled(output)
    return measured if output.guided is None else torch.cat([measured, _guided(output.guided)])


def _guided(guided: Guided) -> Float[Tensor, "measures"]:
    nan = guided.loss.new_tensor(math.nan)
    found = (guided.teacher_loss, guided.anchor_loss, guided.moved)
    return torch.stack([(nan if one is None else one).float() for one in found])


@torch.no_grad()
def diagnose_distilled(output: Distilled) -> Float[Tensor, "measures"]:
    """The `MEASURES` of a step of distillation alone: the loss and what there is to say of the backbone's features."""
    cells = F.normalize(output.features.float().flatten(2).transpose(1, 2), dim=2)
    vectors = F.normalize(output.features.float().mean(dim=(2, 3)), dim=1)
    nan = output.loss.new_tensor(math.nan)
    measured = {
        "loss": output.loss,
        "cell_spread": spread(cells).mean(),
        "image_spread": spread(vectors) if len(vectors) > 1 else nan,
        "feature_spread": spread(vectors) if len(vectors) > 1 else nan,
    }
    return torch.stack([measured.get(name, nan).float() for name in MEASURES])


@torch.no_grad()
def diagnose(model: DenseCL, output: Output, first: Views, second: Views) -> Float[Tensor, "measures"]:
    """The `MEASURES` of one step, on its device. A measure that means nothing for the method is nan.

    Args:
        model: gave the output.
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
    feature_vector = F.normalize(query_features.mean(dim=(2, 3)), dim=1)
    query_vector, key_vector = (F.normalize(side.vector.float(), dim=1) for side in (output.query, output.key))
    cells = F.normalize(query_features.flatten(2).transpose(1, 2), dim=2)  # without a dense head, the features
    if output.query.cells is not None and output.key.cells is not None:
        cells, key_cells = (F.normalize(side.float(), dim=2) for side in (output.query.cells, output.key.cells))
        positive = key_cells.gather(1, output.match[:, :, None].expand_as(cells))
        dense_positive = ((cells * positive).sum(dim=2) * output.valid).sum() / output.valid.sum()
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
        "feature_spread": spread(feature_vector) if len(output.match) > 1 else nan,
    }
    return torch.stack([torch.as_tensor(measured[name], device=device).float() for name in MEASURES])


def chance_losses(
    model: DenseCL, output: Output, first: Views, second: Views
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """The chance level of the global and the dense loss: ln of the number of candidates; nan if it has none."""
    nan = torch.full((), math.nan, device=output.loss.device)
    rows, cols = output.query.features.shape[2:]
    batch = world_size() * len(output.match)
    dense = output.query.cells is not None
    if model.method.teacher_temperature is not None:  # every prototype equally likely
        chance = [math.log(objective.dim) for objective in (model.global_objective, model.dense_objective) if objective]
        return nan.new_tensor(chance[0]), nan.new_tensor(chance[1]) if dense else nan
    if not model.method.dense_negatives:
        return nan, nan
    views = 1 if model.method.queue else 2  # without a queue, both views of the batch are negatives
    if model.global_queue is not None:
        global_chance = nan.new_tensor(math.log(len(model.global_queue.keys) + 1))
    else:
        global_chance = nan.new_tensor(math.log(views * batch - 1))
    if not dense:
        return global_chance, nan
    if output.query.earlier and model.dense_queue is None and model.dense_negatives != "pooled":
        return global_chance, nan  # each stage has another number of cells
    if model.dense_queue is not None:
        return global_chance, nan.new_tensor(math.log(len(model.dense_queue.keys) + 1))
    if model.dense_negatives == "pooled":
        return global_chance, nan.new_tensor(math.log(views * (batch - 1) + 1))
    if model.dense_softening == "weighted-negatives":
        return global_chance, nan  # negatives count for less than one
    excluded = model.matcher.not_negative(cell_distances(first, second, rows, cols))
    excluded = excluded.scatter(2, output.match[:, :, None], False).sum(dim=2)  # all but the positive
    if views == 2:
        excluded = excluded + model.matcher.not_negative(cell_distances(first, first, rows, cols)).sum(dim=2)
    candidates = views * rows * cols * batch - excluded
    return global_chance, (candidates.log() * output.valid).sum() / output.valid.sum()


def spread(vectors: Float[Tensor, "*batch vectors dim"]) -> Float[Tensor, "*batch"]:
    """How far L2-normalized vectors lie apart: their variance, from 0 (all the same) to 1.

    It equals 1 - |mean|^2, which is 1 - the mean cosine similarity over all pairs, those of a vector with itself
    included.
    """
    centered = vectors.float() - vectors.float().mean(dim=-2, keepdim=True)  # 1 - |mean|^2 would round to 0 too early
    return centered.square().sum(dim=-1).mean(dim=-1)


def similarity_to_others(
    query: Float[Tensor, "batch vectors dim"], key: Float[Tensor, "batch vectors dim"]
) -> Float[Tensor, ""]:
    """Mean similarity between the vectors of an image and those of the batch's *other* images; nan for one image.

    It needs no matrix of all pairs: the mean of all products is the product of the means.
    """
    batch = len(query)
    if batch == 1:
        return query.new_tensor(math.nan)
    query_means, key_means = query.mean(dim=1), key.mean(dim=1)
    everything = query_means.sum(dim=0) @ key_means.sum(dim=0)
    return (everything - (query_means * key_means).sum()) / (batch * (batch - 1))
