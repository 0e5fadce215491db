"""Every image once an epoch, whatever the batch, the ranks and the step it begins at."""

import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from densecl.errors import UserError
from densecl.images.sampler import StepSampler


@given(size=st.integers(1, 60), batch=st.integers(1, 60), seed=st.integers(0, 2**40))
def test_every_image_is_used_once_an_epoch(size, batch, seed):
    if batch > size:
        with pytest.raises(UserError, match=f"batch size {batch} is larger than the data set \\({size} images\\)"):
            StepSampler(size, batch, seed=seed)
        return
    sampler = StepSampler(size, batch, seed=seed)
    assert sampler.steps_per_epoch * batch == size
    batches = list(itertools.islice(sampler, math.ceil(3 * sampler.steps_per_epoch)))
    assert {len(places) for places in batches} == {batch}
    places = list(itertools.chain(*batches))[: 3 * size]
    for epoch in range(3):
        assert sorted(places[epoch * size : (epoch + 1) * size]) == [(epoch, index) for index in range(size)]


def test_orders_differ_by_epoch_and_seed():
    def order(seed, epoch):
        return [index for _, index in next(iter(StepSampler(50, 50, seed=seed, start_step=epoch)))]

    orders = [order(seed, epoch) for seed in (0, 1) for epoch in (0, 1, 2)]
    assert len(set(map(tuple, orders))) == 6
    assert order(1, 2) == orders[-1]


@given(start=st.integers(0, 40), length=st.integers(0, 20), world=st.sampled_from([1, 2, 3]))
def test_resume_and_ranks(start, length, world):
    whole = list(StepSampler(20, 6, seed=5, stop_step=start + length))
    parts = [
        StepSampler(20, 6, seed=5, start_step=start, stop_step=start + length, rank=rank, world_size=world)
        for rank in range(world)
    ]
    assert [len(part) for part in parts] == [length] * world
    assert [sum(shares, []) for shares in zip(*parts, strict=True)] == whole[start:]  # noqa: RUF017


def test_a_late_start_costs_nothing():
    sampler = StepSampler(1000, 10, seed=0, start_step=10**12)
    assert next(iter(sampler))[0][0] == 10**10
    with pytest.raises(TypeError):
        len(sampler)


def test_batches_that_cannot_be_shared():
    with pytest.raises(UserError, match="batch size 7 cannot be shared equally by 2"):
        StepSampler(10, 7, seed=0, world_size=2)
    with pytest.raises(UserError, match="batch size 0"):
        StepSampler(10, 0, seed=0)
