"""Who has started this process, as one of how many."""

from __future__ import annotations

import os

import pytest

from densecl.config.compose import make_recipe
from densecl.errors import UserError
from densecl.training.environment import Placed, settle_devices
from densecl.training.world import World, find_world, node_rank

ELASTIC = {"TORCHELASTIC_RUN_ID": "x", "MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "5"}
TORCHRUN = {**ELASTIC, "RANK": "5", "WORLD_SIZE": "6", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}
SRUN = {"SLURM_NTASKS": "4", "SLURM_PROCID": "3", "SLURM_LOCALID": "1", "SLURM_NNODES": "2", "SLURM_JOB_ID": "1234567"}
JOB = {"SLURM_SUBMIT_DIR": "/home", "SLURM_JOB_NAME": "mine"}  # what every job has, task or not
OMPI = {"OMPI_COMM_WORLD_RANK": "1", "OMPI_COMM_WORLD_SIZE": "2"}
OMPI |= {"OMPI_COMM_WORLD_LOCAL_RANK": "1", "OMPI_COMM_WORLD_LOCAL_SIZE": "2"}


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch) -> None:
    kinds = ("SLURM_", "OMPI_", "PMI_", "MV2_", "MPI_", "TORCHELASTIC_", "MASTER_", "JPY_")
    for name in list(os.environ):
        if name.startswith(kinds) or name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "NODE_RANK"):
            monkeypatch.delenv(name)


def put(variables: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)


@pytest.mark.parametrize(
    ("variables", "world"),
    [
        ({}, None),
        (TORCHRUN, World("torchrun", 5, 6, 1, 2)),
        ({**TORCHRUN, **SRUN}, World("torchrun", 5, 6, 1, 2)),  # srun has started torchrun
        (
            {**ELASTIC, "RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"},
            World("torchrun", 0, 1, 0, 1),
        ),
        ({"RANK": "0", "WORLD_SIZE": "1"}, None),  # some platforms set these for every process
        ({"WORLD_SIZE": "1"}, None),
        ({"LOCAL_RANK": "0"}, None),
        ({"RANK": "1", "WORLD_SIZE": "2"}, World("torchrun", 1, 2, 1, 2)),
        ({"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}, World("torchrun", 1, 2, 1, 2)),
        ({"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "pod-0"}, World("torchrun", 1, 2, 0, 1)),  # Kubeflow
        (SRUN, World("srun", 3, 4, 1, 2)),
        ({**SRUN, **JOB, "SLURM_STEP_ID": "0"}, World("srun", 3, 4, 1, 2)),
        ({**SRUN, **JOB}, None),  # the batch script itself
        ({**SRUN, "SLURM_JOB_NAME": "interactive"}, None),
        ({**SRUN, "SLURM_JOB_NAME": "bash"}, None),
        ({**SRUN, "JPY_PARENT_PID": "1"}, None),  # a notebook in an allocation
        ({**SRUN, "SLURM_NTASKS": "1", "SLURM_PROCID": "0"}, None),
        ({"SLURM_JOB_ID": "1", "SLURM_NTASKS": "4", "SLURM_NNODES": "1"}, None),  # salloc
        ({"SLURM_NTASKS": "4", "SLURM_PROCID": "2", "SLURM_LOCALID": "2"}, World("srun", 2, 4, 2, 4)),
        (
            {"SLURM_NTASKS": "4", "SLURM_PROCID": "2", "SLURM_LOCALID": "0", "SLURM_NTASKS_PER_NODE": "2"},
            World("srun", 2, 4, 0, 2),
        ),
        (OMPI, World("mpirun", 1, 2, 1, 2)),
        ({**OMPI, **SRUN, **JOB}, World("mpirun", 1, 2, 1, 2)),
        (
            {"PMI_RANK": "1", "PMI_SIZE": "2", "MPI_LOCALRANKID": "1", "MPI_LOCALNRANKS": "2"},
            World("mpirun", 1, 2, 1, 2),
        ),
        ({**SRUN, "PMI_RANK": "3", "PMI_SIZE": "4"}, World("srun", 3, 4, 1, 2)),  # srun --mpi=pmi2
    ],
)
def test_who_started_it(variables: dict[str, str], world: World | None, monkeypatch: pytest.MonkeyPatch) -> None:
    put(variables, monkeypatch)
    assert find_world() == world


@pytest.mark.parametrize(
    ("variables", "told"),
    [
        ({"RANK": "2", "WORLD_SIZE": "2"}, "RANK=2 WORLD_SIZE=2 .* do not go together"),
        ({**TORCHRUN, "WORLD_SIZE": "7"}, "WORLD_SIZE=7 .* do not go together"),
        ({**TORCHRUN, "LOCAL_RANK": "2"}, "LOCAL_RANK=2 LOCAL_WORLD_SIZE=2 do not go together"),
        ({"RANK": "x", "WORLD_SIZE": "2"}, "RANK=x in the environment is not a number"),
        ({"RANK": "1", "WORLD_SIZE": "9" * 5000}, "WORLD_SIZE=9{40} in the environment is not a number"),
        ({"LOCAL_RANK": "1", "WORLD_SIZE": "2"}, "but not RANK"),
        (
            {"RANK": "1", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "MASTER_ADDR": "a"},
            "LOCAL_RANK is set, but not LOCAL_WORLD",
        ),
        ({**SRUN, "SLURM_NTASKS": "5"}, "5 tasks are not equally many on 2 nodes"),
        ({**SRUN, "SLURM_STEP_TASKS_PER_NODE": "3,1"}, "4 tasks are not equally many on 2 nodes"),
    ],
)
def test_an_environment_that_contradicts_itself(variables: dict[str, str], told: str, monkeypatch) -> None:
    put(variables, monkeypatch)
    with pytest.raises(UserError, match=told):
        find_world()


def test_devices_follow_who_was_started(monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = make_recipe(data="images", batch_size=12)
    alone = settle_devices(recipe)
    assert (alone.devices, alone.nodes, alone.settled) == (1, 1, ("devices", "nodes"))
    assert settle_devices(make_recipe(data="images", devices=2)).devices == 2
    put(TORCHRUN, monkeypatch)
    for again in (recipe, alone):  # what a run chose itself it chooses anew
        there = settle_devices(again)
        assert (there.devices, there.nodes, there.processes) == (2, 3, 6)
    assert settle_devices(make_recipe(data="images", devices=2, nodes=3)).processes == 6
    for contradiction in ({"devices": 1}, {"devices": 4}, {"nodes": 1}):
        with pytest.raises(UserError, match="contradicts torchrun, which has started 6 processes on 3 machines"):
            settle_devices(make_recipe(data="images", **contradiction))
    with pytest.raises(UserError, match="batch_size=9 cannot be shared evenly by 6 devices"):
        settle_devices(make_recipe(data="images", batch_size=9))


def test_the_number_of_a_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="nodes=2: set NODE_RANK, MASTER_ADDR, MASTER_PORT on each machine"):
        node_rank(2)
    put({"NODE_RANK": "1", "MASTER_ADDR": "there", "MASTER_PORT": "77"}, monkeypatch)
    assert (node_rank(2), node_rank(1)) == (1, 0)  # one machine is the first, whatever a cluster says
    for wrong, told in (
        ("2", "NODE_RANK=2: the 2 machines .* are numbered from 0"),
        ("x", "NODE_RANK=x .* is not a number"),
    ):
        put({"NODE_RANK": wrong}, monkeypatch)
        with pytest.raises(UserError, match=told):
            node_rank(2)


def test_where_the_processes_meet(monkeypatch: pytest.MonkeyPatch) -> None:
    put({**SRUN, "SLURM_STEP_NODELIST": "gpu[07-09,12],b1"}, monkeypatch)
    place = Placed(World("srun", 3, 4, 1, 2))
    assert (place.main_address, place.main_port, place.node_rank()) == ("gpu07", 19567, 1)
    assert Placed(World("srun", 1, 2, 1, 2)).main_address == "127.0.0.1"
    put({"MASTER_ADDR": "there", "MASTER_PORT": "77"}, monkeypatch)
    assert (place.main_address, place.main_port) == ("there", 77)
    put({"MASTER_PORT": "65536"}, monkeypatch)
    with pytest.raises(UserError, match="MASTER_PORT=65536 in the environment is no port"):
        _ = place.main_port
    for name in ("MASTER_ADDR", "SLURM_STEP_NODELIST"):
        monkeypatch.delenv(name)
    with pytest.raises(UserError, match="set MASTER_ADDR"):
        _ = Placed(World("mpirun", 3, 4, 1, 2)).main_address
