"""What to call the machine that a row was measured on, and how to read the clock there."""

from __future__ import annotations

import os
import platform
import time

import torch


def this_machine() -> str:
    """What decides how fast a network trains, such as "x86_64, 2 cores, amx_bf16, torch 2.14.1"."""
    if torch.cuda.is_available():
        return f"{torch.cuda.get_device_name()}, {_cores()} cores, torch {torch.__version__}"
    capabilities = getattr(torch.cpu, "get_capabilities", dict)()  # torch 2.11 may lack this function
    best = next((name for name in ("amx_bf16", "avx512_bf16", "avx512_f", "avx2") if capabilities.get(name)), "")
    return ", ".join(filter(None, (platform.machine(), f"{_cores()} cores", best, f"torch {torch.__version__}")))


def now() -> float:
    """The time in seconds. Waits until a GPU, if there is one, has finished its work."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
