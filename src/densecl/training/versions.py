"""What a run was made with: versions, processor, memory. Its log begins with it."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from collections.abc import Iterator

import torch

from densecl.cores import available_cores
from densecl.names import counted
from densecl.version import __version__

#: Distributions whose versions may bear on the result.
NAMED = ("torchvision", "timm", "lightning", "numpy", "pillow")


def made_with() -> Iterator[str]:
    """Lines for the log."""
    others = ", ".join(f"{name} {_version(name)}" for name in NAMED)
    yield f"densecl {__version__}, Python {platform.python_version()}, torch {torch.__version__}, {others}"
    memory = ""
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        memory = f", {os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE') / 2**30:.0f} GiB"
    yield f"{platform.platform()}, {counted(available_cores(), 'core')}{memory}"
    if torch.cuda.is_available():
        for number in range(torch.cuda.device_count()):
            gpu = torch.cuda.get_device_properties(number)
            yield f"GPU {number}: {gpu.name}, {gpu.total_memory / 2**30:.0f} GiB, CUDA {torch.version.cuda}"


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:  # built into the user's own program
        return "of unknown version"
