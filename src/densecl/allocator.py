"""How glibc hands out memory, set for training on a CPU."""

from __future__ import annotations

import ctypes
import os

#: glibc's names for what is set [mallopt(3)].
TRIM_THRESHOLD, TOP_PAD, MMAP_THRESHOLD = -1, -2, -3

#: The smallest blocks, in bytes, that get pages of their own, which go back to the system when they are freed. Before
#: version 2.35 glibc takes no number above 32 MiB, which is what it comes to by itself as such blocks are freed.
LARGE = (2**30, 2**25)

#: What glibc comes to by itself: with what it begins with, 128 KiB, every image would get pages of its own.
ITS_OWN = {MMAP_THRESHOLD: 2**25, TRIM_THRESHOLD: 2**26, TOP_PAD: 0}


def keep_freed_memory() -> None:
    """Lets this process keep the memory of freed tensors for the next ones, for as long as it lives.

    glibc gives large blocks back at once, and the system hands out zeroed pages anew, one by one, in every layer of
    every step: a fifth of the time of a ResNet-18 on two cores (docs/speed.md). The peak grows by a tenth, and what was
    the peak stays taken. Does nothing without glibc, or where the user has set limits in the environment.
    """
    mallopt = _mallopt()
    if mallopt is not None and any(mallopt(MMAP_THRESHOLD, size) for size in LARGE):
        mallopt(TRIM_THRESHOLD, 2**31 - 1)
        mallopt(TOP_PAD, 2**26)


def return_freed_memory() -> None:
    """Undoes it, for a process forked from one that keeps its memory."""
    mallopt = _mallopt()
    if mallopt is not None:
        for parameter, size in ITS_OWN.items():
            mallopt(parameter, size)


def _mallopt() -> ctypes._FuncPointer | None:
    """glibc's function, if it is there and the user has not set the same."""
    if os.name != "posix" or any(name.startswith("MALLOC_") for name in os.environ):
        return None
    if "glibc.malloc" in os.environ.get("GLIBC_TUNABLES", ""):
        return None
    return getattr(ctypes.CDLL(None), "mallopt", None)
