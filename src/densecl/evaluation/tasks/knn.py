"""k nearest neighbors: do images of one class have similar vectors? Nothing is trained.

Wu et al., "Unsupervised Feature Learning via Non-Parametric Instance Discrimination", CVPR 2018.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import ClassVar, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from densecl.borrowed import evaluating
from densecl.evaluation.classified import Partition, draw_partition, open_classified
from densecl.evaluation.dense import device_of, normalize
from densecl.evaluation.resampling import Tally
from densecl.evaluation.results import ALL, Result
from densecl.evaluation.settings import BATCH_SIZE
from densecl.evaluation.tasks.task import Context, Task, some_of
from densecl.evaluation.watched import watched
from densecl.evaluation.weights import Weights
from densecl.model.backbone import Backbone
from densecl.normalization import Normalization

#: How many images are used, and their side in pixels, unless others are asked for.
IMAGES = 2000
IMAGE_SIZE = 128


class KnnScores(NamedTuple):
    """How many images find their class, in percent."""

    accuracy: float
    chance: float  # of predicting the most common class for every image


class KnnTask(Task):
    use = "whole images by their neighbors, as for search"
    columns: ClassVar = {"accuracy": "accuracy", "chance": "majority\nclass"}

    def open(self, context: Context) -> None:
        settings = self.settings
        found = open_classified(
            context.data,
            settings.train_split,
            settings.test_split,
            channels=context.channels,
            size=settings.square(IMAGE_SIZE),
        )
        self.images = found.take(_draw_some(len(found), settings.images or IMAGES))
        if unfindable := self.images.unfindable(settings.all_seeds):
            context.note(f"{self.name}: no support image is of the class {some_of(unfindable)}, so nothing can find it")
        if self.images.is_drawn_singly():
            context.note(
                f"{self.name}: the queries are a fifth of the images, drawn at random. If images show nearly the same,"
                " as frames of a video do, that is too easy: docs/evaluate.md says how to keep them together"
            )

    def judge(self, weights: Weights, backbone: Backbone, seeds: Sequence[int]) -> Iterator[Result]:
        backbone.grid_at(self.images.size)  # raises for a size that the model does not take
        if self.images.test_split is not None:
            seeds = seeds[:1]  # nothing is drawn
        found = classify_by_neighbors(
            backbone,
            self.images,
            normalization=weights.normalization,
            batch_size=self.settings.batch_size or BATCH_SIZE,
            seeds=seeds,
            partition=self.images.partition,
            title=f"{weights.name}: features of the images",
        )
        fixed = self.images.test_split is not None and not weights.random
        for seed, (scores, right) in zip(seeds, found, strict=True):
            ones = np.ones((len(right), 1), dtype=np.int32)
            by_image = Tally(right.numpy()[:, None].astype(np.int32), ones) if fixed else None
            yield Result(self.name, weights.name, seed, ALL, scores._asdict(), by_image=by_image)


def _draw_some(count: int, most: int) -> list[int]:
    """Indices of at most so many images, the same ones every time."""
    order = torch.randperm(count, generator=torch.Generator().manual_seed(0))
    return sorted(order[:most].tolist())


def classify_by_neighbors(
    backbone: nn.Module,
    images: Sequence[tuple[Tensor, int]],
    *,
    normalization: Normalization,
    batch_size: int = 32,
    seeds: Sequence[int] = (0,),
    partition: Callable[[int], Partition] | None = None,
    title: str | None = None,
) -> list[tuple[KnnScores, Bool[Tensor, "batch"]]]:
    """Predict the class of each query image by a vote of its 20 nearest support images.

    The vector of an image is the mean over its feature map. The backbone goes over the images once for all seeds.

    Args:
        backbone: any module that returns a feature map "batch channels rows cols". It is left as it was.
        images: uint8 or uint16 images of one size, and their classes.
        normalization: the one that the backbone was trained with.
        batch_size: images that go through the backbone at a time.
        seeds: each draws another query and support set.
        partition: gives the query and support set for a seed. Not given: a fifth of the images is drawn as queries.
        title: stands in front of the progress on stderr. None: no progress is shown.

    Returns:
        For each seed the scores, and which of the query images found their class.

    Raises:
        UserError: there are fewer than two images.
    """
    partition = partition or functools.partial(draw_partition, range(len(images)))
    partitions = [partition(seed) for seed in seeds]
    device = device_of(backbone)
    vectors, labels = [], []
    with evaluating(backbone):
        for start in watched(range(0, len(images), batch_size), len(images), batch_size, title):
            some = [images[index] for index in range(start, min(start + batch_size, len(images)))]
            pixels = normalize([image for image, _ in some], normalization, device)
            vectors.append(F.normalize(backbone(pixels).float().mean(dim=(2, 3)), dim=1))
            labels += [label for _, label in some]
    all_vectors, all_labels = torch.cat(vectors), torch.tensor(labels, device=device)
    found = []
    for query, support in partitions:
        predicted = vote(all_vectors[query], all_vectors[support], all_labels[support])
        right = (predicted == all_labels[query]).cpu()
        majority = Counter(all_labels[support].tolist()).most_common(1)[0][0]
        chance = (all_labels[query] == majority).float().mean().item()
        found.append((KnnScores(100 * right.float().mean().item(), 100 * chance), right))
    return found


def vote(
    queries: Float[Tensor, "batch dim"],
    keys: Float[Tensor, "images dim"],
    labels: Int64[Tensor, "images"],
    k: int = 20,
    temperature: float = 0.07,
) -> Int64[Tensor, "batch"]:
    """The class with the most votes of the k nearest keys. Votes are weighted by exp(cosine / temperature).

    All vectors are L2-normalized.
    """
    similarity, nearest = (queries @ keys.T).topk(min(k, len(keys)), dim=1)
    votes = torch.zeros(len(queries), int(labels.max()) + 1, device=queries.device)
    votes.scatter_add_(1, labels[nearest], (similarity / temperature).softmax(dim=1))
    return votes.argmax(dim=1)
