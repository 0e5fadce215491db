"""Which products may be quick, and that nothing else of a loss is."""

from __future__ import annotations

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from densecl.model import log_sum_exp, precision
from densecl.model.log_sum_exp import log_sum_exp_of_other_images
from densecl.model.precision import loss_precision, products_dtype, products_in, quick_dtype


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("amd", [False, True])
def test_what_is_quick(dtype: torch.dtype, autocast: bool, amd: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda device: autocast)
    monkeypatch.setattr(torch.version, "hip", "7" if amd else None)
    assert quick_dtype(torch.zeros(2, 3, dtype=dtype)) is None
    with FakeTensorMode():
        found = quick_dtype(torch.zeros(2, 3, dtype=dtype, device="cuda"))
    assert found == (torch.float16 if dtype == torch.float32 and autocast and not amd else None)


def test_the_dtype_of_products_is_the_querys_unless_another_is_asked_for() -> None:
    query = torch.zeros(2, 3)
    assert products_dtype(query) == torch.float32
    with products_in(torch.float16):
        assert products_dtype(query) == torch.float16
        with products_in(None):
            assert products_dtype(query) == torch.float32
        assert products_dtype(query) == torch.float16
    assert products_dtype(query) == torch.float32


def test_it_is_given_back_after_an_error() -> None:
    with pytest.raises(KeyboardInterrupt), products_in(torch.bfloat16):
        raise KeyboardInterrupt
    assert products_dtype(torch.zeros(2, 3)) == torch.float32


def test_a_loss_has_full_precision_but_quick_products(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "quick_dtype", lambda vectors: torch.float16 if autocast() else None)
    vectors = torch.ones(2, 3)
    with torch.autocast("cpu", dtype=torch.bfloat16), loss_precision(vectors):
        assert not autocast()
        assert products_dtype(vectors) == torch.float16
        assert (vectors @ vectors.T).dtype == torch.float32
    with loss_precision(vectors):
        assert products_dtype(vectors) == torch.float32


def autocast() -> bool:
    return torch.is_autocast_enabled("cpu")


def test_products_of_image_vectors_are_too_few_to_be_quick(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    attend = log_sum_exp.attend
    monkeypatch.setattr(log_sum_exp, "attend", lambda *those: seen.append(those[0].dtype) or attend(*those))
    with products_in(torch.bfloat16):
        for cells in (1, 2):
            log_sum_exp_of_other_images(torch.randn(3, cells, 4), torch.randn(3, 2, 4), 0.2)
    assert seen == [torch.float32, torch.bfloat16]
