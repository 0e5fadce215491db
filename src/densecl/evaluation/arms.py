"""What is compared with what: runs that differ in their seed are one arm. Loads nothing heavy."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from typing import NamedTuple

from densecl.errors import UserError, nearest
from densecl.names import shown

#: The seed in the name of a run, such as a-seed0 or seed_0/a.
_SEED = re.compile(r"(seed[-_=]?)(\d+)", re.IGNORECASE)


class Arm(NamedTuple):
    """Weights that are compared as one."""

    name: str  # of several runs: with * for the seed
    members: tuple[str, ...]  # names of the weights
    seeds: tuple[int, ...]  # of the runs; empty if these are no runs of one arm


def arms_of(names: Sequence[str]) -> list[Arm]:
    """Group weights whose names differ only in the number behind "seed".

    If all of them are then one arm, each is an arm of its own, because there would be nothing to compare.
    """
    runs: dict[str, dict[str, int]] = {}  # name in common -> name of the weights -> seed
    for name in names:
        *_, last = (None, *_SEED.finditer(name))
        if last is not None:
            common = f"{name[: last.start()]}{last[1]}*{name[last.end() :]}"
            runs.setdefault(common, {})[name] = int(last[2])
    arms: dict[str, Arm] = {name: Arm(name, (name,), ()) for name in names}
    for common, seeds in runs.items():
        if 1 < len(seeds) < len(names) and len(set(seeds.values())) == len(seeds):
            arm = Arm(common, tuple(seeds), tuple(seeds.values()))
            arms |= dict.fromkeys(seeds, arm)
    return list(dict.fromkeys(arms.values()))


def find_baseline(arms: Sequence[Arm], asked: Sequence[str]) -> Arm:
    """The arm of these names, or the first one if none is given.

    Raises:
        UserError: a name that is none of the weights, or names of several arms.
    """
    if not asked:
        return arms[0]
    known = {os.path.normpath(name): arm for arm in arms for name in (arm.name, *arm.members)}
    for name in asked:
        if os.path.normpath(name) not in known:
            there = ", ".join(shown(member) for arm in arms for member in arm.members)
            hint = nearest(name, known) or " Name it among WEIGHTS, too."
            raise UserError(f"--baseline {shown(name)} is none of the weights: {there}.{hint}")
    found = list(dict.fromkeys(known[os.path.normpath(name)] for name in asked))
    if len(found) > 1:
        raise UserError(
            f"--baseline takes one of the weights, or runs whose names differ only in their seed, not both"
            f" {shown(found[0].name)} and {shown(found[1].name)}."
        )
    return found[0]
