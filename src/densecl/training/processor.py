"""Which precision the processor of this machine is fast in: by what it is, not by a trial.

A trial's answer follows whatever else the machine is doing, and two runs of one command would then differ.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import torch

#: CPUs by their instructions and maker (None: any), and whether training is faster in bf16 than in float32. Measured,
#: forward and backward: with AMX a ResNet-18 takes half the time; with AMD's Zen 4 ResNets half of it, ViT two thirds,
#: ConvNeXt three quarters (docs/speed.md). The last row is a CPU whose maker was not noted: a third more.
CPUS = (
    ("amx_bf16", None, True),
    ("avx512_bf16", "AuthenticAMD", True),
    ("avx512_bf16", None, False),
)


class Cpu(NamedTuple):
    """What Linux tells of a CPU."""

    maker: str
    instructions: frozenset[str]


def fast_in_bf16() -> tuple[bool, str]:
    """Whether this machine's GPU, or else its CPU, trains faster in bf16 than in float32; and why, in a few words."""
    if torch.cuda.is_available():
        has = torch.cuda.is_bf16_supported(including_emulation=False)
        return has, f"the GPU {'has' if has else 'lacks'} bf16"
    cpu = read_cpu()
    for instructions, maker, faster in CPUS:
        if instructions in cpu.instructions and maker in (None, cpu.maker):
            return faster, f"the CPU has {instructions}{'' if faster else ', which is slower'}"
    return False, "the CPU has no fast bf16"


def read_cpu(root: Path = Path("/")) -> Cpu:
    """The CPU of this machine; without a name or instructions where the system is not Linux."""
    try:
        text = (root / "proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        text = ""
    first = text.partition("\n\n")[0]  # all cores are described, one after the other
    told = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in first.splitlines())}
    return Cpu(told.get("vendor_id", ""), frozenset(told.get("flags", "").split()))
