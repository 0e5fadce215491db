"""Every objective against the formula of its paper, in loops: values and gradients, for images and for cells."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from densecl.model.distributed import gather
from densecl.model.methods import METHODS, Method
from densecl.model.objectives import DINO, Objective, Pairs, Temperature, image_pairs
from tests.processes import on_two_processes

#: Relative error of a loss, and relative norm of the error of its gradient.
TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5}
#: A gradient shorter than this counts as this long: where its terms cancel, their rounding is what is left. (Measured:
#: with terms of length 1, 4e-7 of rounding in float32, which would be 1e-5 of a gradient of length 0.04.)
SHORTEST = {torch.float64: 1e-3, torch.float32: 0.1}
QUERY_TEMPERATURE, KEY_TEMPERATURE = 0.3, 0.2
TEMPERATURE = Temperature(QUERY_TEMPERATURE, KEY_TEMPERATURE)


# --- the papers' formulas, one vector at a time ------------------------------------------------------------------


def info_nce(query: Tensor, positive: Tensor, negatives: list[Tensor]) -> Tensor:
    above = torch.exp(query @ positive / QUERY_TEMPERATURE)
    return -torch.log(above / (above + sum(torch.exp(query @ other / QUERY_TEMPERATURE) for other in negatives)))


def moco(pairs: Pairs, image: int, cell: int) -> Tensor:
    """He et al. 2020, eq. 1; with the batch's cells, DenseCL's with the negatives of the other images and places."""
    query, match = pairs.query[image, cell], int(pairs.match[image, cell])
    keys = pairs.key.detach()
    if pairs.negatives is not None:
        return info_nce(query, pairs.key[image, match], list(pairs.negatives))
    return info_nce(query, keys[image, match], list(others(keys, image, pairs.not_negative[image, cell], match)))


def simclr(pairs: Pairs, image: int, cell: int) -> Tensor:
    """Chen et al. 2020, eq. 1: the denominator has every vector of both views but the query itself."""
    query, match = pairs.query[image, cell], int(pairs.match[image, cell])
    positive = pairs.key[image, match]
    if pairs.pooled is not None:
        other_images = [number for number in range(len(pairs.pooled)) if number != image]
        return info_nce(query, positive, [vector for number in other_images for vector in pairs.pooled[number]])
    in_key_view = others(pairs.key, image, pairs.not_negative[image, cell], match)
    in_query_view = others(pairs.query, image, pairs.not_negative_query[image, cell], None)
    return info_nce(query, positive, [*in_key_view, *in_query_view])


def others(vectors: Tensor, image: int, near: Tensor, match: int | None):
    """All vectors but the match and what is near in the same image."""
    for number, cells in enumerate(vectors):
        for place, vector in enumerate(cells):
            if number != image or not (near[place] or place == match):
                yield vector


def cosine(first: Tensor, second: Tensor) -> Tensor:
    return (first @ second) / (first @ first).sqrt() / (second @ second).sqrt()


def byol(pairs: Pairs, image: int, cell: int) -> Tensor:
    """Grill et al. 2020, eq. 2: the squared distance of the unit vectors."""
    query, positive = pairs.query[image, cell], pairs.key[image, int(pairs.match[image, cell])]
    return (query / query.norm() - positive / positive.norm()).square().sum()


def simsiam(pairs: Pairs, image: int, cell: int) -> Tensor:
    """Chen & He 2021, eq. 1."""
    return -cosine(pairs.query[image, cell], pairs.key[image, int(pairs.match[image, cell])])


def barlow(group: list[tuple[Tensor, Tensor]]) -> Tensor:
    """Zbontar et al. 2021, eq. 1 and 2, divided by the number of dimensions; 1e-5 is their batch norm's epsilon."""
    sides = [torch.stack(side) for side in zip(*group, strict=True)]
    columns = [[standardized(side[:, column]) for column in range(side.shape[1])] for side in sides]
    loss = torch.zeros((), dtype=torch.float64)
    for (i, first), (j, second) in itertools.product(*map(enumerate, columns)):
        correlation = (first * second).sum() / len(group)
        loss = loss + ((1 - correlation) ** 2 if i == j else 0.005 * correlation**2)
    return loss / len(columns[0])


def standardized(values: Tensor) -> Tensor:
    mean = values.sum() / len(values)
    return (values - mean) / ((values - mean).square().sum() / len(values) + 1e-5).sqrt()


def vicreg(group: list[tuple[Tensor, Tensor]]) -> Tensor:
    """Bardes et al. 2022, eq. 1 to 6, with the divisors of their code."""
    sides = [torch.stack(side) for side in zip(*group, strict=True)]
    count, dim = sides[0].shape
    invariance = sum((query - positive).square().sum() for query, positive in group) / (count * dim)
    variance = covariance = torch.zeros((), dtype=torch.float64)
    for side in sides:
        columns = [side[:, column] - side[:, column].sum() / count for column in range(dim)]
        for i, j in itertools.product(range(dim), repeat=2):
            shared = (columns[i] * columns[j]).sum() / (count - 1)
            if i == j:
                variance = variance + torch.clamp(1 - (shared + 1e-4).sqrt(), min=0) / dim / 2
            else:
                covariance = covariance + shared**2 / dim
    return 25 * invariance + 25 * variance + covariance


def dino(pairs: Pairs, image: int, cell: int, center: Tensor) -> Tensor:
    """Caron et al. 2021, eq. 2 with the center of section 3.1."""
    student = softmax(pairs.query[image, cell] / QUERY_TEMPERATURE)
    teacher = softmax((pairs.key[image, int(pairs.match[image, cell])] - center) / KEY_TEMPERATURE)
    return -sum((share * torch.log(guess) for share, guess in zip(teacher, student, strict=True)), torch.zeros(()))


def softmax(values: Tensor) -> Tensor:
    return torch.exp(values) / torch.exp(values).sum()


def expected_loss(name: str, pairs: Pairs, statistics: str, center: Tensor) -> Tensor:
    batch, cells = pairs.match.shape
    places = [
        (image, cell)
        for image, cell in itertools.product(range(batch), range(cells))
        if pairs.valid is None or pairs.valid[image, cell]
    ]
    if name in ("barlow", "vicreg"):
        groups: dict[int, list[tuple[Tensor, Tensor]]] = {}
        for image, cell in places:
            pair = pairs.query[image, cell], pairs.key[image, int(pairs.match[image, cell])]
            groups.setdefault(cell if statistics == "position" else 0, []).append(pair)
        losses = [{"barlow": barlow, "vicreg": vicreg}[name](group) for group in groups.values() if len(group) > 1]
    elif name == "dino":
        losses = [dino(pairs, *place, center) for place in places]
    else:
        formula = {"moco": moco, "simclr": simclr, "byol": byol, "simsiam": simsiam}[name]
        losses = [formula(pairs, *place) for place in places]
    return sum(losses, torch.zeros((), dtype=torch.float64)) / max(len(losses), 1)


# --- what is compared ---------------------------------------------------------------------------------------------


def random(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def random_pairs(method: Method, batch: int, cells: int, key_cells: int, dim: int, seed: int, negatives: str) -> Pairs:
    """Cells of two views with matches, of which some do not count, and neighborhoods."""
    chance = torch.Generator().manual_seed(seed)
    query, key = random(batch, cells, dim, seed=seed), random(batch, key_cells, dim, seed=seed + 1)
    queue, pooled = random(9, dim, seed=seed + 2), random(batch, 2, dim, seed=seed + 3)
    if method.l2_normalize:
        query, key, queue, pooled = (nn.functional.normalize(one, dim=-1) for one in (query, key, queue, pooled))
    near_query = torch.rand(batch, cells, cells, generator=chance) < 0.2
    return Pairs(
        query=query,
        key=key,
        match=torch.randint(key_cells, (batch, cells), generator=chance),
        valid=torch.rand(batch, cells, generator=chance) < 0.7,
        not_negative=torch.rand(batch, cells, key_cells, generator=chance) < 0.3,
        not_negative_query=near_query | torch.eye(cells, dtype=torch.bool),
        negatives=queue if method.queue and negatives == "pooled" else None,
        pooled=pooled if not method.queue and negatives == "pooled" else None,
    )


def tracked(method: Method, pairs: Pairs, dtype: torch.dtype) -> tuple[Pairs, list[Tensor]]:
    """A copy of that type whose vectors ask for gradients, and those that the method trains."""
    floats = {
        name: value.detach().to(dtype).requires_grad_()
        for name, value in pairs._asdict().items()
        if isinstance(value, Tensor) and value.is_floating_point()
    }
    trained = ("query", "key", "pooled") if method.keys == "shared-weights" else ("query",)
    return pairs._replace(**floats), [floats[name] for name in trained if name in floats]


def shortest(method: Method, pairs: Pairs, statistics: str, dtype: torch.dtype) -> float:
    """`SHORTEST`, but for Barlow Twins in float32, whose gradient has no part that changes mean or deviation.

    Of a few vectors not much else is left, and of two, which become +1 and -1 whatever they were, only what epsilon
    leaves: some 1e-5 of terms that are the longer the closer the two were (measured: 1.2e-5 of rounding).
    """
    if method.name != "barlow" or dtype != torch.float32:
        return SHORTEST[dtype]
    valid = torch.ones_like(pairs.match) if pairs.valid is None else pairs.valid
    vectors = valid.sum(dim=0) if statistics == "position" else valid.sum()
    return 10.0 if (vectors == 2).any() else 1.0


def compare(method: Method, pairs: Pairs, statistics: str, dtype: torch.dtype) -> None:
    """The loss and its gradients with the formula in float64 of the same, rounded numbers."""
    dim = pairs.query.shape[2]
    objective = method.objective(dim, statistics).to(dtype)
    center = random(dim, seed=7).to(dtype)
    if isinstance(objective, DINO):
        objective.center.copy_(center)
    ours, vectors = tracked(method, pairs, dtype)
    exact, exact_vectors = tracked(method, ours, torch.float64)
    loss, expected = objective(ours, TEMPERATURE), expected_loss(method.name, exact, statistics, center.double())
    assert loss.dtype == dtype
    torch.testing.assert_close(loss.double(), expected, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])
    least = shortest(method, pairs, statistics, dtype)
    for one, other in zip(gradients(loss, vectors), gradients(expected, exact_vectors), strict=True):
        assert (one.double() - other).norm() <= TOLERANCE[dtype] * max(other.norm().item(), least)


def gradients(loss: Tensor, vectors: list[Tensor]) -> list[Tensor]:
    if not loss.requires_grad:
        return [torch.zeros_like(one) for one in vectors]
    found = torch.autograd.grad(loss, vectors, allow_unused=True, retain_graph=True)
    return [torch.zeros_like(one) if each is None else each for one, each in zip(vectors, found, strict=True)]


methods = st.sampled_from(list(METHODS.values()))
dtypes = st.sampled_from([torch.float64, torch.float32])
seeds = st.integers(0, 2**16)


@pytest.mark.parametrize("method", METHODS.values(), ids=list(METHODS))
@given(batch=st.integers(2, 5), dim=st.integers(2, 5), dtype=dtypes, seed=seeds)
def test_of_images(method: Method, batch: int, dim: int, dtype: torch.dtype, seed: int) -> None:
    query, key, queue = random(batch, dim, seed=seed), random(batch, dim, seed=seed + 1), random(9, dim, seed=seed + 2)
    if method.l2_normalize:
        query, key, queue = (nn.functional.normalize(one, dim=1) for one in (query, key, queue))
    pairs = image_pairs(query, key, queue if method.queue else None)
    compare(method, pairs, "cells", dtype)


@pytest.mark.parametrize("method", METHODS.values(), ids=list(METHODS))
@given(
    batch=st.integers(2, 4),
    cells=st.integers(1, 4),
    key_cells=st.integers(1, 5),
    dim=st.integers(2, 4),
    negatives=st.sampled_from(["pooled", "batch"]),
    statistics=st.sampled_from(["cells", "position"]),
    dtype=dtypes,
    seed=seeds,
)
def test_of_cells(
    method: Method,
    batch: int,
    cells: int,
    key_cells: int,
    dim: int,
    negatives: str,
    statistics: str,
    dtype: torch.dtype,
    seed: int,
) -> None:
    compare(method, random_pairs(method, batch, cells, key_cells, dim, seed, negatives), statistics, dtype)


def test_both_directions_of_simclr_are_nt_xent() -> None:
    """Chen et al. 2020, algorithm 1: 2N vectors, each against all others."""
    first, second = (nn.functional.normalize(random(5, 4, seed=seed), dim=1) for seed in (1, 2))
    every = torch.cat([first, second])
    similarity = torch.exp(every @ every.T / QUERY_TEMPERATURE)
    losses = [
        -math.log(similarity[i, (i + 5) % 10] / sum(similarity[i, k] for k in range(10) if k != i)) for i in range(10)
    ]
    objective = METHODS["simclr"].objective(4)
    ours = [objective(image_pairs(*views), TEMPERATURE) for views in ((first, second), (second, first))]
    assert torch.stack(ours).mean().item() == pytest.approx(sum(losses) / 10, abs=1e-10)


@pytest.mark.parametrize("name", ["barlow", "vicreg"])
def test_statistics_of_nothing_are_nought_with_a_gradient_of_nought(name: str) -> None:
    pairs = random_pairs(METHODS[name], 2, 2, 2, 3, 0, "batch")
    ours, (query, key) = tracked(
        METHODS[name], pairs._replace(valid=torch.tensor([[True, False], [False, False]])), torch.float32
    )
    loss = METHODS[name].objective(3)(ours, TEMPERATURE)
    loss.backward()
    assert loss == 0
    for vectors in (query, key):
        assert vectors.grad is not None and (vectors.grad == 0).all()


def test_dinos_center_is_a_moving_average_of_the_teachers_means() -> None:
    objective = METHODS["dino"].objective(3).double()
    assert isinstance(objective, DINO)
    center = torch.zeros(3).double()
    for step in range(4):
        keys = random(6, 3, seed=step)
        objective.observe(keys)
        center = 0.9 * center + 0.1 * keys.mean(dim=0)
        torch.testing.assert_close(objective.center, center)
    assert "center" in objective.state_dict()


# --- two processes --------------------------------------------------------------------------------------------------

CASES = [
    (method.name, negatives, statistics)
    for method in METHODS.values()
    for negatives in (("pooled", "batch") if method.dense_negatives else ("batch",))
    for statistics in (("cells", "position") if method.statistics else ("cells",))
]


def every_objective(rank: int, world: int = 2) -> list[list[Tensor]]:
    """Of each case, for images and for cells: the loss averaged over processes, own gradients as DDP averages them."""
    results = []
    for name, negatives, statistics in CASES:
        method = METHODS[name]
        for dense in (False, True):
            pairs = random_pairs(method, 6, 4, 4, 3, 5, negatives)
            if not dense:
                queue = pairs.negatives if method.queue and negatives == "pooled" else None
                pairs = image_pairs(pairs.query[:, 0], pairs.key[:, 0], queue)
            pairs, vectors = tracked(method, part(pairs, rank, world), torch.float64)
            objective: Objective = method.objective(3, statistics).double()
            loss = objective(pairs, TEMPERATURE)
            objective.observe(pairs.key.detach().flatten(0, 1))
            found = [one / world for one in gradients(loss, vectors)]
            results.append([gather(loss.detach()[None]).mean(), *objective.buffers(), *map(gather, found)])
    return results


def part(pairs: Pairs, rank: int, world: int) -> Pairs:
    """The images of one process; a queue is the same on all."""
    share = slice(rank * 6 // world, (rank + 1) * 6 // world)
    own: dict[str, Callable] = {
        name: value[share] for name, value in pairs._asdict().items() if value is not None and name != "negatives"
    }
    return pairs._replace(**own)  # pyright: ignore[reportArgumentType]


def test_two_processes_give_the_loss_and_gradient_of_the_joined_batch() -> None:
    expected = every_objective(0, world=1)
    for results in on_two_processes(every_objective):
        for case, ours, theirs in zip(itertools.product(CASES, ("images", "cells")), results, expected, strict=True):
            for value, reference in zip(ours, theirs, strict=True):
                torch.testing.assert_close(value, reference, rtol=1e-10, atol=1e-10, msg=str(case))
