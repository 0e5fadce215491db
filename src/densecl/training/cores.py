"""How many cores this process may use, which in a container or a cluster job is not all that the machine has."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path


def available_cores() -> int:
    """Cores that the scheduler gives this process: of its affinity, and no more than its control group's quota."""
    return max(1, math.ceil(min(allowed_cores(), quota())))


def allowed_cores() -> int:
    """Cores of this process's affinity, which programs take for all there are."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def quota(root: Path = Path("/")) -> float:
    """Seconds of computing a second that Linux's control groups allow (docker's ``--cpus``), infinite without a limit.

    A group is also bound by the limits of those above it. In a container the path of the own group may be one that only
    the host sees; its limit then stands at the top.
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
    """Quota over period; no file, "max" and -1 stand for no limit."""
    try:
        quota, period = (int(word) for file in files for word in file.read_text().split())
    except (OSError, ValueError):
        return math.inf
    return quota / period if quota > 0 and period > 0 else math.inf
