"""Following frozen networks: how a student's cells are compared with theirs, and what that adds to the loss.

    loss = (1 - teacher_weight) * self-supervised loss + teacher_weight * teacher loss + anchor_weight * anchor loss

A teacher is another network. An anchor is the network that the run started from.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from densecl.choices import AnchorForm, TeacherObjective
from densecl.errors import UserError
from densecl.model.backbone import Backbone
from densecl.model.distributed import mean_over_processes
from densecl.model.encoder import at_least_float32, l2_normalize
from densecl.model.frozen import Frozen

#: A feature that varies by less than this, beside the mean of all features, is taken for constant.
CONSTANT = 1e-4


def cosine(student: Float[Tensor, "batch cells dim"], target: Float[Tensor, "batch cells dim"]) -> Float[Tensor, ""]:
    """1 - the mean cosine similarity of a cell and its target."""
    return 1 - (l2_normalize(student) * l2_normalize(target)).sum(dim=2).mean()


def relational(
    student: Float[Tensor, "batch cells channels"], target: Float[Tensor, "batch cells dim"]
) -> Float[Tensor, ""]:
    """The mean squared difference of two tables: how similar each two cells of an image are, here and in the target.

    The vectors may have different lengths [DINOv3: Gram anchoring].
    """
    ours, theirs = l2_normalize(student), l2_normalize(target)
    return (ours @ ours.transpose(1, 2) - theirs @ theirs.transpose(1, 2)).square().mean()


def standardized(maps: Float[Tensor, "batch dim rows cols"]) -> Float[Tensor, "batch dim rows cols"]:
    """Each feature at mean 0 and deviation 1 over the cells of all images. One that is the same in all cells is 0.

    Otherwise what all cells have in common, and the few features that vary most, decide where a cell points [Theia;
    UNIC; PHI-S]. The images are those of all processes. Mean and deviation pass no gradient on. What is not finite
    stays so, for the loss to show it.
    """
    with torch.no_grad():
        mean = mean_over_processes(maps.mean(dim=(0, 2, 3), keepdim=True))
        deviation = mean_over_processes((maps - mean).square().mean(dim=(0, 2, 3), keepdim=True)).sqrt()
        rounding = torch.finfo(maps.dtype).eps * mean.abs()
        least = torch.maximum(CONSTANT * deviation.mean(), rounding)
    return torch.where(deviation <= least, 0, (maps - mean) / deviation.clamp(min=least))


class Comparison(NamedTuple):
    """A way to compare the student's cells with a frozen network's, at the same places."""

    loss: Callable[[Tensor, Tensor], Tensor]
    needs_same_space: bool  # so that a student of other dimensions needs a head


COSINE = Comparison(cosine, needs_same_space=True)
RELATIONAL = Comparison(relational, needs_same_space=False)

#: The loss of each is the sum of its comparisons.
TEACHER_OBJECTIVES: Mapping[TeacherObjective, tuple[Comparison, ...]] = {
    "cosine": (COSINE,),
    "relational": (RELATIONAL,),
    "both": (COSINE, RELATIONAL),
}
ANCHOR_FORMS: Mapping[AnchorForm, tuple[Comparison, ...]] = {"gram": (RELATIONAL,), "cells": (COSINE,)}


class Followed(NamedTuple):
    """The loss between a student and a frozen network, and how far apart they are: 1 - the mean cosine of the cells.

    The distance is None where a head lies between the two.
    """

    loss: Float[Tensor, ""]
    distance: Float[Tensor, ""] | None


class Follower(nn.Module):
    """Compares a student's cells with those of a frozen network, on the finer of their two grids.

    Args:
        frozen: the network to follow.
        channels: of the student's feature map.
        comparisons: what the loss is the sum of.
        head: put a linear head on the student's cells for comparisons that need the same space. It is no part of the
            result.
        name: of the frozen network, for messages.
        standardize: its features over the cells of a batch, and the student's where they are compared without a head.
    """

    def __init__(
        self,
        frozen: Frozen,
        channels: int,
        comparisons: Sequence[Comparison],
        *,
        head: bool,
        name: str,
        standardize: bool = False,
    ) -> None:
        super().__init__()
        self.frozen = frozen
        self.comparisons = comparisons
        self.name = name
        self.standardize = standardize
        self.same_space = not head
        needed = head and any(one.needs_same_space for one in comparisons)
        self.head = nn.Conv2d(channels, frozen.network.channels, kernel_size=1) if needed else None

    def forward(
        self,
        features: Float[Tensor, "batch channels rows cols"],
        pixels: Float[Tensor, "batch _ height width"],
        target: Float[Tensor, "batch _ _ _"] | None = None,
    ) -> Followed:
        """Compares the student's map of some views with the frozen network's; it is made here if it is not given."""
        if target is None:
            target = self.frozen(pixels)
        own, mapped = features, features if self.head is None else self.head(features)
        with torch.autocast(features.device.type, enabled=False):
            if self.standardize:
                target = standardized(at_least_float32(target))
                if not all(one.needs_same_space for one in self.comparisons):
                    own = standardized(at_least_float32(own))
            own, mapped, target = on_the_finer_grid(own, mapped, target)
            losses = [one.loss(mapped if one.needs_same_space else own, target) for one in self.comparisons]
            distance = cosine(own.detach(), target) if self.same_space else None
        return Followed(torch.stack(losses).sum(), distance)

    def get_extra_state(self) -> str:
        """What tells the frozen weights from others. They themselves are not in a checkpoint."""
        return self.frozen.digest

    def set_extra_state(self, state: str) -> None:
        if state != self.frozen.digest:
            raise UserError(
                f"The weights of {self.name} are not those that the run began with. Give the same, or start a new run."
            )


def on_the_finer_grid(*maps: Float[Tensor, "batch _ _ _"]) -> list[Float[Tensor, "batch cells _"]]:
    """The cells of maps of the same views, each resampled to the most rows and columns that one of them has."""
    rows, cols = (max(one.shape[side] for one in maps) for side in (2, 3))
    resampled = [
        one if one.shape[2:] == (rows, cols) else F.interpolate(one, size=(rows, cols), mode="bilinear")
        for one in map(at_least_float32, maps)
    ]
    return [one.flatten(2).transpose(1, 2) for one in resampled]


class Guided(NamedTuple):
    """What frozen networks make of the loss of a step. None: there is no such network."""

    loss: Float[Tensor, ""]  # the weighted sum
    teacher_loss: Float[Tensor, ""] | None
    anchor_loss: Float[Tensor, ""] | None
    moved: Float[Tensor, ""] | None  # how far the features are from those of the start: 1 - mean cosine of the cells


class Guidance(nn.Module):
    """The frozen networks that a run follows: a teacher, an anchor, or both.

    Args:
        teacher: follows another network.
        teacher_weight: of its loss, 0 to 1. The self-supervised loss has the rest.
        anchor: follows the network that the run started from.
        anchor_weight: of its loss, which is added.
    """

    def __init__(
        self,
        *,
        teacher: Follower | None = None,
        teacher_weight: float = 0.0,
        anchor: Follower | None = None,
        anchor_weight: float = 0.0,
    ) -> None:
        super().__init__()
        self.teacher, self.anchor = teacher, anchor
        self.teacher_weight = teacher_weight if teacher is not None else 0.0
        self.anchor_weight = anchor_weight

    def forward(
        self,
        features: Float[Tensor, "batch channels rows cols"],
        pixels: Float[Tensor, "batch _ height width"],
        own_loss: Float[Tensor, ""],
        taught: Float[Tensor, "batch _ _ _"] | None = None,
    ) -> Guided:
        """The loss with what the frozen networks add, from the backbone's map of one view of each image.

        Args:
            features: that map.
            pixels: the views.
            own_loss: the self-supervised one.
            taught: the teacher's cells of these views, if they are known; without them the teacher sees the views.
        """
        loss = (1 - self.teacher_weight) * own_loss
        teacher_loss = anchor_loss = moved = None
        if self.teacher is not None:
            teacher_loss = self.teacher(features, pixels, taught).loss
            loss = loss + self.teacher_weight * teacher_loss
        if self.anchor is not None:
            anchor_loss, moved = self.anchor(features, pixels)
            loss = loss + self.anchor_weight * anchor_loss
        return Guided(loss, teacher_loss, anchor_loss, moved)

    @property
    def frozen(self) -> list[Frozen]:
        """The networks that are followed."""
        return [one.frozen for one in (self.teacher, self.anchor) if one is not None]


class Distilled(NamedTuple):
    """The loss of one step of distillation alone, and the backbone's map of the views."""

    loss: Float[Tensor, ""]
    features: Float[Tensor, "batch channels rows cols"]
    guided: Guided


class Distillation(nn.Module):
    """A backbone that follows a teacher, and has no loss of its own: no second view, no keys, no queues."""

    def __init__(self, backbone: Backbone, guidance: Guidance) -> None:
        super().__init__()
        self.backbone = backbone
        self.guidance = guidance

    def forward(
        self,
        pixels: Float[Tensor, "batch channels height width"],
        taught: Float[Tensor, "batch _ _ _"] | None = None,
    ) -> Distilled:
        """One step, on one view of each image, and the teacher's cells of them if they are known."""
        features = self.backbone(pixels)
        guided = self.guidance(features, pixels, features.new_zeros((), dtype=torch.float32), taught)
        return Distilled(guided.loss, features, guided)

    def compile_encoders(self) -> None:
        """Compiles the backbone at its first use (torch.compile), in place: names and state stay."""
        self.backbone.compile()
