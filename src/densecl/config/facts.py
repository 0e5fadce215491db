"""What is known of the images, the backbone, the starting weights and the machine before anything is resolved."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from densecl.normalization import Normalization


@runtime_checkable
class Traits(Protocol):
    """What resolving needs to know of a method. `model.methods.Method` has it."""

    @property
    def name(self) -> str: ...
    @property
    def symmetric(self) -> bool: ...
    @property
    def queue(self) -> bool: ...
    @property
    def statistics(self) -> bool: ...
    @property
    def dense_negatives(self) -> Sequence[str]: ...
    @property
    def temperature(self) -> float | None: ...
    @property
    def teacher_temperature(self) -> tuple[float, float] | None: ...
    @property
    def key_momentum(self) -> float | None: ...
    @property
    def key_momentum_end(self) -> float | None: ...
    @property
    def optimizer(self) -> str: ...
    @property
    def learning_rate(self) -> float: ...
    @property
    def weight_decay(self) -> float: ...
    @property
    def least_batch(self) -> int: ...
    @property
    def needs_batch_in(self) -> str: ...


@dataclass(frozen=True, kw_only=True)
class Stage:
    """A feature map of the backbone with a dense loss, at the size of a view."""

    number: int
    grid: tuple[int, int]
    receptive_field: float


@dataclass(frozen=True, kw_only=True)
class Network:
    """What matters of a backbone."""

    name: str
    stride: int  # pixels per cell
    grid: tuple[int, int]  # rows and columns of the feature map at the size of a view
    last_grid: tuple[int, int] | None = None  # of the last map of all, if --dense-stage names an earlier one
    local_grid: tuple[int, int] | None = None  # at the size of a local crop
    receptive_field: float = math.inf  # pixels on a side that a cell of the map sees; infinity: the whole image
    stages: tuple[Stage, ...] = ()  # with --dense-stage; the map of the facts above is the last of them
    layers: int = 0  # that --layer-decay tells apart; 0: the network does not say which come first
    batch_norm: bool  # whether it has any
    batch_statistics: bool  # whether its batch norm uses the statistics of the batch
    always_batch_statistics: bool = False  # even where they are to be frozen: some of it keeps no statistics
    statistics_frozen: bool = False  # whether it came with those frozen
    statistics_seen: bool = True  # whether they are those of any images

    @property
    def followed_grid(self) -> tuple[int, int]:
        """Of the map that a teacher and an anchor are compared with: the last one, whatever --dense-stage."""
        return self.last_grid or self.grid


@dataclass(frozen=True, kw_only=True)
class Teacher:
    """What matters of a frozen network that the backbone follows."""

    name: str
    channels: int  # of the images that it takes
    grids: Mapping[int, tuple[int, int]]  # rows and columns of its feature map, by size; sizes that it takes
    license: str | None  # of its weights; None: nothing says it
    whose_license: str = ""  # who says so


@dataclass(frozen=True, kw_only=True)
class Machine:
    gpus: int  # that torch sees
    cores: int
    fast_in_bf16: bool
    why_bf16: str  # why it is fast or not
    fast_in_fp16: bool = False  # a GPU that is, without bf16


@dataclass(frozen=True, kw_only=True)
class Scale:
    """How large views show things, in pixels of a view per pixel of the image. Each is the median over some images."""

    smallest: float
    mean: float  # geometric
    largest: float
    use: float | None = None  # the scale of use, with --use-size


@dataclass(frozen=True, kw_only=True)
class Pixels:
    """What was measured on some of the images, as far as it is needed."""

    offset: float = 0.0  # how far values lie from 0, in their own standard deviations
    deep: bool = False  # whether most images have 16 bits
    measured: Normalization | None = None
    scale: Scale | None = None  # None: no image could be read


@dataclass(frozen=True, kw_only=True)
class Reliance:
    """How much of what tells an image's cells apart the starting weights lose when it changes: 0 nothing, 1 all."""

    color: float  # in gray
    light: float  # with another brightness and contrast


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What `rules` choose by."""

    images: int
    pixels: Pixels
    network: Network
    machine: Machine
    methods: Mapping[str, Traits]
    start: Normalization | None = None  # that the starting weights expect
    whose_start: str = ""  # who says so
    start_license: str | None = None  # of the starting weights; None: nothing says it
    whose_start_license: str = ""  # who says so
    reliance: Reliance | None = None  # of the starting weights; None: not measured
    teacher: Teacher | None = None
