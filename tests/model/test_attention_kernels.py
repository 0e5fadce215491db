"""Every kernel against the softmax; those of CUDA as far as a machine without it can tell."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from densecl.model import attention_kernels
from densecl.model.attention_kernels import attend, attend_in_chunks

TOLERANCE = {torch.float64: 1e-13, torch.float32: 1e-6, torch.bfloat16: 5e-3, torch.float16: 1e-3}


def inputs(queries: int, keys: int, dim: int, dtype: torch.dtype, device: str = "cpu") -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    sizes = (queries, keys, keys)
    return [torch.randn(3, size, dim, dtype=torch.float64, generator=generator).to(device, dtype) for size in sizes]


def check(kernel, query: Tensor, key: Tensor, value: Tensor) -> None:
    mean, lse = kernel(query, key, value, 0.7)
    scores = 0.7 * query.double() @ key.double().mT
    expected = scores.softmax(dim=2) @ value.double()
    assert mean.dtype == query.dtype
    assert lse.dtype == torch.promote_types(query.dtype, torch.float32)
    assert (mean.double() - expected).norm() / expected.norm() < TOLERANCE[query.dtype]
    torch.testing.assert_close(lse.double(), scores.logsumexp(dim=2), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize(("queries", "keys", "dim"), [(70, 600, 32), (1, 3, 1), (33, 1, 131)])
@pytest.mark.parametrize("chunk_bytes", [2**24, 5000, 1])
def test_on_the_cpu(
    dtype: torch.dtype, queries: int, keys: int, dim: int, chunk_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attention_kernels, "CHUNK_BYTES", chunk_bytes)
    tensors = inputs(queries, keys, dim, dtype)
    check(attend, *tensors)
    check(attend_in_chunks, *tensors)


@pytest.mark.parametrize(("queries", "keys"), [(0, 3), (3, 0)])
def test_nothing(queries: int, keys: int) -> None:
    """The kernel for the CPU ends the process on an empty tensor."""
    query, key, value = inputs(queries, keys, 4, torch.bfloat16)
    mean, lse = attend(query, key, value, 1.0)
    assert mean.shape == (3, queries, 4) and not mean.any()
    assert lse.shape == (3, queries) and lse.dtype == torch.float32 and (lse == -torch.inf).all()


def test_the_cpu_has_its_kernel() -> None:
    """Not just the chunks that would do the same."""
    for dtype in TOLERANCE:
        assert attention_kernels._kernel_for(*inputs(2, 3, 4, dtype)) is attention_kernels._flash_on_cpu


class NoOperators:
    """torch.ops.aten of a version in which private operators have gone."""


def test_without_its_operator_the_cpu_goes_in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.ops, "aten", NoOperators())
    assert attention_kernels._kernel_for(*inputs(2, 3, 4, torch.float32)) is attend_in_chunks


@pytest.mark.parametrize(("flash", "efficient"), [(True, True), (False, True), (False, False)])
@pytest.mark.parametrize("gone", [False, True])
def test_choice_on_cuda(flash: bool, efficient: bool, gone: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """PyTorch itself says which of its kernels take the (padded) inputs."""
    seen = []
    monkeypatch.setattr(attention_kernels, "can_use_flash_attention", lambda params: seen.append(params) or flash)
    monkeypatch.setattr(
        attention_kernels, "can_use_efficient_attention", lambda params: seen.append(params) or efficient
    )
    monkeypatch.setattr(torch.version, "hip", None)
    with FakeTensorMode():
        tensors = inputs(5, 6, 12, torch.float16, "cuda")
        if gone:
            monkeypatch.setattr(torch.ops, "aten", NoOperators())
        chosen = attention_kernels._kernel_for(*tensors)
    by_name = {True: attention_kernels._efficient_on_cuda, False: attend_in_chunks}[efficient and not gone]
    assert chosen is (attention_kernels._flash_on_cuda if flash and not gone else by_name)
    assert all(params.query.shape == (3, 1, 5, 16) for params in seen)


@pytest.mark.parametrize("kernel", ["_flash_on_cuda", "_efficient_on_cuda", "attend_in_chunks"])
@pytest.mark.parametrize(("queries", "dim"), [(49, 128), (1, 5)])
def test_calls_on_cuda_have_the_right_shapes(kernel: str, queries: int, dim: int) -> None:
    """On tensors without content, the operators' own shape functions judge the arguments."""
    with FakeTensorMode():
        tensors = inputs(queries, 60, dim, torch.float16, "cuda")
        mean, lse = getattr(attention_kernels, kernel)(*tensors, 0.7)
    assert mean.shape == (3, queries, dim) and mean.dtype == torch.float16 and mean.is_cuda
    assert lse.shape == (3, queries) and lse.dtype == torch.float32


@pytest.mark.parametrize("extra_queries", [0, 27])
def test_what_cuda_adds_is_taken_off(extra_queries: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its kernels on the CPU's: dims are filled up, the log-sum-exp is longer, more results follow."""

    class Operators:
        @staticmethod
        def stand_in(query: Tensor, key: Tensor, value: Tensor, *_: object, scale: float) -> tuple[Tensor, ...]:
            assert query.shape[3] % 8 == 0 and query.shape[:2] == (3, 1)
            scores = scale * query @ key.mT
            lse = torch.nn.functional.pad(scores.logsumexp(dim=3), (0, extra_queries), value=torch.inf)
            return scores.softmax(dim=3) @ value, lse, torch.zeros(()), torch.zeros(())

        _scaled_dot_product_flash_attention = _scaled_dot_product_efficient_attention = stand_in

    tensors = inputs(5, 6, 12, torch.float64)
    monkeypatch.setattr(torch.ops, "aten", Operators)
    check(attention_kernels._flash_on_cuda, *tensors)
    check(attention_kernels._efficient_on_cuda, *tensors)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize(("queries", "keys", "dim"), [(70, 600, 128), (1, 3, 5), (33, 1, 260)])
def test_on_cuda(dtype: torch.dtype, queries: int, keys: int, dim: int) -> None:
    check(attend, *inputs(queries, keys, dim, dtype, "cuda"))
