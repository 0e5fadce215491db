"""How many processes a run has and which one this is, from the environment variables of whoever started it.

Loads nothing heavy.
"""

from __future__ import annotations

import math
import os
from typing import NamedTuple

from densecl.errors import UserError

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
        rank, size, local_rank, local_size = map(number_in, names)
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
    size = number_in("WORLD_SIZE")
    if size is not None and size > 1 and "LOCAL_RANK" in os.environ:
        raise UserError(f"WORLD_SIZE={size} and LOCAL_RANK are set, but not RANK: which of the processes is this one?")
    return None


def number_in(name: str) -> int | None:
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
    nodes = next(filter(None, map(number_in, ("SLURM_STEP_NUM_NODES", "SLURM_NNODES", "SLURM_JOB_NUM_NODES"))), None)
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
    rank = number_in("NODE_RANK")
    assert rank is not None
    if rank >= nodes:
        raise UserError(f"NODE_RANK={rank}: the {nodes} machines of --nodes {nodes} are numbered from 0.")
    return rank
