from __future__ import annotations

import torch
from torch import nn

from densecl.training.frozen_time import FrozenTime


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


class Slow(nn.Module):
    def __init__(self, clock: Clock) -> None:
        super().__init__()
        self.clock = clock

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        self.clock.now += 3.0
        return pixels


def test_the_share_is_that_of_the_time_since_the_last_row() -> None:
    clock = Clock()
    networks = [Slow(clock), Slow(clock)]
    measured = FrozenTime(networks, clock)
    clock.now += 100
    measured.start()
    networks[0](torch.zeros(1))
    networks[1](torch.zeros(1))
    clock.now += 6
    assert measured.share() == 0.5
    clock.now += 9
    networks[1](torch.zeros(1))
    assert measured.share() == 0.25
    assert (measured.seconds, measured.total) == (9, 24)
    assert measured.share() == 0.0  # no time has passed
