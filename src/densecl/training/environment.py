"""Which of how many processes this one is: asked of `launch`, of torchrun, or of SLURM."""

from __future__ import annotations

import os

from lightning.fabric.plugins.environments import (
    ClusterEnvironment,
    LightningEnvironment,
    SLURMEnvironment,
    TorchElasticEnvironment,
)


def launched_elsewhere() -> bool:
    """Whether SLURM's srun or torchrun has started this process as one of several."""
    several = int(os.environ.get("SLURM_NTASKS", "1")) > 1
    return TorchElasticEnvironment.detect() or (SLURMEnvironment.detect() and several)


def global_rank(devices: int) -> int:
    """Number of this process in the run, from 0, known before the processes have met."""
    for name in ("RANK", "SLURM_PROCID") if launched_elsewhere() else ():
        if name in os.environ:
            return int(os.environ[name])
    return int(os.environ.get("NODE_RANK", "0")) * devices + int(os.environ.get("LOCAL_RANK", "0"))


def cluster_environment() -> ClusterEnvironment:
    """Who numbers the processes: torchrun or SLURM if they started them, else `launch`."""
    if not launched_elsewhere():
        return LightningEnvironment()
    if TorchElasticEnvironment.detect():
        return TorchElasticEnvironment()
    # Lightning would requeue the job with a checkpoint of its own; ours is saved on SIGTERM.
    return SLURMEnvironment(auto_requeue=False)
