"""Settings of the machine: precision, memory, devices and processes. The seed, too."""

from __future__ import annotations

from typing import Generic, Literal

from densecl.config.setting import COUNT, NOT_NEGATIVE, POSITIVE, TIME, Open, Range, setting, settings

_SEED = Range(lambda seed: 0 <= seed < 2**32, "must lie in 0..4294967295")


@settings
class MachineSettings(Generic[Open]):
    precision: Literal["32", "bf16", "fp16"] | Open = setting(
        "auto",
        "Number format of the computation.",
        choices={
            "auto": "bf16 on GPUs that have it, CPUs with AMX, and AMD's with avx512_bf16; fp16 on older NVIDIA GPUs"
            " (T4, V100); else 32",
            "32": "float32",
            "bf16": "bfloat16 where it is safe, float32 elsewhere",
            "fp16": "float16 where it is safe, float32 elsewhere; the loss is scaled to keep small gradients",
        },
    )
    channels_last: bool | Open = setting(
        "auto", "Keep images and weights in channels-last memory format. auto: on for GPUs and bf16."
    )
    compile: bool = setting(
        False, "Compile the encoders (torch.compile). Pays on GPUs, in runs of more than some minutes.", free=True
    )
    accumulate: int = setting(
        1,
        "Gradient accumulation: compute a step's batch in so many parts, to save memory. Negatives and batch statistics"
        " then come from one part only.",
        COUNT,
    )
    checkpoint_activations: bool = setting(
        False,
        "Keep fewer activations and compute them a second time: less memory, a third more time. For networks without"
        " batch norm, such as ViTs.",
        free=True,
    )
    devices: int | Open = setting(
        "auto",
        "GPUs to use, or CPU processes where there is no GPU. auto: 1, or as many as torchrun, srun or mpirun started.",
        COUNT,
        free=True,
    )
    nodes: int | Open = setting("auto", "Machines to use. auto: 1, or as for --devices.", COUNT, free=True)
    distributed_timeout: str = setting(
        "5m", "How long processes wait for one that does not answer before the run is given up.", TIME, free=True
    )
    sync_batch_norm: bool = setting(False, "Batch-norm statistics over all devices (GPUs only).")
    workers: int | Open = setting(
        "auto", "Data-loading workers per device. auto: by the number of cores.", NOT_NEGATIVE, free=True
    )
    read_timeout: float = setting(
        300.0,
        "Stop with a message after so many seconds without a single image read (with --workers 0 never).",
        POSITIVE,
        free=True,
    )
    cache: str | None = setting(
        None,
        "Folder that keeps decoded, shrunk images for later epochs and runs. Pays for large photos, PNG and TIFF.",
        free=True,
    )
    seed: int = setting(0, "Fixes the initial weights, the order of images, the crops and the colors.", _SEED)
