"""The losses against plain ones in float64, at sizes and in the places where a form without logits might fail.

(`test_against_reference` compares them with loops over single vectors.)
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from densecl.model import log_sum_exp as log_sum_exp_module
from densecl.model.info_nce import info_nce, info_nce_over_cells
from densecl.model.precision import products_in
from densecl.model.queue import Queue
from tests.model import plain

#: Relative norm of the error of a gradient.
TOLERANCE = {torch.float64: 1e-13, torch.float32: 1e-5, torch.bfloat16: 5e-3, torch.float16: 1e-3}
dtypes = pytest.mark.parametrize("dtype", TOLERANCE)


def units(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(shape, dtype=torch.float64, generator=generator), dim=-1)


def relative_error(actual: Tensor | None, expected: Tensor | None) -> float:
    assert actual is not None and expected is not None
    return float((actual.double() - expected.double()).norm() / expected.double().norm())


def compare(
    function: Callable,
    exact: Callable,
    *inputs: Tensor,
    rest: tuple = (),
    tolerance: float = 0.0,
    weight: float = 1.0,
) -> None:
    """Values and the gradients of all inputs, each query with a weight of its own; `exact` on the same numbers."""
    tolerance = tolerance or TOLERANCE[inputs[0].dtype]
    ours = [tensor.detach().clone().requires_grad_(tensor.requires_grad) for tensor in inputs]
    theirs = [tensor.detach().double().requires_grad_(tensor.requires_grad) for tensor in inputs]
    losses, expected = function(*ours, *rest), exact(*theirs, *rest)
    weights = weight * torch.randn(expected.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(9))
    (losses * weights.to(losses)).sum().backward()
    (expected * weights.to(expected)).sum().backward()
    assert losses.dtype == torch.promote_types(inputs[0].dtype, torch.float32)
    assert relative_error(losses.detach(), expected.detach()) < tolerance
    for one, other in zip(ours, theirs, strict=True):
        if one.requires_grad:
            assert one.grad is not None and one.grad.dtype == one.dtype
            assert relative_error(one.grad, other.grad) < tolerance


@dtypes
@pytest.mark.parametrize("temperature", [0.2, 0.07])
@pytest.mark.parametrize(("queries", "length", "dim"), [(300, 3000, 128), (1, 700, 32), (37, 1, 5), (131, 517, 129)])
def test_queue(dtype: torch.dtype, temperature: float, queries: int, length: int, dim: int) -> None:
    query, positive, queue = (units(n, dim, seed=s).to(dtype) for s, n in enumerate((queries, queries, length)))
    compare(info_nce, plain.info_nce, query.requires_grad_(), positive, queue, rest=(temperature,))


@dtypes
def test_gradients_of_positives_and_negatives(dtype: torch.dtype) -> None:
    query, positive, negatives = (units(n, 32, seed=s).to(dtype).requires_grad_() for s, n in enumerate((70, 70, 90)))
    compare(info_nce, plain.info_nce, query, positive, negatives, rest=(0.2,))


@pytest.mark.parametrize("products", [torch.float16, torch.bfloat16])
def test_products_in_half_precision(products: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a GPU. Of a mean over many cells each has a weight that half precision itself would round to nothing."""
    seen = set()
    attend = log_sum_exp_module.attend
    monkeypatch.setattr(log_sum_exp_module, "attend", lambda *those: seen.add(those[0].dtype) or attend(*those))
    some: dict = {"tolerance": TOLERANCE[products], "weight": 1e-9}
    query, positive, queue = (units(n, 32, seed=s).float().requires_grad_() for s, n in enumerate((300, 300, 3000)))
    compare(products_in(products)(info_nce), plain.info_nce, query, positive, queue, rest=(0.2,), **some)
    query, key, *rest = some_cells(6, 3, 49, 32, torch.float32)
    function = products_in(products)(info_nce_over_cells)
    exact = plain.info_nce_over_cells
    compare(function, exact, query.requires_grad_(), key.requires_grad_(), rest=(*rest, 0.2, 2), **some)
    assert seen == {products}


@pytest.mark.gpu
@pytest.mark.parametrize("products", [torch.float16, torch.bfloat16, None])
def test_on_a_gpu(products: torch.dtype | None) -> None:
    """Of the sizes of a training, with windows that overlap in memory and a coordinate more for the keys' gradient."""
    some: dict = {"tolerance": TOLERANCE[products or torch.float32], "weight": 1e-6}
    sizes = enumerate((3000, 3000, 4096))
    query, positive, queue = (units(n, 128, seed=s).float().cuda().requires_grad_() for s, n in sizes)
    compare(products_in(products)(info_nce), plain.info_nce, query, positive, queue, rest=(0.1,), **some)
    query, key, *rest = (each.cuda() for each in some_cells(40, 32, 64, 128, torch.float32))
    function = products_in(products)(info_nce_over_cells)
    exact = plain.info_nce_over_cells
    compare(function, exact, query.requires_grad_(), key.requires_grad_(), rest=(*rest, 0.1, 4), **some)


@dtypes
@pytest.mark.parametrize("spread", [1.0, 0.2])
def test_trained_vectors(dtype: torch.dtype, spread: float) -> None:
    """Close to their positives, in a queue that is more or less of one direction."""
    center = units(1, 64)
    query, queue = (F.normalize(center + spread * units(n, 64, seed=n), dim=1).to(dtype) for n in (100, 999))
    positive = F.normalize(query.double() + 0.3 * units(100, 64, seed=2), dim=1).to(dtype)
    compare(
        info_nce,
        plain.info_nce,
        query.requires_grad_(),
        positive,
        queue,
        rest=(0.1,),
        # Of one direction, the mean of the keys and the positive are nearly the same, and their difference, which is
        # the gradient, a third as long. Half precision rounds both before: 8e-3 and 1.04e-3 were measured.
        tolerance={torch.bfloat16: 1e-2, torch.float16: 1.3e-3}.get(dtype, 0.0) if spread < 1 else 0.0,
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_small_loss_keeps_its_gradient(dtype: torch.dtype) -> None:
    """sigmoid(s- - s+) is 1e-6 here, which 1 - softmax would round away."""
    query = units(50, 32, seed=1).to(dtype).requires_grad_()
    queue = (-F.normalize(query.detach()[:1] + units(40, 32, seed=2), dim=1)).to(dtype)
    positive = F.normalize(query.detach() + 0.1 * units(50, 32, seed=3).to(dtype), dim=1)
    # In float64 too the rounding of logits, 1e-15, is much of a loss that small: 5e-13 was measured.
    tolerance = 1e-11 if dtype == torch.float64 else 0.0
    compare(info_nce, plain.info_nce, query, positive, queue, rest=(0.07,), tolerance=tolerance)


@dtypes
def test_a_queue_that_has_just_begun_to_fill(dtype: torch.dtype) -> None:
    """A few real keys, which are the queries' own positives of the step before, among random ones."""
    queue = Queue(512, 32)
    keys = F.normalize(units(1, 32) + 0.1 * units(20, 32, seed=1), dim=1).float()
    queue.enqueue(keys)
    query = F.normalize(keys + 0.05 * units(20, 32, seed=2).float(), dim=1).to(dtype).requires_grad_()
    # Nearly all weight is on keys that are almost the positive: of the mean of the keys less the positive an eleventh
    # is left, and in half precision eleven times the error of rounding both: 3.1e-2 and 3.9e-3 were measured.
    tolerance = {torch.bfloat16: 4e-2, torch.float16: 5e-3}.get(dtype, 0.0)
    compare(info_nce, plain.info_nce, query, keys.to(dtype), queue.keys.to(dtype), rest=(0.1,), tolerance=tolerance)


def test_an_empty_queue() -> None:
    query = units(3, 4).requires_grad_()
    losses = info_nce(query, units(3, 4, seed=1), torch.zeros(0, 4, dtype=torch.float64), 0.2)
    losses.sum().backward()
    assert not losses.any()
    assert query.grad is not None and not query.grad.any()


def test_the_queue_may_change_before_the_backward_pass_and_be_used_twice() -> None:
    """As in a symmetric step: two losses against one queue, then new keys, then one backward pass."""
    queue = Queue(64, 16)
    first, second = (units(20, 16, seed=s).float().requires_grad_() for s in (1, 2))
    copies = [query.detach().double().requires_grad_() for query in (first, second)]
    negatives = queue.keys.double()
    loss = (
        info_nce(first, second.detach(), queue.keys, 0.2).mean()
        + info_nce(second, first.detach(), queue.keys, 0.2).mean()
    )
    queue.enqueue(units(40, 16, seed=3).float())
    loss.backward()
    one, other = copies
    exact = (
        plain.info_nce(one, other.detach(), negatives, 0.2).mean()
        + plain.info_nce(other, one.detach(), negatives, 0.2).mean()
    )
    exact.backward()
    for query, copy in zip((first, second), copies, strict=True):
        assert relative_error(query.grad, copy.grad) < 1e-5


# --- cells of the batch -------------------------------------------------------------------------------------------


def some_cells(
    images: int, batch: int, cells: int, dim: int, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(5)
    positive = torch.randint(cells, (batch, cells), generator=generator)
    excluded = torch.rand(batch, cells, cells, generator=generator) < 0.3
    return units(batch, cells, dim, seed=1).to(dtype), units(images, cells, dim, seed=2).to(dtype), positive, excluded


@dtypes
@pytest.mark.parametrize(
    ("images", "first_image", "batch", "cells", "dim"),
    [(8, 0, 8, 49, 128), (7, 2, 3, 9, 17), (1, 0, 1, 4, 8), (2, 1, 1, 16, 8), (40, 0, 40, 1, 32)],
)
def test_cells(dtype: torch.dtype, images: int, first_image: int, batch: int, cells: int, dim: int) -> None:
    """Gradients on both sides; the keys of other processes get theirs, too."""
    query, key, *which = some_cells(images, batch, cells, dim, dtype)
    compare(
        info_nce_over_cells, plain.info_nce_over_cells, query.requires_grad_(), key.requires_grad_(),
        rest=(*which, 0.2, first_image),
    )  # fmt: skip


@dtypes
@pytest.mark.parametrize("others", ["random", "opposite"])
def test_excluded_cells_that_are_equal_to_the_query(dtype: torch.dtype, others: str) -> None:
    """Excluded cells have cosine 1, and the rest as little as -1: at t = 0.07 they outweigh it exp(28) times.

    A form that subtracts them from the sum over all keys is left with rounding errors.
    """
    query, key, positive, _ = some_cells(6, 6, 16, 32, torch.float64)
    if others == "opposite":
        query = F.normalize(units(1, 1, 32, seed=3) + 0.1 * query, dim=2)
        key = F.normalize(-units(1, 1, 32, seed=3) + 0.1 * key, dim=2)
    excluded = torch.eye(16, dtype=torch.bool).roll(1, 1).expand(6, -1, -1)
    positive = torch.arange(16).expand(6, -1)
    key[:, 8:] = query.roll(1, 1)[:, 8:]  # the excluded cell of those queries is the query once more
    compare(
        info_nce_over_cells, plain.info_nce_over_cells, query.to(dtype).requires_grad_(), key.to(dtype),
        rest=(positive, excluded, 0.07),
    )  # fmt: skip


def test_in_many_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two images, or two keys, at a time."""
    query, key, positive, excluded = some_cells(7, 5, 9, 8, torch.float64)
    monkeypatch.setattr(log_sum_exp_module, "PART_BYTES", 4 * 9 * 9 * 2)
    compare(
        info_nce_over_cells, plain.info_nce_over_cells, query.requires_grad_(), key.requires_grad_(),
        rest=(positive, excluded, 0.2, 1),
    )  # fmt: skip
    single, negatives = units(20, 8, seed=3), units(30, 8, seed=4)
    monkeypatch.setattr(log_sum_exp_module, "PART_BYTES", 4 * 16 * 2)
    compare(
        info_nce, plain.info_nce, single.requires_grad_(), single.roll(1, 0), negatives.requires_grad_(), rest=(0.2,)
    )


# --- both -----------------------------------------------------------------------------------------------------------


def test_gradcheck() -> None:
    query, key, positive, excluded = some_cells(3, 2, 3, 4, torch.float64)
    query, key, single = query.requires_grad_(), key.requires_grad_(), units(2, 4, seed=7)
    assert torch.autograd.gradcheck(info_nce_over_cells, (query, key, positive, excluded, 0.5, 1))
    assert torch.autograd.gradcheck(
        info_nce, (single.requires_grad_(), units(2, 4, seed=8), units(5, 4, seed=9).requires_grad_(), 0.5)
    )


@dtypes
def test_autocast_changes_nothing(dtype: torch.dtype) -> None:
    """The inputs' own dtype decides the precision."""
    query, key, positive, excluded = some_cells(4, 4, 9, 16, dtype)
    results = []
    for enabled in (False, True):
        ours, theirs = query.clone().requires_grad_(), key.clone().requires_grad_()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            losses = info_nce_over_cells(ours, theirs, positive, excluded, 0.2)
            losses = losses + info_nce(ours, theirs, theirs.flatten(0, 1), 0.2)
        losses.sum().backward()
        results.append((losses.detach(), ours.grad, theirs.grad))
    for one, other in zip(*results, strict=True):
        assert torch.equal(one, other)


def test_any_layout() -> None:
    """The dense head's cells come with the dim far apart in memory."""
    query, key, positive, excluded = some_cells(1, 1, 9, 8, torch.float64)
    query_apart, key_apart = (tensor.mT.contiguous().mT for tensor in (query, key))
    losses = info_nce_over_cells(query_apart, key_apart, positive, excluded, 0.2)
    torch.testing.assert_close(losses, info_nce_over_cells(query, key, positive, excluded, 0.2))
    losses = info_nce(query_apart, key_apart, key_apart[0], 0.2)
    torch.testing.assert_close(losses, info_nce(query, key, key[0], 0.2))


def test_the_logits_never_exist() -> None:
    """The largest tensor that either pass makes, of 500 x 2000 or 512 x 512 logits."""
    query, queue = units(500, 8, seed=1).float().requires_grad_(), units(2000, 8, seed=2).float().requires_grad_()
    with LargestTensor() as largest:
        info_nce(query, query.detach(), queue, 0.2).sum().backward()
    assert largest.elements <= 2000 * (8 + 8)
    cells, key, positive, excluded = some_cells(128, 128, 4, 8, torch.float32)
    with LargestTensor() as largest:
        info_nce_over_cells(cells.requires_grad_(), key.requires_grad_(), positive, excluded, 0.2).sum().backward()
    assert largest.elements <= 2 * 512 * (8 + 8)


class LargestTensor(TorchDispatchMode):
    """Elements of the largest memory that an operator gave back while it was on."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, (tuple, list)) else (result,):
            if isinstance(tensor, Tensor):
                self.elements = max(self.elements, tensor.untyped_storage().nbytes() // tensor.element_size())
        return result
