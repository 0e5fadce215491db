"""How much of a run's time its frozen networks take."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn


class FrozenTime:
    """Measures the calls of some networks. On a GPU its own clock counts, without waiting for it in a step.

    Args:
        networks: whose calls are measured.
        now: a clock in seconds.
    """

    def __init__(self, networks: Sequence[nn.Module], now: Callable[[], float] = time.perf_counter) -> None:
        self._now = now
        self._seconds = 0.0
        self._calls: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []  # on a GPU: begin and end
        self._begun: Any = None
        self._since = now()
        self.seconds = self.total = 0.0  # of the networks, and of all: up to the last `share`
        for network in networks:
            network.register_forward_pre_hook(self._begin)
            network.register_forward_hook(self._end)

    def start(self) -> None:
        """From here on time counts."""
        self._seconds, self._since = 0.0, self._now()
        self._calls.clear()

    def share(self) -> float:
        """The fraction of the time since the last call of this. Call it when the device has finished."""
        seconds = self._seconds + sum(begin.elapsed_time(end) for begin, end in self._calls) / 1000
        now = self._now()
        passed = now - self._since
        self.seconds += seconds
        self.total += passed
        self.start()
        return seconds / passed if passed > 0 else 0.0

    def _begin(self, network: nn.Module, arguments: tuple[Any, ...]) -> None:
        self._begun = self._mark(arguments[0])

    def _end(self, network: nn.Module, arguments: tuple[Any, ...], result: Any) -> None:
        end = self._mark(arguments[0])
        if isinstance(end, float):
            self._seconds += end - self._begun
        else:
            self._calls.append((self._begun, end))

    def _mark(self, pixels: torch.Tensor) -> Any:
        if not pixels.is_cuda:
            return self._now()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event
