"""Color and blur against torchvision, image by image; the draws against torchvision's own."""

from __future__ import annotations

import dataclasses
import itertools
import math
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.data import default_collate
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as tv

from densecl import augment as augment_module
from densecl.augment import PhotometricSettings, augment, draw_photometrics
from densecl.errors import UserError
from densecl.normalization import IMAGENET, Normalization
from densecl.views import Crop, Photometrics

NEUTRAL = {"brightness": 1.0, "contrast": 1.0, "saturation": 1.0, "hue": 0.0, "blur_sigma": 0.0, "grayscale": False}


@pytest.fixture(params=["selected", "masked"])
def formulation(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Runs a test on the CPU's formulation and on that of other devices."""
    if request.param == "masked":
        monkeypatch.setattr(augment_module, "_change_selected", augment_module._change_masked)
    return request.param


def photometrics(batch: int = 1, *, order: tuple[int, ...] = (0, 1, 2, 3), **changed: float | bool) -> Photometrics:
    """The same photometrics for each image of a batch, neutral where not said."""
    fields = {name: torch.tensor([value] * batch) for name, value in (NEUTRAL | changed).items()}
    return Photometrics(order=torch.tensor([order] * batch), **fields)


def drawn(batch: int, seed: int = 0, **changed) -> Photometrics:
    rng = np.random.default_rng(seed)
    draws = [draw_photometrics(rng, PhotometricSettings(**changed)) for _ in range(batch)]
    return Photometrics(*(torch.stack(field) for field in zip(*draws, strict=True)))


def crop(pixels: Tensor, photometrics: Photometrics) -> Crop:
    batch = len(pixels)
    return Crop(pixels, torch.arange(4.0 * batch).reshape(batch, 4), torch.arange(batch) % 2 == 1, photometrics)


def random_pixels(*shape: int, dtype: torch.dtype = torch.uint8, seed: int = 0) -> Tensor:
    """Noise with gray, black, white and strongly colored pixels among it."""
    rng = np.random.default_rng(seed)
    white = 255 if dtype == torch.uint8 else 65535
    values = rng.random(shape)
    values[..., : shape[-1] // 3] = values[:, :1, :, : shape[-1] // 3]  # gray
    values[..., 0, :] = rng.integers(0, 2, shape[:1] + shape[1:2] + shape[-1:])  # black, white, pure colors
    return torch.from_numpy((values * white).round().astype(np.uint8 if dtype == torch.uint8 else np.uint16))


def unit_range(pixels: Tensor) -> Tensor:
    return pixels.to(torch.float32) / (255 if pixels.dtype == torch.uint8 else 65535)


def changed(pixels: Tensor, photometrics: Photometrics) -> Tensor:
    """The views before normalization."""
    channels = pixels.shape[1]
    return augment(crop(pixels, photometrics), Normalization((0.0,) * channels, (1.0,) * channels)).pixels


def torchvision_chain(image: Tensor, photometrics: Photometrics) -> Tensor:
    """The same with torchvision, one float image "channels height width" at a time."""
    operations = [
        lambda image: tv.adjust_brightness(image, photometrics.brightness.item()),
        lambda image: tv.adjust_contrast(image, photometrics.contrast.item()),
        lambda image: tv.adjust_saturation(image, photometrics.saturation.item()),
        lambda image: tv.adjust_hue(image, photometrics.hue.item()),
    ]
    for number in photometrics.order.tolist():
        image = operations[number](image)
    if photometrics.grayscale:
        image = tv.rgb_to_grayscale(image, num_output_channels=3)
    if photometrics.blur_sigma > 0:
        kernel = 2 * min(image.shape[-2:]) - 1  # the longest that torchvision can reflect
        image = tv.gaussian_blur(image, [kernel, kernel], [photometrics.blur_sigma.item()])
    return image


def of_image(photometrics: Photometrics, image: int) -> Photometrics:
    return Photometrics(*(field[image] for field in photometrics))


# --- each operation ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.uint8, torch.uint16])
@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("brightness", (0.0, 0.6, 1.4, 2.0)),
        ("contrast", (0.0, 0.6, 1.4, 2.0)),
        ("saturation", (0.0, 0.6, 1.4, 2.0)),
        ("hue", (-0.5, -0.31, -0.1, 0.001, 0.1, 1 / 6, 0.5)),
        ("grayscale", (True,)),
        ("blur_sigma", (0.02, 0.1, 0.5, 2.0, 5.0)),
    ],
)
def test_each_operation_is_torchvisions(
    formulation: str, name: str, values: tuple[float, ...], dtype: torch.dtype
) -> None:
    pixels = random_pixels(2, 3, 15, 15, dtype=dtype)
    for value in values:
        one = photometrics(2)._replace(**{name: torch.tensor([value] * 2)})
        expected = torch.stack([torchvision_chain(image, of_image(one, 0)) for image in unit_range(pixels)])
        assert not torch.equal(expected, unit_range(pixels)) or value == 0.02
        torch.testing.assert_close(changed(pixels, one), expected, rtol=0, atol=1e-5)


def test_every_order_is_kept_and_clamped_between(formulation: str) -> None:
    orders = list(itertools.permutations(range(4)))
    pixels = random_pixels(1, 3, 9, 9).expand(len(orders), -1, -1, -1)
    mixed = photometrics(len(orders), brightness=1.4, contrast=1.5, saturation=1.8, hue=0.2)
    mixed = mixed._replace(order=torch.tensor(orders))
    actual = changed(pixels, mixed)
    for number in range(len(orders)):
        expected = torchvision_chain(unit_range(pixels[number]), of_image(mixed, number))
        torch.testing.assert_close(actual[number], expected, rtol=0, atol=1e-5)
    far = [(actual[first] - actual[second]).abs().max() for first, second in itertools.combinations(range(24), 2)]
    assert sum(distance > 1e-2 for distance in far) > 0.8 * len(far), "the orders must matter to be tested"


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_random_photometrics_are_torchvisions(data: st.DataObject) -> None:
    batch, height, width = (data.draw(st.integers(1, most)) for most in (4, 9, 9))
    factor = st.floats(0, 3, width=32)
    each = [
        Photometrics(
            brightness=torch.tensor(data.draw(factor)),
            contrast=torch.tensor(data.draw(factor)),
            saturation=torch.tensor(data.draw(factor)),
            hue=torch.tensor(data.draw(st.floats(-0.5, 0.5, width=32))),
            order=torch.tensor(data.draw(st.permutations(range(4)))),
            grayscale=torch.tensor(data.draw(st.booleans())),
            # torchvision reflects a square kernel only as far as the shorter side allows, ours each side by itself.
            blur_sigma=torch.tensor(data.draw(st.one_of(st.just(0.0), st.floats(0.05, 2)))) * (height == width),
        )
        for _ in range(batch)
    ]
    mixed = Photometrics(*(torch.stack(field) for field in zip(*each, strict=True)))
    pixels = random_pixels(batch, 3, height, width, seed=data.draw(st.integers(0, 99)))
    actual = changed(pixels, mixed)
    assert actual.isfinite().all()
    for image, one, result in zip(unit_range(pixels), each, actual, strict=True):
        # Torchvision's and our hue differ by rounding, which a later contrast or saturation may multiply by 3 each.
        torch.testing.assert_close(result, torchvision_chain(image, one), rtol=0, atol=3e-5)


def test_blur_of_rectangular_views() -> None:
    pixels = random_pixels(2, 3, 24, 40)
    expected = tv.gaussian_blur(unit_range(pixels), [47, 47], [1.5])  # 15 deviations to each side
    torch.testing.assert_close(changed(pixels, photometrics(2, blur_sigma=1.5)), expected, rtol=0, atol=1e-5)


def test_blur_keeps_a_constant_image_and_a_single_pixel() -> None:
    for size in (1, 2, 8):
        pixels = torch.full((1, 3, size, size), 51, dtype=torch.uint8)
        expected = torch.full((1, 3, size, size), 0.2)
        torch.testing.assert_close(changed(pixels, photometrics(blur_sigma=3.0)), expected, rtol=0, atol=1e-6)


def test_difference_to_the_8_bit_pipeline_is_its_rounding() -> None:
    """Four steps of at most 1/255 each (torchvision truncates), the earlier ones multiplied by the later factors."""
    pixels = random_pixels(8, 3, 16, 16)
    mixed = photometrics(8, brightness=1.2, contrast=0.9, saturation=1.1, hue=0.05, blur_sigma=1.0)
    expected = torch.stack([torchvision_chain(image, of_image(mixed, 0)) for image in pixels])
    difference = (changed(pixels, mixed) - unit_range(expected)).abs()
    assert 0.1 / 255 < difference.mean() < 3 / 255


# --- the batch --------------------------------------------------------------------------------------------------


def test_neutral_photometrics_give_exactly_the_normalized_image(formulation: str) -> None:
    for dtype in (torch.uint8, torch.uint16):
        pixels = random_pixels(3, 3, 8, 8, dtype=dtype)
        mean, std = (torch.tensor(values)[:, None, None] for values in IMAGENET)
        before = pixels.clone()
        views = augment(crop(pixels, photometrics(3, order=(3, 1, 0, 2))), IMAGENET)
        assert torch.equal(views.pixels, (unit_range(pixels) - mean) / std)
        assert views.pixels.dtype == torch.float32
        assert views.pixels.is_contiguous()
        assert torch.equal(pixels, before), "the crop must stay as it was"


def test_boxes_and_flips_are_handed_on_and_the_flip_is_not_done_again() -> None:
    given_crop = crop(random_pixels(4, 3, 8, 8), photometrics(4))
    views = augment(given_crop, Normalization((0.0,) * 3, (1.0,) * 3))
    assert torch.equal(views.box, given_crop.box)
    assert torch.equal(views.flipped, given_crop.flipped)
    assert torch.equal(views.pixels, unit_range(given_crop.pixels))


@pytest.mark.parametrize("values_in_cache", [1, 2 * 3 * 12 * 12, 2**21])
def test_an_image_is_the_same_in_any_batch(
    formulation: str, values_in_cache: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(augment_module, "VALUES_IN_CACHE", values_in_cache)
    pixels, mixed = random_pixels(7, 3, 12, 12), drawn(7)
    together = augment(crop(pixels, mixed), IMAGENET).pixels
    for image in range(7):
        one = crop(pixels[image : image + 1], Photometrics(*(field[image : image + 1] for field in mixed)))
        torch.testing.assert_close(together[image : image + 1], augment(one, IMAGENET).pixels, rtol=0, atol=2e-6)


def test_the_same_crop_gives_the_same_view() -> None:
    torch.manual_seed(0)
    first = augment(crop(random_pixels(5, 3, 8, 8), drawn(5)), IMAGENET).pixels
    torch.manual_seed(1)
    assert torch.equal(first, augment(crop(random_pixels(5, 3, 8, 8), drawn(5)), IMAGENET).pixels)


def test_channels_last_and_expanded_crops_come_out_contiguous() -> None:
    pixels, mixed = random_pixels(4, 3, 8, 8), drawn(4)
    views = augment(crop(pixels.contiguous(memory_format=torch.channels_last), mixed), IMAGENET)
    assert views.pixels.is_contiguous()
    assert torch.equal(views.pixels, augment(crop(pixels, mixed), IMAGENET).pixels)


def test_autocast_does_not_reach_the_pixels() -> None:
    pixels, blurred = random_pixels(2, 3, 8, 8), photometrics(2, blur_sigma=1.0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = changed(pixels, blurred)
    assert torch.equal(inside, changed(pixels, blurred))


def test_nothing_waits_for_the_device() -> None:
    """Fake tensors refuse whatever would have to ask a device for a value or for a count."""
    with FakeTensorMode():
        fields = [field.to("cuda") for field in drawn_fake(4)]
        pixels = torch.empty(4, 3, 16, 16, dtype=torch.uint8, device="cuda")
        flipped = torch.empty(4, dtype=torch.bool, device="cuda")
        one = Crop(pixels, torch.empty(4, 4, device="cuda"), flipped, Photometrics(*fields))
        views = augment(one, IMAGENET)
        assert views.pixels.device.type == "cuda"
        assert views.pixels.shape == (4, 3, 16, 16)
        with pytest.raises(Exception, match=r"nonzero"):
            flipped.nonzero()


def drawn_fake(batch: int) -> Photometrics:
    values, chosen = torch.empty(batch), torch.empty(batch, dtype=torch.bool)
    order = torch.empty(batch, 4, dtype=torch.int64)
    return Photometrics(values, values, values, values, order, chosen, values)


# --- many draws -------------------------------------------------------------------------------------------------

ALONE = {"jitter_probability": 0.0, "grayscale_probability": 0.0, "blur_probability": 0.0}
PIPELINES = {
    "brightness": ({**ALONE, "jitter": (0.4, 0.0, 0.0, 0.0), "jitter_probability": 1.0}, [v2.ColorJitter(0.4)]),
    "contrast": ({**ALONE, "jitter": (0.0, 0.4, 0.0, 0.0), "jitter_probability": 1.0}, [v2.ColorJitter(0, 0.4)]),
    "saturation": ({**ALONE, "jitter": (0.0, 0.0, 0.4, 0.0), "jitter_probability": 1.0}, [v2.ColorJitter(0, 0, 0.4)]),
    "hue": ({**ALONE, "jitter": (0.0, 0.0, 0.0, 0.1), "jitter_probability": 1.0}, [v2.ColorJitter(0, 0, 0, 0.1)]),
    "grayscale": ({**ALONE, "grayscale_probability": 0.2}, [v2.RandomGrayscale(0.2)]),
    "blur": ({**ALONE, "blur_probability": 0.5}, [v2.RandomApply([v2.GaussianBlur(23, (0.1, 2.0))], 0.5)]),
    "together": (
        {},
        [
            v2.RandomApply([v2.ColorJitter(0.4, 0.4, 0.4, 0.1)], 0.8),
            v2.RandomGrayscale(0.2),
            v2.RandomApply([v2.GaussianBlur(23, (0.1, 2.0))], 0.5),
        ],
    ),
}


def a_few_values(views: Tensor) -> Tensor:
    """Four pixels of each view, all channels: enough that their covariances tell of colors, contrast and blur."""
    return views[:, :, [0, 3, 8, 13], [2, 9, 8, 5]].flatten(1).to(torch.float64)


def ours(image: Tensor, draws: int, **settings) -> Tensor:
    return a_few_values(changed(image.expand(draws, -1, -1, -1), drawn(draws, **settings)))


def theirs(image: Tensor, draws: int, pipeline: list) -> Tensor:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        transform = v2.Compose(pipeline)
        return a_few_values(torch.stack([transform(image) for _ in range(draws)]))


def farthest_moment(sample: Tensor, other: Tensor) -> float:
    """Of all means, variances and covariances the one that differs most, in standard errors of the difference.

    (No error is taken as smaller than float32's rounding, for values that never change.)
    """
    center = torch.cat([sample, other]).mean(dim=0)
    first, second = torch.triu_indices(len(center), len(center))
    moments = []
    for values in (sample, other):
        values = values - center
        values = torch.cat([values, values[:, first] * values[:, second]], dim=1)
        moments.append((values.mean(dim=0), values.var(dim=0) / len(values)))
    (mean, error), (other_mean, other_error) = moments
    return ((mean - other_mean).abs() / (error + other_error).sqrt().clamp(min=1e-6)).max().item()


@pytest.mark.parametrize("name", PIPELINES)
def test_many_views_have_torchvisions_means_variances_and_correlations(name: str) -> None:
    """Of 90 moments one lies beyond 4.5 standard errors by chance in one of 1600 tests."""
    settings, pipeline = PIPELINES[name]
    image = random_pixels(1, 3, 16, 16, seed=3)
    assert farthest_moment(ours(image, 2000, **settings), theirs(unit_range(image[0]), 2000, pipeline)) < 4.5


@pytest.mark.parametrize(
    "other",
    [
        {"jitter": (0.5, 0.4, 0.4, 0.1)},
        {"jitter": (0.4, 0.4, 0.4, 0.15)},
        {"jitter_probability": 0.6},
        {"grayscale_probability": 0.3},
        {"blur_sigma": (0.1, 1.2)},
        {"blur_probability": 0.3},
    ],
)
def test_the_comparison_of_moments_finds_other_settings(other: dict) -> None:
    image = random_pixels(1, 3, 16, 16, seed=3)
    assert farthest_moment(ours(image, 2000, seed=1, **other), ours(image, 2000)) > 4.5


def test_many_views_of_the_8_bit_pipeline_differ_by_its_rounding_alone() -> None:
    image = random_pixels(1, 3, 16, 16, seed=3)
    exact = ours(image, 2000)
    rounded = theirs(image[0], 2000, PIPELINES["together"][1]) / 255
    error = ((exact.var(dim=0) + rounded.var(dim=0)) / 2000).sqrt()
    assert ((exact.mean(dim=0) - rounded.mean(dim=0)).abs() < 3 / 255 + 4 * error).all()
    assert (exact.std(dim=0) / rounded.std(dim=0) - 1).abs().max() < 0.1
    assert (torch.corrcoef(exact.T) - torch.corrcoef(rounded.T)).abs().max() < 0.1


# --- other than three channels ----------------------------------------------------------------------------------


@pytest.mark.parametrize("channels", [1, 2, 5])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.uint16])
def test_n_channels_know_brightness_contrast_and_blur(formulation: str, channels: int, dtype: torch.dtype) -> None:
    pixels = random_pixels(3, channels, 11, 11, dtype=dtype)
    colored = photometrics(
        3, order=(2, 1, 3, 0), brightness=1.3, contrast=0.7, saturation=0.1, hue=0.4, grayscale=True, blur_sigma=0.8
    )
    image = unit_range(pixels)
    image = (0.7 * image + 0.3 * image.mean(dim=(1, 2, 3), keepdim=True)).clamp(0, 1)
    image = (1.3 * image).clamp(0, 1)
    image = tv.gaussian_blur(image.flatten(0, 1)[:, None], [21, 21], [0.8]).reshape(image.shape)
    torch.testing.assert_close(changed(pixels, colored), image, rtol=0, atol=1e-5)


def test_one_channel_is_torchvisions_gray_image() -> None:
    pixels = random_pixels(1, 1, 9, 9)
    mixed = photometrics(brightness=1.3, contrast=0.6, saturation=1.4, hue=0.1, blur_sigma=1.0, order=(3, 1, 0, 2))
    expected = torchvision_chain(unit_range(pixels[0]), of_image(mixed, 0))
    torch.testing.assert_close(changed(pixels, mixed)[0], expected, rtol=0, atol=1e-5)


def test_n_channels_are_drawn_without_color() -> None:
    four, three = drawn(200, channels=4), drawn(200, channels=3)
    assert (four.saturation == 1).all()
    assert (four.hue == 0).all()
    assert not four.grayscale.any()
    for name in ("brightness", "contrast", "order", "blur_sigma"):
        assert torch.equal(getattr(four, name), getattr(three, name))


@pytest.mark.parametrize(("mean", "std"), [(3, 2), (1, 1)])
def test_normalization_of_other_channels_is_refused(mean: int, std: int) -> None:
    with pytest.raises(UserError, match="3 channels"):
        augment(
            crop(random_pixels(1, 3, 4, 4), photometrics()), Normalization(IMAGENET.mean[:mean], IMAGENET.std[:std])
        )


def test_float_pixels_are_refused() -> None:
    with pytest.raises(TypeError, match="uint8 or uint16"):
        augment(crop(torch.rand(1, 3, 4, 4), photometrics()), IMAGENET)


# --- the draws --------------------------------------------------------------------------------------------------


def farthest(sample: Tensor, other: Tensor) -> float:
    """Kolmogorov-Smirnov distance of two samples, in units of its 1 % critical value."""
    grid = torch.cat([sample, other]).sort().values
    share = [torch.searchsorted(values.sort().values, grid, right=True) / len(values) for values in (sample, other)]
    distance = (share[0] - share[1]).abs().max().item()
    return distance / (1.63 * math.sqrt((len(sample) + len(other)) / (len(sample) * len(other))))


def test_draws_are_distributed_as_torchvisions() -> None:
    many = 4000
    ours = drawn(many, jitter=(0.4, 0.3, 1.2, 0.1), jitter_probability=1.0)
    torch.manual_seed(0)
    jitter = v2.ColorJitter(0.4, 0.3, 1.2, 0.1)
    theirs = [jitter.make_params([]) for _ in range(many)]
    for name, least, most in (
        ("brightness", 0.6, 1.4),
        ("contrast", 0.7, 1.3),
        ("saturation", 0.0, 2.2),
        ("hue", -0.1, 0.1),
    ):
        values = getattr(ours, name)
        span = most - least
        assert least <= values.min() < least + 0.01 * span
        assert most - 0.01 * span < values.max() <= most
        assert farthest(values, torch.tensor([params[f"{name}_factor"] for params in theirs])) < 1
    assert farthest(ours.brightness, ours.brightness**2) > 1, "the measure must be able to fail"
    # All 24 orders alike: a chi-squared of 23 degrees of freedom exceeds 41.6 in 1 % of cases.
    code = (ours.order * torch.tensor([64, 16, 4, 1])).sum(dim=1)
    counts = code.unique(return_counts=True)[1]
    assert len(counts) == 24
    assert ((counts - many / 24) ** 2 / (many / 24)).sum() < 41.6


def test_probabilities_and_neutral_values() -> None:
    many = 4000
    draws = drawn(many)
    jittered = draws.brightness != 1
    for name, neutral in (("contrast", 1), ("saturation", 1), ("hue", 0)):
        assert torch.equal(getattr(draws, name) != neutral, jittered), "the four come and go together"
    blurred = draws.blur_sigma > 0
    for happened, probability in ((jittered, 0.8), (draws.grayscale, 0.2), (blurred, 0.5)):
        error = math.sqrt(probability * (1 - probability) / many)
        assert abs(happened.float().mean().item() - probability) < 3 * error
    sigma = draws.blur_sigma[blurred]
    assert 0.1 <= sigma.min() < 0.12
    assert 1.98 < sigma.max() <= 2.0
    assert farthest(sigma, torch.linspace(0.1, 2.0, many)) < 1
    # Independent of each other, and so are the amounts.
    everything = drawn(many, jitter_probability=1.0, blur_probability=1.0)
    amounts = [everything.brightness, everything.contrast, everything.saturation, everything.hue, everything.blur_sigma]
    table = torch.stack([*amounts, *everything.order.T[:3].float(), everything.grayscale.float()])
    correlation = torch.corrcoef(table)
    correlation[5:8, 5:8] = torch.eye(3)  # the places of a permutation exclude each other
    assert (correlation - torch.eye(len(table))).abs().max() < 0.05
    assert abs(torch.corrcoef(torch.stack([jittered, draws.grayscale, blurred]).float()) - torch.eye(3)).max() < 0.05


def test_probabilities_nought_and_one() -> None:
    never = drawn(50, jitter_probability=0.0, grayscale_probability=0.0, blur_probability=0.0)
    for name, neutral in NEUTRAL.items():
        assert (getattr(never, name) == neutral).all()
    always = drawn(50, jitter_probability=1.0, grayscale_probability=1.0, blur_probability=1.0)
    assert (always.brightness != 1).all()
    assert always.grayscale.all()
    assert (always.blur_sigma > 0).all()


def test_strength_nought_leaves_that_operation_out() -> None:
    draws = drawn(50, jitter=(0.0, 0.4, 0.0, 0.0), jitter_probability=1.0)
    assert (draws.brightness == 1).all()
    assert (draws.saturation == 1).all()
    assert (draws.hue == 0).all()
    assert (draws.contrast != 1).all()


def test_one_probability_leaves_the_other_draws_alone() -> None:
    usual, blurry = drawn(50), drawn(50, blur_probability=1.0)
    for name in ("brightness", "contrast", "saturation", "hue", "order", "grayscale"):
        assert torch.equal(getattr(usual, name), getattr(blurry, name))


def test_draws_depend_on_the_generator_alone() -> None:
    torch.manual_seed(0)
    first = drawn(20, seed=3)
    torch.manual_seed(1)
    for one, other in zip(first, drawn(20, seed=3), strict=True):
        assert torch.equal(one, other)
    assert not torch.equal(first.brightness, drawn(20, seed=4).brightness)


def test_draws_are_scalars_of_the_contracts_types() -> None:
    one = draw_photometrics(np.random.default_rng(0), PhotometricSettings())
    for name, field in one._asdict().items():
        assert field.shape == ((4,) if name == "order" else ())
    assert one.order.dtype == torch.int64
    assert one.grayscale.dtype == torch.bool
    assert one.brightness.dtype == one.blur_sigma.dtype == torch.float32


def test_blur_scales_with_the_view() -> None:
    assert PhotometricSettings.for_image_size(224) == PhotometricSettings()
    small = PhotometricSettings.for_image_size(96, blur_sigma=(0.7, 2.1), jitter_probability=0.3, channels=4)
    assert small.blur_sigma == pytest.approx((0.3, 0.9))
    assert dataclasses.replace(small, blur_sigma=(0.7, 2.1)) == PhotometricSettings(
        blur_sigma=(0.7, 2.1), jitter_probability=0.3, channels=4
    )


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("jitter_probability", 1.5),
        ("grayscale_probability", -0.1),
        ("blur_probability", float("nan")),
        ("jitter", (0.4, -0.4, 0.4, 0.1)),
        ("jitter", (0.4, 0.4, float("inf"), 0.1)),
        ("jitter", (0.4, 0.4, 0.4, 0.6)),
        ("blur_sigma", (2.0, 0.1)),
        ("blur_sigma", (-1.0, 0.1)),
        ("blur_sigma", (0.0, float("nan"))),
    ],
)
def test_settings_out_of_range_are_refused(name: str, value: Any) -> None:
    with pytest.raises(UserError, match=name):
        PhotometricSettings(**{name: value})


def test_later_threads_of_the_process_keep_their_number_of_threads():
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        rng = np.random.default_rng(0)
        drawn = default_collate([draw_photometrics(rng, PhotometricSettings()) for _ in range(2)])
        crop = Crop(torch.zeros(2, 3, 8, 8, dtype=torch.uint8), torch.zeros(2, 4), torch.zeros(2).bool(), drawn)
        augment(crop, Normalization((0.5,) * 3, (0.5,) * 3))
        with ThreadPoolExecutor(1) as later:
            assert later.submit(torch.get_num_threads).result() == torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)


def test_brightness_of_a_narrow_band_goes_by_its_own_contrast():
    """Over the whole range and in a narrow band far from 0, the same picture becomes the same views once normalized."""
    rng = np.random.default_rng(0)
    gray = torch.from_numpy(rng.integers(0, 256, (16, 1, 12, 12), dtype=np.int64))
    settings = PhotometricSettings(jitter_probability=1.0, channels=1)
    drawn = default_collate([draw_photometrics(rng, settings) for _ in range(16)])

    def views(values, **options):
        crop = Crop(values.to(torch.uint16), torch.zeros(16, 4), torch.zeros(16).bool(), drawn)
        unit = values / 65535
        return augment(crop, Normalization((unit.mean().item(),), (unit.std().item(),)), **options).pixels

    middle = views(25600 + gray * 50, shift_brightness=True)  # wide, but nothing is cut off
    narrow = views(7300 + gray * 2, shift_brightness=True)
    assert torch.allclose(narrow, middle, atol=0.01)
    assert views(7300 + gray * 2).mean(dim=(1, 2, 3)).std() > 10  # a factor moves them by many deviations
    assert 0.1 < narrow.mean(dim=(1, 2, 3)).std() < 1
