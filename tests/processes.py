"""Runs a function on two real processes that talk over gloo."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp


def on_two_processes(function: Callable[..., object], *arguments: object) -> list[Any]:
    """Calls ``function(rank, *arguments)`` on both and returns what each returned (tensors, numbers, containers)."""
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(_process, args=(folder, function, arguments), nprocs=2)
        return [torch.load(Path(folder, f"result{rank}"), weights_only=True) for rank in range(2)]


def _process(rank: int, folder: str, function: Callable[..., object], arguments: tuple[object, ...]) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    torch.save(function(rank, *arguments), Path(folder, f"result{rank}"))
    dist.barrier()
    dist.destroy_process_group()
