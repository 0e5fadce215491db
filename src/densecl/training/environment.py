"""Settings and Lightning follow the processes that a launcher has started."""

from __future__ import annotations

import os
from typing import Any

from lightning.fabric.plugins.environments import ClusterEnvironment, SLURMEnvironment

from densecl.config.recipe import settle
from densecl.config.settings import Settings
from densecl.errors import UserError, flag
from densecl.names import counted
from densecl.training.world import World, find_world, number_in


def settle_devices(asked: Settings[Any]) -> Settings[Any]:
    """The settings with as many devices and nodes as there are processes, where they are left open.

    Raises:
        UserError: if it asks for other numbers than the launcher has started.
    """
    world = find_world()
    there = {"devices": 1, "nodes": 1} if world is None else {"devices": world.local_size, "nodes": world.nodes}
    open_ = {name for name in there if getattr(asked, name) == "auto" or name in asked.settled}
    for name, number in there.items():
        if world is not None and name not in open_ and getattr(asked, name) != number:
            raise UserError(
                f"{flag(name)} {getattr(asked, name)} contradicts {world.launcher}, which has started"
                f" {counted(world.size, 'process')} on {counted(world.nodes, 'machine')}. Leave {flag(name)} out, or"
                " start as many."
            )
    return settle(asked, **{name: there[name] for name in open_})


class Placed(ClusterEnvironment):
    """Tells Lightning what `World` says, whichever launcher started the processes."""

    def __init__(self, world: World) -> None:
        super().__init__()
        self.world = world

    @property
    def creates_processes_externally(self) -> bool:
        return True

    @property
    def main_address(self) -> str:
        """The address of the machine of the first process."""
        if "MASTER_ADDR" in os.environ:
            return os.environ["MASTER_ADDR"]
        nodes = next(filter(None, map(os.environ.get, ("SLURM_STEP_NODELIST", "SLURM_JOB_NODELIST"))), None)
        if self.world.nodes == 1:
            return "127.0.0.1"
        if nodes is None:
            raise UserError(f"{self.world.launcher}: set MASTER_ADDR to the address of the machine of process 0.")
        return SLURMEnvironment.resolve_root_node_address(nodes)

    @property
    def main_port(self) -> int:
        port = number_in("MASTER_PORT")
        if port is not None and port > 65535:
            raise UserError(f"MASTER_PORT={port} in the environment is no port: they go up to 65535.")
        job = os.environ.get("SLURM_JOB_ID", "")
        return port or (15000 + int(job[-4:]) if job.isdecimal() else 29500)

    @staticmethod
    def detect() -> bool:
        return find_world() is not None

    def world_size(self) -> int:
        return self.world.size

    def set_world_size(self, size: int) -> None:
        """Does nothing: the launcher has decided."""

    def global_rank(self) -> int:
        return self.world.rank

    def set_global_rank(self, rank: int) -> None:
        """Does nothing: the launcher has decided."""

    def local_rank(self) -> int:
        return self.world.local_rank

    def node_rank(self) -> int:
        return self.world.rank // self.world.local_size
