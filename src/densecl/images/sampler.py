"""Which images each step uses. It follows from the seed and the step alone, so a run can resume anywhere."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction

import numpy as np
from torch.utils.data import Sampler

from densecl.errors import UserError
from densecl.images.streams import random_stream


class StepSampler(Sampler[list[tuple[int, int]]]):
    """The batches of the steps from `start_step` on, each a list of (epoch, index).

    In each epoch all images come once, in an order that depends on (seed, epoch). The orders of all epochs form one
    long row, which is cut into batches. So a batch may end one epoch and begin the next, and an image may then stand in
    it twice. Of each batch, rank r of n takes the rth of n equal parts.

    Args:
        size: number of images.
        batch_size: images per step, over all ranks together.
        seed: fixes the orders.
        start_step: the first step to give, counted from 0 at the start of the run.
        stop_step: one past the last step; None: without end.
        rank: of this process.
        world_size: number of processes.

    Raises:
        UserError: the batch is larger than the data set or cannot be shared equally.
    """

    def __init__(
        self,
        size: int,
        batch_size: int,
        *,
        seed: int,
        start_step: int = 0,
        stop_step: int | None = None,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        if batch_size < 1:
            raise UserError(f"batch size {batch_size}: it must be at least 1")
        if batch_size > size:
            raise UserError(f"batch size {batch_size} is larger than the data set ({size} images): use a smaller one")
        if batch_size % world_size:
            raise UserError(f"batch size {batch_size} cannot be shared equally by {world_size} devices")
        self.size = size
        self.batch_size = batch_size
        self.seed = seed
        self.start_step = start_step
        self.stop_step = stop_step
        self.rank = rank
        self.world_size = world_size
        self.steps_per_epoch = Fraction(size, batch_size)

    def __len__(self) -> int:
        if self.stop_step is None:
            raise TypeError("a sampler without a last step has no length")
        return max(0, self.stop_step - self.start_step)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        per_rank = self.batch_size // self.world_size
        orders: dict[int, np.ndarray] = {}
        step = self.start_step
        while self.stop_step is None or step < self.stop_step:
            first = step * self.batch_size + self.rank * per_rank  # place in the row of all epochs
            batch = []
            for epoch in range(first // self.size, (first + per_rank - 1) // self.size + 1):
                if epoch not in orders:
                    orders = {epoch: random_stream(self.seed, epoch).permutation(self.size)}
                start = epoch * self.size
                order = orders[epoch][max(0, first - start) : first + per_rank - start]
                batch += [(epoch, index) for index in order.tolist()]
            yield batch
            step += 1
