"""How many processes a run has and which one this is, from the environment variables of whoever started it."""

from __future__ import annotations

import math
import os
from typing import Any, NamedTuple

from lightning.fabric.plugins.environments import ClusterEnvironment, SLURMEnvironment

from densecl.config.recipe import settle
from densecl.config.settings import Settings
from densecl.errors import UserError, flag

#: Launchers and their variables: the rank of a process, the number of processes, and both on its machine alone.
#: `launch` sets the same ones as torchrun.
LAUNCHERS = (
    ("torchrun", ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")),
    ("mpirun", tuple(f"OMPI_COMM_WORLD_{word}" for word in ("RANK", "SIZE", "LOCAL_RANK", "LOCAL_SIZE"))),
    ("mpirun", tuple(f"MV2_COMM_WORLD_{word}" for word in ("RANK", "SIZE", "LOCAL_RANK", "LOCAL_SIZE"))),
    ("mpirun", ("PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID", "MPI_LOCALNRANKS")),
    ("srun", ("SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID", "SLURM_NTASKS_PER_NODE")),
)

#: Addresses of this machine that no other machine can reach.
HERE = ("", "127.0.0.1", "localhost", "::1")


class World(NamedTuple):
    """The processes of a run that a launcher has started, and which one this is."""

    launcher: str
    rank: int
    size: int
    local_rank: int
    local_size: int  # processes on this machine; all machines have equally many

    @property
    def nodes(self) -> int:
        return self.size // self.local_size


def find_world() -> World | None:
    """The processes of this run; None if no launcher has started this one.

    Raises:
        UserError: if the environment variables contradict each other.
    """
    for launcher, names in LAUNCHERS:
        rank, size, local_rank, local_size = map(_number, names)
        if rank is None or size is None:
            continue
        if size == 1 and "TORCHELASTIC_RUN_ID" not in os.environ:  # a single process may start others itself
            continue
        if launcher == "srun":
            if not _is_task_of_srun():
                continue
            local_size = _tasks_a_node(size, local_size)
        elif names[0] == "PMI_RANK" and local_rank is None:  # srun, which sets some of these variables, too
            continue
        if local_rank is None or local_size is None:
            here = os.environ.get("MASTER_ADDR", "") in HERE
            if local_rank is not None and not here:
                raise UserError(f"{launcher}: {names[2]} is set, but not {names[3]}, the processes on each machine.")
            local_rank, local_size = (rank, size) if here else (0, 1)  # all on this machine, or one on each
        if not (0 <= rank < size and 0 <= local_rank < local_size and size % local_size == 0):
            told = " ".join(f"{name}={os.environ.get(name, '')}" for name in names)
            raise UserError(
                f"{launcher}: {told} do not go together. Every machine runs equally many processes, numbered from 0."
            )
        return World(launcher, rank, size, local_rank, local_size)
    size = _number("WORLD_SIZE")
    if size is not None and size > 1 and "LOCAL_RANK" in os.environ:
        raise UserError(f"WORLD_SIZE={size} and LOCAL_RANK are set, but not RANK: which of the processes is this one?")
    return None


def _number(name: str) -> int | None:
    text = os.environ.get(name)
    if not text:
        return None
    if not text.isdecimal() or len(text) > 9:
        raise UserError(f"{name}={text[:40]} in the environment is not a number that it can be.")
    return int(text)


def _is_task_of_srun() -> bool:
    """Whether srun has started this process as one of several.

    A batch script, a shell and a notebook inside a job have the job's variables, too, but are not its tasks.
    """
    alone = os.environ.get("SLURM_JOB_NAME") in ("bash", "interactive") or "JPY_PARENT_PID" in os.environ
    return not alone and ("SLURM_STEP_ID" in os.environ or "SLURM_SUBMIT_DIR" not in os.environ)


def _tasks_a_node(tasks: int, most: int | None) -> int:
    nodes = next(filter(None, map(_number, ("SLURM_STEP_NUM_NODES", "SLURM_NNODES", "SLURM_JOB_NUM_NODES"))), None)
    if nodes is None:
        nodes = math.ceil(tasks / (most or tasks))
    per_node = os.environ.get("SLURM_STEP_TASKS_PER_NODE", "")  # such as 2(x3),1
    if tasks % nodes or "," in per_node:
        raise UserError(f"srun: {tasks} tasks are not equally many on {nodes} nodes. Give --ntasks-per-node.")
    return tasks // nodes


def node_rank(nodes: int) -> int:
    """Number of this machine, if the user has started the run by hand on each of several.

    Raises:
        UserError: if variables are missing by which the machines find each other.
    """
    if nodes == 1:  # NODE_RANK may be set for another program
        return 0
    missing = [name for name in ("NODE_RANK", "MASTER_ADDR", "MASTER_PORT") if not os.environ.get(name)]
    if missing:
        raise UserError(f"--nodes {nodes}: set {', '.join(missing)} on each machine, or start it by torchrun or srun.")
    rank = _number("NODE_RANK")
    assert rank is not None
    if rank >= nodes:
        raise UserError(f"NODE_RANK={rank}: the {nodes} machines of --nodes {nodes} are numbered from 0.")
    return rank


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
                f"{flag(name)} {getattr(asked, name)} contradicts {world.launcher}, which has started {world.size}"
                f" process(es) on {world.nodes} machine(s). Leave {flag(name)} out, or start as many."
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
        port = _number("MASTER_PORT")
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
