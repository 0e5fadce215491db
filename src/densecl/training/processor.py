"""Whether this machine's processor is faster in bf16 than in float32.

The answer comes from a table of processors, not from a measurement. A measurement depends on what else the machine is
doing, so two runs of the same command could end up with different settings.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import torch

#: CPUs by instruction and maker (None: any), and whether they train faster in bf16. The first row that fits counts.
#: Measured as the time of forward and backward pass in bf16 / in float32 (docs/speed.md).
CPUS = (
    ("amx_bf16", None, True),  # ResNet-18: 1/2
    ("avx512_bf16", "AuthenticAMD", True),  # Zen 4. ResNets: 1/2, ViT: 2/3, ConvNeXt: 3/4
    ("avx512_bf16", None, False),  # a CPU whose maker was not noted: 4/3
)


class Cpu(NamedTuple):
    """What Linux tells of a CPU."""

    maker: str
    instructions: frozenset[str]


def fast_in_bf16() -> tuple[bool, str]:
    """Whether this machine's GPU, or its CPU if it has none, trains faster in bf16; and why, in a few words."""
    if torch.cuda.is_available():
        has = torch.cuda.is_bf16_supported(including_emulation=False)
        return has, f"the GPU {'has' if has else 'lacks'} bf16"
    cpu = read_cpu()
    for instructions, maker, faster in CPUS:
        if instructions in cpu.instructions and maker in (None, cpu.maker):
            return faster, f"the CPU has {instructions}{'' if faster else ', which is slower'}"
    return False, "the CPU has no fast bf16"


def fast_in_fp16() -> bool:
    """Whether this machine's GPU has tensor cores for float16 but no bf16: NVIDIA's Volta and Turing, such as a T4."""
    if not torch.cuda.is_available() or torch.version.hip is not None:
        return False
    return not torch.cuda.is_bf16_supported(including_emulation=False) and torch.cuda.get_device_capability() >= (7, 0)


def read_cpu(root: Path = Path("/")) -> Cpu:
    """The CPU of this machine. Outside Linux maker and instructions are empty.

    Args:
        root: of the file system; another one in tests.
    """
    try:
        text = (root / "proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        text = ""
    first = text.partition("\n\n")[0]  # the file has a paragraph for every core
    told = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in first.splitlines())}
    return Cpu(told.get("vendor_id", ""), frozenset(told.get("flags", "").split()))
