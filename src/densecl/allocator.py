"""Settings of glibc's memory allocator for training on a CPU."""

from __future__ import annotations

import ctypes
import os

#: glibc's parameters [mallopt(3)].
TRIM_THRESHOLD, TOP_PAD, MMAP_THRESHOLD = -1, -2, -3

#: Blocks of at least this many bytes get pages of their own, which go back to the system when they are freed. The first
#: value that glibc accepts is used: before version 2.35 it accepts none above 32 MiB.
LARGE = (2**30, 2**25)

#: The values that glibc reaches by itself after a while. Its initial threshold of 128 KiB would give every image pages
#: of its own.
ITS_OWN = {MMAP_THRESHOLD: 2**25, TRIM_THRESHOLD: 2**26, TOP_PAD: 0}


def keep_freed_memory() -> None:
    """Lets this process keep the memory of freed tensors for later ones, for the rest of its life.

    By default glibc returns large blocks at once. The system then has to hand out zeroed pages again, one by one, in
    every layer of every step. That takes a fifth of the time of a ResNet-18 on two cores (docs/speed.md). The price:
    the peak grows by a tenth, and the process holds it until it ends. Does nothing without glibc, or where the user has
    set such limits in the environment.
    """
    mallopt = _mallopt()
    if mallopt is not None and any(mallopt(MMAP_THRESHOLD, size) for size in LARGE):
        mallopt(TRIM_THRESHOLD, 2**31 - 1)
        mallopt(TOP_PAD, 2**26)


def return_freed_memory() -> None:
    """Undoes `keep_freed_memory` in a process that was forked from one that keeps its memory."""
    mallopt = _mallopt()
    if mallopt is not None:
        for parameter, size in ITS_OWN.items():
            mallopt(parameter, size)


def _mallopt() -> ctypes._FuncPointer | None:
    """glibc's function, if there is one and the user has set none of its parameters."""
    if os.name != "posix" or any(name.startswith("MALLOC_") for name in os.environ):
        return None
    if "glibc.malloc" in os.environ.get("GLIBC_TUNABLES", ""):
        return None
    return getattr(ctypes.CDLL(None), "mallopt", None)
