from __future__ import annotations

from pathlib import Path

import pytest
import torch

from densecl.training import processor
from densecl.training.processor import Cpu, fast_in_bf16, read_cpu

CORE = """processor\t: {number}
vendor_id\t: AuthenticAMD
model name\t: AMD EPYC: "9654"
flags\t\t: fpu avx2 avx512f avx512_bf16{more}
bugs\t\t: spectre_v1
"""


@pytest.mark.parametrize(
    ("cpu", "fast", "reason"),
    [
        (("GenuineIntel", "avx2 avx512_bf16 amx_bf16"), True, "the CPU has amx_bf16"),
        (("AuthenticAMD", "avx2 avx512_bf16"), True, "the CPU has avx512_bf16"),
        (("GenuineIntel", "avx2 avx512_bf16"), False, "the CPU has avx512_bf16, which is slower"),
        (("AuthenticAMD", "avx2 avx512f"), False, "the CPU has no fast bf16"),
        (("", "bf16 sve"), False, "the CPU has no fast bf16"),
        (("", ""), False, "the CPU has no fast bf16"),
    ],
)
def test_a_cpu_is_judged_by_what_it_is(monkeypatch, cpu: tuple[str, str], fast: bool, reason: str) -> None:
    maker, instructions = cpu
    monkeypatch.setattr(processor, "read_cpu", lambda: Cpu(maker, frozenset(instructions.split())))
    assert fast_in_bf16() == (fast, reason)


@pytest.mark.parametrize("has", [True, False])
def test_a_gpu_is_judged_before_the_cpu(monkeypatch, has: bool) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: has)
    assert fast_in_bf16() == (has, f"the GPU {'has' if has else 'lacks'} bf16")


def test_the_first_core_speaks_for_all(tmp_path: Path) -> None:
    (tmp_path / "proc").mkdir()
    cores = [CORE.format(number=0, more=""), CORE.format(number=1, more=" amx_bf16")]
    (tmp_path / "proc" / "cpuinfo").write_text("\n".join(cores))
    maker, instructions = read_cpu(tmp_path)
    assert maker == "AuthenticAMD"
    assert instructions == {"fpu", "avx2", "avx512f", "avx512_bf16"}


def test_other_systems_tell_nothing(tmp_path: Path) -> None:
    assert read_cpu(tmp_path) == Cpu("", frozenset())


@pytest.mark.parametrize(
    ("capability", "bf16", "fast"), [((7, 5), False, True), ((6, 1), False, False), ((8, 0), True, False)]
)
def test_float16_is_for_gpus_that_have_it_fast_and_lack_bf16(
    monkeypatch, capability: tuple[int, int], bf16: bool, fast: bool
) -> None:
    assert not processor.fast_in_fp16()  # no GPU
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.version, "hip", None)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: bf16)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
    assert processor.fast_in_fp16() is fast
