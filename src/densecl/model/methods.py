"""The self-supervised methods side by side. Each is an objective and a row of traits; `DenseCL` runs any of them.

How to add one: docs/architecture.md.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeVar

from torch import nn

from densecl.choices import DenseNegatives
from densecl.errors import UserError, nearest
from densecl.model.heads import HeadShape
from densecl.model.objectives import BYOL, DINO, BarlowTwins, MoCo, Objective, SimCLR, SimSiam, VICReg

Value = TypeVar("Value")

#: Where keys come from: a moving average of the query encoder, the query encoder itself without gradient, or the query
#: encoder itself with gradient.
Keys = Literal["momentum-encoder", "stop-gradient", "shared-weights"]


@dataclass(frozen=True, kw_only=True)
class Method:
    """The traits of a method. Values are those of its paper for ImageNet and ResNet-50 (DINO: ViT-S)."""

    name: str
    source: str
    objective: type[Objective]
    keys: Keys
    projector: HeadShape
    dense_projector: HeadShape | None = None  # None: as for image vectors
    predictor: HeadShape | None = None  # after the query's projector
    symmetric: bool  # whether both views are queries by default
    l2_normalize: bool = False  # whether the vectors get length 1; not before a predictor
    dense_negatives: tuple[DenseNegatives, ...] = ()  # what a cell's negatives may be, the paper's first
    queue: bool = False  # whether negatives come from a queue of keys
    statistics: bool = False  # whether the loss takes statistics over many vectors
    temperature: float | None = None
    teacher_temperature: tuple[float, float] | None = None  # at the start, and after its warm-up
    key_momentum: float | None = None  # of the momentum encoder, at the start
    key_momentum_end: float | None = None  # where a cosine takes it; None: it stays
    optimizer: str  # of the paper; learning rate and weight decay are meant for it
    learning_rate: float  # at batch size 256
    weight_decay: float

    def __post_init__(self) -> None:
        if self.keys == "momentum-encoder" and self.key_momentum is None:
            raise UserError(f"The method {self.name} has a momentum encoder, so it needs a key_momentum.")

    @property
    def teacher_temperature_end(self) -> float | None:
        """The teacher's temperature after its warm-up."""
        return self.teacher_temperature[1] if self.teacher_temperature is not None else None

    @property
    def batch_norm(self) -> bool:
        """Whether its heads have batch norm, which needs more than one vector."""
        return any(head is not None and (head.norm or head.last_norm) for head in (self.projector, self.predictor))

    @property
    def compares_directions(self) -> bool:
        """Whether its objective compares the directions of two vectors, whatever their lengths."""
        return self.l2_normalize or self.predictor is not None

    @property
    def needs_batch_in(self) -> str:
        """Where statistics are taken over the batch, in words."""
        return "in its loss" if self.statistics else "in its heads"

    @property
    def least_batch(self) -> int:
        """The fewest images that a process can train on."""
        return 2 if self.batch_norm or self.statistics else 1

    def given_or_own(self, name: str, given: Value | None, own: Value | None) -> Value | None:
        """The value that was given for a setting, or the method's own. None if the method has no such setting.

        Raises:
            UserError: a value was given for a setting that the method does not have.
        """
        if own is None and given is not None:
            flag = "--" + name.replace("_", "-")
            raise UserError(f"{flag} {given}: {self.name} has no {name.replace('_', ' ')}. Leave it out.")
        return own if given is None else given


# fmt: off
METHODS: dict[str, Method] = {
    method.name: method
    for method in (
        # contrast with negatives ------------------------------------------------------------------------------------
        Method(
            name="moco", source="MoCo v2: Chen et al. 2020 (arXiv 2003.04297); dense: Wang et al. 2021 (DenseCL)",
            objective=MoCo, keys="momentum-encoder", symmetric=False, l2_normalize=True,
            projector=HeadShape(layers=2, hidden_ratio=1.0, dim=128),
            queue=True, dense_negatives=("pooled", "cells", "batch", "others"), temperature=0.2, key_momentum=0.999,
            optimizer="sgd", learning_rate=0.03, weight_decay=1e-4,
        ),
        Method(
            name="simclr", source="Chen et al. 2020 (arXiv 2002.05709)",
            objective=SimCLR, keys="shared-weights", symmetric=True, l2_normalize=True,
            projector=HeadShape(layers=2, hidden_ratio=1.0, dim=128, norm=True),
            dense_negatives=("batch", "others", "pooled"), temperature=0.1,
            optimizer="lars", learning_rate=0.3, weight_decay=1e-6,
        ),
        # prediction -------------------------------------------------------------------------------------------------
        Method(
            name="byol", source="Grill et al. 2020 (arXiv 2006.07733); dense: PixPro, Xie et al. 2021",
            objective=BYOL, keys="momentum-encoder", symmetric=True,
            projector=HeadShape(layers=2, hidden_ratio=2.0, dim=256, norm=True),
            predictor=HeadShape(layers=2, hidden_ratio=2.0, dim=256, norm=True),
            key_momentum=0.996, key_momentum_end=1.0,
            optimizer="lars", learning_rate=0.2, weight_decay=1.5e-6,
        ),
        Method(
            name="simsiam", source="Chen & He 2021 (arXiv 2011.10566); dense: DenseSiam, Zhang et al. 2022",
            objective=SimSiam, keys="stop-gradient", symmetric=True,
            projector=HeadShape(layers=3, hidden_ratio=1.0, dim_ratio=1.0, norm=True, last_norm=True),
            predictor=HeadShape(layers=2, hidden_ratio=0.25, dim_ratio=1.0, norm=True),
            optimizer="sgd", learning_rate=0.05, weight_decay=1e-4,
        ),
        # statistics of the dimensions -------------------------------------------------------------------------------
        Method(
            name="barlow", source="Barlow Twins: Zbontar et al. 2021 (arXiv 2103.03230)",
            objective=BarlowTwins, keys="shared-weights", symmetric=True, statistics=True,
            projector=HeadShape(layers=3, hidden_ratio=4.0, dim_ratio=4.0, norm=True),
            dense_projector=HeadShape(layers=3, hidden=512, dim=512, norm=True),
            optimizer="lars", learning_rate=0.2, weight_decay=1.5e-6,
        ),
        Method(
            name="vicreg", source="Bardes et al. 2022 (arXiv 2105.04906); dense: VICRegL (arXiv 2210.01571)",
            objective=VICReg, keys="shared-weights", symmetric=True, statistics=True,
            projector=HeadShape(layers=3, hidden_ratio=4.0, dim_ratio=4.0, norm=True),
            dense_projector=HeadShape(layers=3, hidden=512, dim=512, norm=True),
            optimizer="lars", learning_rate=0.2, weight_decay=1e-6,
        ),
        # self-distillation ------------------------------------------------------------------------------------------
        Method(
            name="dino", source="Caron et al. 2021 (arXiv 2104.14294); dense: EsViT, Li et al. 2022",
            objective=DINO, keys="momentum-encoder", symmetric=True,
            projector=HeadShape(layers=3, hidden=2048, dim=4096, activation=nn.GELU, prototypes=True),
            temperature=0.1, teacher_temperature=(0.04, 0.07), key_momentum=0.996, key_momentum_end=1.0,
            optimizer="adamw", learning_rate=5e-4, weight_decay=0.04,
        ),
    )
}
# fmt: on


def find_method(name: str) -> Method:
    """The method of that name.

    Raises:
        UserError: if there is none.
    """
    if name not in METHODS:
        raise UserError(f"--method is one of {', '.join(METHODS)}, not '{name}'.{nearest(name, METHODS)}")
    return METHODS[name]
