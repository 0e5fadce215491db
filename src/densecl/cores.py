"""How many cores this process may use. In a container or a cluster job these are fewer than the machine has."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path


def available_cores() -> int:
    """Cores this process may use: those of its affinity, at most as many as its control group allows."""
    return max(1, math.ceil(min(allowed_cores(), quota())))


def allowed_cores() -> int:
    """Cores of this process's affinity. Most programs look only at these."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def quota(root: Path = Path("/")) -> float:
    """The number of cores that Linux's control groups allow (docker's ``--cpus``); infinite without a limit.

    The limits of the groups above count, too. In a container, the path of this process's group may exist on the host
    only. Its limit is then found at the top.

    Args:
        root: of the file system; another one in tests.
    """
    try:
        own = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:  # no Linux
        return math.inf
    limits = [math.inf]
    for line in own:
        _, controllers, path = line.split(":", 2)
        mount = root / "sys/fs/cgroup"
        if controllers == "":  # version 2
            groups = [*_upwards(mount, path), *_upwards(mount / "unified", path)]
            limits += [_ratio(group / "cpu.max") for group in groups]
        elif "cpu" in controllers.split(","):
            for group in (*_upwards(mount / "cpu", path), *_upwards(mount / controllers, path)):
                limits.append(_ratio(group / "cpu.cfs_quota_us", group / "cpu.cfs_period_us"))
    return min(limits)


def _upwards(mount: Path, group: str) -> Iterator[Path]:
    folder = mount / group.lstrip("/")
    yield folder
    while folder != mount and folder != folder.parent:
        folder = folder.parent
        yield folder


def _ratio(*files: Path) -> float:
    """Quota / period. A missing file, "max" and -1 mean that there is no limit."""
    try:
        quota, period = (int(word) for file in files for word in file.read_text().split())
    except (OSError, ValueError):
        return math.inf
    return quota / period if quota > 0 and period > 0 else math.inf
