from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from densecl.config import automatic
from densecl.model import METHODS


def test_the_linear_rule_gives_the_papers_rate_at_the_papers_batch():
    assert automatic.scaled_learning_rate(0.3, 256, "sgd") == 0.3
    assert automatic.scaled_learning_rate(0.3, 64, "sgd") == pytest.approx(0.075)


def test_adamw_follows_the_square_root():
    assert automatic.scaled_learning_rate(3e-3, 64, "adamw") == pytest.approx(1.5e-3)
    assert automatic.scaled_learning_rate(3e-3, 1024, "adamw") == pytest.approx(6e-3)


@pytest.mark.parametrize(
    ("steps", "momentum"), [(10, 0.9), (100, 0.9), (200, 0.95), (1000, 0.99), (10_000, 0.999), (10**6, 0.999)]
)
def test_the_key_encoders_memory_is_a_tenth_of_the_run(steps, momentum):
    assert automatic.key_momentum(steps) == pytest.approx(momentum)


def test_the_method_says_how_high_its_key_momentum_goes():
    assert automatic.key_momentum(10**6, METHODS["byol"].key_momentum) == 0.996


@pytest.mark.parametrize("method", METHODS.values(), ids=list(METHODS))
def test_a_method_brings_the_values_of_its_own_optimizer(method):
    for optimizer in {"sgd", "lars"} & {method.optimizer}:
        assert automatic.base_learning_rate(optimizer, True, method) == method.learning_rate
        assert automatic.weight_decay(optimizer, method) == method.weight_decay
    # With AdamW all take what was measured.
    assert automatic.base_learning_rate("adamw", True, method) == 0.003
    assert automatic.weight_decay("adamw", method) == 0.02


@pytest.mark.parametrize(
    ("images", "keys_given", "method"),
    [(256, False, "simclr"), (4, False, "simclr"), (3, False, "moco"), (1, False, "moco"), (256, True, "moco")],
)
def test_negatives_come_from_the_batch_where_it_has_enough(images, keys_given, method):
    assert automatic.method(images, keys_given=keys_given) == method


@pytest.mark.parametrize(
    ("image_size", "stride", "grid", "size"),
    [
        (224, 32, None, 128),
        (224, 16, None, 96),
        (64, 16, None, 64),
        (512, 32, None, 224),
        (96, 8, None, 40),
        (224, 32, 7, 224),
        (224, 16, 2, 96),
    ],
)
def test_small_views_are_three_sevenths_and_as_many_cells_as_are_needed(image_size, stride, grid, size):
    assert automatic.local_crop_size(image_size, stride, grid) == size


@pytest.mark.parametrize(
    ("images", "epochs", "on_gpu", "size"),
    [
        (118_000, 800, True, 256),
        (118_000, 800, False, 64),  # what a CPU has memory for
        (4350, None, True, 256),  # so many steps or hours, whatever they cost
        (20_000, 4, True, 64),  # 80 would give 1000 steps
        (4350, 3, True, 32),
        (4350, 3, False, 32),
        (200, 200, True, 32),
        (100, None, True, 64),  # not more than there are
        (3, 200, False, 2),
        (1, 1, False, 1),
    ],
)
def test_a_short_run_a_cpu_and_few_images_take_smaller_batches(images, epochs, on_gpu, size):
    assert automatic.batch_size(images, epochs, on_gpu=on_gpu) == size


@pytest.mark.parametrize(
    ("parts", "least", "size"),
    [(8, 1, 256), (3, 1, 255), (64, 1, 256), (512, 1, 512), (8, 64, 512), (128, 4, 512)],
)
def test_every_part_of_a_batch_gets_as_many(parts, least, size):
    assert automatic.batch_size(10**6, 100, parts=parts, least=least, on_gpu=True) == size


@given(st.integers(64, 10**7), st.none() | st.integers(1, 1000), st.integers(1, 64), st.integers(1, 64), st.booleans())
def test_an_automatic_batch_can_be_shared_out_and_drawn(images, epochs, parts, least, on_gpu):
    size = automatic.batch_size(images, epochs, parts=parts, least=least, on_gpu=on_gpu)
    assert size % parts == 0
    assert parts * min(least, images // parts) <= size <= images
    assert size <= max(automatic.REFERENCE_BATCH if on_gpu else automatic.CPU_BATCH, parts * least)


@pytest.mark.parametrize(("epochs", "warmup"), [(3.0, 0.3), (100.0, 10), (800.0, 10), (None, 1)])
def test_the_warm_up_is_a_tenth_of_the_run(epochs, warmup):
    assert automatic.warmup_epochs(epochs) == pytest.approx(warmup)


def test_the_queue_at_full_scale_is_as_long_as_the_facts_say():
    assert automatic.queue_length(1_000_000, 256, 0.999) == 64_000  # a quarter of 1000 steps of 256 keys
    assert automatic.queue_length(1_000_000, 256, 1.0) == 65_536
    assert automatic.queue_length(20_000, 256, 0.999) == 8192


@given(st.integers(1, 10**7), st.integers(1, 4096), st.floats(0, 1))
def test_the_queue_never_outgrows_the_data_rule_and_holds_a_batch_or_more(images, batch_size, momentum):
    length = automatic.queue_length(images, batch_size, momentum)
    assert length <= min(images, {True: 256, False: 65_536}[images <= 1000])
    assert length >= min(images, 256, 4 * batch_size)


@pytest.mark.parametrize("optimizer", ["sgd", "lars", "adamw"])
def test_every_optimizer_has_its_values(optimizer):
    assert automatic.base_learning_rate(optimizer, True, METHODS["moco"]) > 0
    assert automatic.weight_decay(optimizer, METHODS["moco"]) > 0


@pytest.mark.parametrize(
    ("cores", "devices", "on_gpu", "expected"),
    [
        (1, 1, False, 1),
        (2, 1, False, 2),
        (2, 2, False, 1),
        (16, 1, False, 4),
        (16, 4, False, 1),
        (128, 1, False, 16),
        (1, 1, True, 1),
        (2, 1, True, 2),
        (16, 1, True, 16),
        (16, 8, True, 2),
        (4, 8, True, 1),
        (256, 8, True, 16),
    ],
)
def test_workers_follow_the_cores(cores, devices, on_gpu, expected):
    assert automatic.workers(cores, devices, on_gpu=on_gpu) == expected


def test_queue_length_follows_the_rule_of_thumb() -> None:
    table = {1: 256, 1_000: 256, 1_001: 2048, 10_000: 2048, 10_001: 8192, 40_000: 8192, 40_001: 32768}
    table |= {200_000: 32768, 200_001: 65536, 10**7: 65536}
    assert {images: automatic.longest_queue(images) for images in table} == table
