from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

from densecl import allocator

PROGRAM = """
import ctypes, torch
from densecl.allocator import keep_freed_memory, return_freed_memory

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

GLIBC = tuple(map(int, platform.libc_ver()[1].split("."))) if platform.libc_ver()[0] == "glibc" else ()
glibc_only = pytest.mark.skipif(GLIBC < (2, 35), reason="older ones keep blocks of up to 32 MiB only")


def mapped_and_kept(then: str = "", **environment: str) -> tuple[int, int]:
    """MiB that a large tensor took from the system for itself alone, and MiB of heap that are left of it."""
    program = PROGRAM.replace("keep_freed_memory()\n", f"keep_freed_memory()\n{then}\n")
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, env={**os.environ, **environment}
    )
    mapped, kept = map(int, done.stdout.split())
    return mapped, kept


@glibc_only
def test_the_memory_of_a_freed_tensor_is_kept() -> None:
    mapped, kept = mapped_and_kept()
    assert mapped == 0
    assert kept >= 64


@glibc_only
def test_a_process_that_is_to_return_it_does() -> None:
    mapped, kept = mapped_and_kept("return_freed_memory()")
    assert mapped >= 64
    assert kept < 64


@glibc_only
@pytest.mark.parametrize(
    "own", [{"MALLOC_MMAP_THRESHOLD_": "1048576"}, {"GLIBC_TUNABLES": "glibc.malloc.mmap_threshold=1048576"}]
)
def test_the_users_own_limits_stand(own: dict[str, str]) -> None:
    mapped, kept = mapped_and_kept(**own)
    assert mapped >= 64
    assert kept < 64


def test_an_old_glibc_takes_what_it_can(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def mallopt(parameter: int, size: int) -> int:
        asked.append((parameter, size))
        return size <= 2**25 or parameter != allocator.MMAP_THRESHOLD

    monkeypatch.setattr(allocator, "_mallopt", lambda: mallopt)
    allocator.keep_freed_memory()
    assert (allocator.MMAP_THRESHOLD, 2**25) in asked
    assert allocator.TRIM_THRESHOLD in dict(asked)


def test_a_c_library_without_these_settings_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(allocator.ctypes, "CDLL", lambda name: object())
    allocator.keep_freed_memory()
    allocator.return_freed_memory()
