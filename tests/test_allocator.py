from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

from densecl import allocator

PROGRAM = """
import ctypes, torch
from densecl.allocator import keep_freed_memory

class Figures(ctypes.Structure):  # mallinfo2(3)
    _fields_ = [(name, ctypes.c_size_t) for name in (
        "heap", "free_chunks", "fast_chunks", "mapped_blocks", "mapped", "", "", "used", "free", "top",
    )]

mallinfo = ctypes.CDLL(None).mallinfo2
mallinfo.restype = Figures
keep_freed_memory()
before = mallinfo()
tensor = torch.zeros(2**24)  # 64 MiB
during = mallinfo()
del tensor
print(during.mapped - before.mapped >> 20, mallinfo().heap - before.heap >> 20)
"""

glibc_only = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc's settings")


def mapped_and_kept(**environment: str) -> tuple[int, int]:
    """MiB that a large tensor took from the system for itself alone, and MiB of heap that are left of it."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True, env={**os.environ, **environment}
    )
    mapped, kept = map(int, done.stdout.split())
    return mapped, kept


@glibc_only
def test_the_memory_of_a_freed_tensor_is_kept() -> None:
    mapped, kept = mapped_and_kept()
    assert mapped == 0
    assert kept >= 64


@glibc_only
def test_the_users_own_limits_stand() -> None:
    mapped, kept = mapped_and_kept(MALLOC_MMAP_THRESHOLD_="1048576")
    assert mapped >= 64
    assert kept < 64


def test_a_c_library_without_these_settings_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in allocator.OWN_CHOICE:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(allocator.ctypes, "CDLL", lambda name: object())
    allocator.keep_freed_memory()
