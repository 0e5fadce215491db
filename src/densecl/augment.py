"""Color and blur of a whole batch, on the device that trains: the photometric half of the augmentation.

Crop and flip are cheap and happen in the data-loading workers. The workers also *draw* the color changes
(`draw_photometrics`), so that they depend on the sample alone. *Applying* them costs 70-85 % of the usual pipeline.
That happens here, for all images at once (`augment`).

Each operation is torchvision's on float images, up to rounding: the factors, their order, clamping to 0-1 after each
operation, hue turned in HSV. So over many draws the views have torchvision's means, variances and correlations. Two
things differ:

- Nothing is rounded to 8 bits in between. torchvision rounds uint8 images after each of four jitters, grayscale and
  blur. That has no benefit, and it would discard the extra precision of 16-bit images.
- The blur's Gaussian is not cut off at a kernel size. (The usual 23 pixels at 224 px end at 5.5 standard deviations or
  more, where 1e-7 of the weight is left.) Its range of sigma is meant for views of 224 px and is scaled to other sizes
  (`PhotometricSettings.for_image_size`), so that a view of any size loses the same relative detail.

Images that do not have 3 channels have no hue, saturation or gray. Their jitter is brightness and contrast alone, the
same for all channels. Contrast is then about the mean over all channels and pixels.

Some images have values in a narrow band far from 0 (thermal images, elevations). A brightness factor of 0.6 to 1.4
would move these by many times the contrast of the picture. With `shift_brightness` the values are shifted instead, by
as many of the image's own standard deviations as the factor would shift an ordinary photograph.
"""

from __future__ import annotations

import functools
import math
import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from densecl.errors import UserError
from densecl.normalization import Normalization
from densecl.views import Crop, Photometrics, Views

#: Meaning of the numbers in `Photometrics.order`, in torchvision's numbering.
BRIGHTNESS, CONTRAST, SATURATION, HUE = range(4)

#: Weights of red, green and blue in gray: ITU-R 601, in torchvision's digits.
GRAY = (0.2989, 0.587, 0.114)

#: Values of a batch that a CPU thread works on at a time, so that they stay in the cache.
VALUES_IN_CACHE = 2**21

#: Mean of an ordinary photograph, in its own standard deviations. A brightness factor of 2 shifts it by this much.
PHOTOGRAPH = 2.0

#: Weights of the blur below this (the center's is 1) make no difference in float32, so they are set to 0. Otherwise
#: some would be subnormal numbers, which make a CPU multiply up to thirty times as slowly.
NO_WEIGHT = 1e-12

WHITE = {torch.uint8: 255, torch.uint16: 65535}

#: An operation: overwrites the images it is given, by amounts of which each image has one.
Change = Callable[..., Float[Tensor, "images channels height width"]]


@dataclass(frozen=True, kw_only=True)
class PhotometricSettings:
    """How strongly and how often the colors of a view change. The defaults are the paper's, for views of 224 px.

    Raises:
        UserError: if a value is outside its range.
    """

    jitter: tuple[float, float, float, float] = (0.4, 0.4, 0.4, 0.1)
    """Brightness, contrast, saturation: factors within 1 +- this, never below 0. Hue: turned by at most this, 0-0.5."""
    jitter_probability: float = 0.8
    grayscale_probability: float = 0.2
    blur_probability: float = 0.5
    blur_sigma: tuple[float, float] = (0.1, 2.0)
    """Range of the standard deviation, in pixels of the view."""
    channels: int = 3

    def __post_init__(self) -> None:
        for name in ("jitter_probability", "grayscale_probability", "blur_probability"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"{name} is {getattr(self, name)}; a probability lies between 0 and 1.")
        if not all(0 <= strength < math.inf for strength in self.jitter) or self.jitter[HUE] > 0.5:
            raise UserError(f"jitter is {self.jitter}; its strengths are not negative, and that of hue is at most 0.5.")
        if not 0 <= self.blur_sigma[0] <= self.blur_sigma[1] < math.inf:
            raise UserError(f"blur_sigma is {self.blur_sigma}; give the smallest and the largest, neither negative.")

    @classmethod
    def for_image_size(
        cls,
        image_size: int,
        *,
        blur_sigma: tuple[float, float] = blur_sigma,
        **others: Any,
    ) -> PhotometricSettings:
        """Settings for views of `image_size` px. `blur_sigma` is given for 224 px and scaled; the rest stays."""
        smallest, largest = (sigma * image_size / 224 for sigma in blur_sigma)
        return cls(blur_sigma=(smallest, largest), **others)


def draw_photometrics(rng: np.random.Generator, settings: PhotometricSettings) -> Photometrics:
    """Draws the color changes of one view. Takes about 20 microseconds.

    It always draws the same number of random numbers, so that changing one probability or strength leaves all other
    draws as they were.
    """
    draws = rng.random(12)
    jittered, gray, blurred, *amounts, sigma = draws[:8].tolist()
    strengths = settings.jitter if jittered < settings.jitter_probability else (0.0, 0.0, 0.0, 0.0)
    if settings.channels != 3:
        strengths = (*strengths[:SATURATION], 0.0, 0.0)
    factors = []
    for amount, strength in zip(amounts[:HUE], strengths[:HUE], strict=True):
        lowest = max(0.0, 1 - strength)
        factors.append(lowest + amount * (1 + strength - lowest))
    hue = (2 * amounts[HUE] - 1) * strengths[HUE]
    smallest, largest = settings.blur_sigma
    sigma = smallest + sigma * (largest - smallest) if blurred < settings.blur_probability else 0.0
    brightness, contrast, saturation, hue, sigma = torch.tensor([*factors, hue, sigma]).unbind()
    return Photometrics(
        brightness=brightness,
        contrast=contrast,
        saturation=saturation,
        hue=hue,
        order=torch.from_numpy(draws[8:].argsort()),
        grayscale=torch.tensor(settings.channels == 3 and gray < settings.grayscale_probability),
        blur_sigma=sigma,
    )


@torch.no_grad()
def augment(crop: Crop, normalization: Normalization, *, shift_brightness: bool = False) -> Views:
    """Jitter in each image's own order, then grayscale, then blur, then (pixels - mean) / std.

    On a CPU, each operation runs only on the images that it changes. On other devices it runs on all images and keeps
    the result where it applies, because counting the changed images would make the CPU wait for the device.

    Args:
        crop: a batch of crops, uint8 or uint16.
        normalization: mean and standard deviation of each channel, on the 0-1 scale.
        shift_brightness: shift the values of an image instead of multiplying them, see the top of this file.

    Returns:
        Contiguous float32 views on the device of the crop's pixels.

    Raises:
        UserError: if `normalization` has another number of channels than the pixels.
        TypeError: if the pixels are neither uint8 nor uint16.
    """
    raw = crop.pixels
    mean, std = normalization
    if not len(mean) == len(std) == raw.shape[1]:
        raise UserError(f"mean has {len(mean)} values and std {len(std)}, but the images have {raw.shape[1]} channels.")
    if raw.dtype not in WHITE:
        raise TypeError(f"pixels are {raw.dtype}; crops are uint8 or uint16.")
    photometrics = Photometrics(*(field.to(raw.device, non_blocking=True) for field in crop.photometrics))
    pixels = raw.to(torch.float32).contiguous().div_(WHITE[raw.dtype])
    if raw.device.type == "cpu":
        threads = torch.get_num_threads()
        fitting = VALUES_IN_CACHE // max(1, raw[:1].numel())
        images = max(1, min(fitting, math.ceil(len(raw) / threads)))
        pieces = zip(pixels.split(images), *(field.split(images) for field in photometrics), strict=True)
        change_colors = functools.partial(
            _change_colors, normalization=normalization, shift_brightness=shift_brightness, change=_change_selected
        )
        list(_pool(threads).map(lambda piece: change_colors(*piece), pieces))
    else:
        _change_colors(
            pixels,
            *photometrics,
            normalization=normalization,
            shift_brightness=shift_brightness,
            change=_change_masked,
        )
    return Views(pixels, crop.box, crop.flipped)


@functools.cache
def _pool(threads: int) -> ThreadPoolExecutor:
    """Threads that each work on their own images, with torch using one thread inside each.

    torch would split every one of some fifty small operations between its threads. That takes twice the time, because
    the threads wait for each other after each operation. `torch.set_num_threads` holds for the calling thread and for
    all threads that start later, so it is set back once the pool's threads run.
    """
    ready = threading.Barrier(threads + 1)

    def begin() -> None:
        torch.get_num_threads()  # the first call in a thread copies the others' number, so it must come first
        torch.set_num_threads(1)
        ready.wait()

    pool = ThreadPoolExecutor(threads, "augment", initializer=begin)
    for _ in range(threads):
        pool.submit(int)
    ready.wait()
    torch.set_num_threads(threads)
    return pool


if hasattr(os, "register_at_fork"):  # a forked process has none of the pool's threads
    os.register_at_fork(after_in_child=_pool.cache_clear)


@torch.no_grad()
def _change_colors(
    pixels: Float[Tensor, "batch channels height width"],
    *photometrics: Tensor,
    normalization: Normalization,
    shift_brightness: bool,
    change: Callable[..., None],
) -> None:
    """Changes pixels (0-1) in place and normalizes them."""
    with torch.autocast(pixels.device.type, enabled=False):
        drawn = Photometrics(*photometrics)
        if shift_brightness:
            change(pixels, drawn.brightness != 1, _shift, PHOTOGRAPH * (drawn.brightness - 1))
            drawn = drawn._replace(brightness=torch.ones_like(drawn.brightness))
        _apply(pixels, drawn, change)
        for channel, mean, std in zip(pixels.unbind(dim=1), *normalization, strict=True):
            channel.sub_(mean).div_(std)


def _apply(
    pixels: Float[Tensor, "batch channels height width"], photometrics: Photometrics, change: Callable[..., None]
) -> None:
    """Changes pixels (0-1) in place.

    Brightness, contrast and saturation share one formula, `_blend`; only hue differs. So every image goes through up to
    three blends, one turn of hue, and up to three more blends. That covers every order of the four.
    """
    order = photometrics.order
    unchanged = torch.ones_like(photometrics.brightness)
    color = pixels.shape[1] == 3
    saturation = photometrics.saturation if color else unchanged
    factors = torch.stack([photometrics.brightness, photometrics.contrast, saturation, unchanged], dim=1)
    factors = factors.gather(1, order)  # in the order in which they are applied
    turn = (order == HUE).int().argmax(dim=1)

    def blend(step: int, now: Bool[Tensor, "batch"]) -> None:
        factor, rest = factors[:, step], 1 - factors[:, step]
        to_gray = rest * (order[:, step] == SATURATION)
        to_mean = rest * (order[:, step] == CONTRAST)
        change(pixels, now & (factor != 1), _blend, factor, to_gray, to_mean)

    for step in range(3):
        blend(step, step < turn)
    if color:
        change(pixels, photometrics.hue != 0, _turn_hue, photometrics.hue)
    for step in range(1, 4):
        blend(step, step > turn)
    if color:
        change(pixels, photometrics.grayscale, _to_gray)
    change(pixels, photometrics.blur_sigma > 0, _blur, photometrics.blur_sigma)


def _change_selected(pixels: Tensor, selected: Bool[Tensor, "batch"], change: Change, *amounts: Tensor) -> None:
    rows = selected.nonzero().squeeze(1)
    if len(rows):
        pixels[rows] = change(pixels[rows], *(amount[rows] for amount in amounts))


def _change_masked(pixels: Tensor, selected: Bool[Tensor, "batch"], change: Change, *amounts: Tensor) -> None:
    changed = change(pixels.clone(), *amounts)
    torch.where(selected[:, None, None, None], changed, pixels, out=pixels)


def _blend(
    images: Float[Tensor, "images channels height width"],
    factor: Float[Tensor, "images"],
    to_gray: Float[Tensor, "images"],
    to_mean: Float[Tensor, "images"],
) -> Float[Tensor, "images channels height width"]:
    """factor * image + to_gray * its gray + to_mean * its mean gray, clamped to 0-1."""
    if images.shape[1] == 3:
        gray = _gray(images)
        reference = gray * to_gray[:, None, None] + (gray.mean(dim=(1, 2)) * to_mean)[:, None, None]
    else:
        reference = (images.mean(dim=(1, 2, 3)) * to_mean)[:, None, None]
    return torch.addcmul(reference[:, None], images, factor[:, None, None, None], out=images).clamp_(0, 1)


def _shift(
    images: Float[Tensor, "images channels height width"], deviations: Float[Tensor, "images"]
) -> Float[Tensor, "images channels height width"]:
    """Image + `deviations` times its own standard deviation, clamped to 0-1."""
    spread = images.std(dim=(2, 3), correction=0).mean(dim=1)
    return images.add_((spread * deviations)[:, None, None, None]).clamp_(0, 1)


def _turn_hue(
    images: Float[Tensor, "images 3 height width"], hue: Float[Tensor, "images"]
) -> Float[Tensor, "images 3 height width"]:
    """Turns the colors by the fraction `hue` of the color circle. Value and saturation in HSV stay.

    Take the hue in sixths of the circle: red is 0, green 2, blue 4. Let `high` be a pixel's brightest channel and `low`
    its darkest. Then each channel is low + (high - low) * weight. The weight is 1 up to one sixth from the channel's
    own hue, 0 beyond two sixths, and linear in between.
    """
    red, green, blue = images.unbind(dim=1)
    high = torch.maximum(torch.maximum(red, green), blue)
    low = torch.minimum(torch.minimum(red, green), blue)
    chroma = high - low
    sixths = torch.where(
        high == red,
        green - blue,
        torch.where(high == green, torch.add(blue - red, chroma, alpha=2), torch.add(red - green, chroma, alpha=4)),
    )
    # Gray has no hue. Any finite value will do, because its chroma is 0.
    sixths.div_(chroma.clamp(min=torch.finfo(chroma.dtype).tiny)).add_(6 * hue[:, None, None] + 6)
    sixths.sub_(sixths.mul(1 / 6).floor_().mul_(6))  # within 0-6; torch.remainder takes far longer
    weight = torch.sub(sixths, 3, out=high).abs_().sub_(1).clamp_(0, 1)  # red lies at both ends
    torch.addcmul(low, chroma, weight, out=red)
    for channel, own in ((green, 2), (blue, 4)):
        torch.sub(sixths, own, out=weight).abs_().neg_().add_(2).clamp_(0, 1)
        torch.addcmul(low, chroma, weight, out=channel)
    return images


def _to_gray(images: Float[Tensor, "images 3 height width"]) -> Float[Tensor, "images 3 height width"]:
    return _gray(images)[:, None].expand_as(images)


def _gray(images: Float[Tensor, "images 3 height width"]) -> Float[Tensor, "images height width"]:
    red, green, blue = images.unbind(dim=1)
    return (red * GRAY[0]).add_(green, alpha=GRAY[1]).add_(blue, alpha=GRAY[2])


def _blur(
    images: Float[Tensor, "images channels height width"], sigma: Float[Tensor, "images"]
) -> Float[Tensor, "images channels height width"]:
    """Gaussian blur, down and across: each image is multiplied by matrices of its own.

    On a CPU a grouped convolution would take half the time (measured: 4 ms less for 64 views of 96 px, 1 % of a
    training step). But its length depends on the largest sigma, which the CPU would have to ask of the device.
    """
    height, width = images.shape[2:]
    down = _blur_matrix(sigma, height)
    across = down if height == width else _blur_matrix(sigma, width)
    return down[:, None] @ images @ across.mT[:, None]


def _blur_matrix(sigma: Float[Tensor, "images"], size: int) -> Float[Tensor, "images size size"]:
    """The blur of a line of `size` pixels as a matrix: a Gaussian, reflected at the ends (the end pixel counts once).

    The Gaussian is cut off at size - 1 pixels, where a second reflection would begin.
    """
    distance = torch.arange(2 * size, device=sigma.device, dtype=torch.float32)
    # A sigma this small leaves the pixels as they are, and avoids 0/0 where sigma is 0.
    kernel = torch.exp(-0.5 * (distance / sigma.clamp(min=1e-3)[:, None]) ** 2) * (distance < size)
    kernel = F.threshold(kernel, NO_WEIGHT, 0.0)
    kernel = kernel / (2 * kernel.sum(dim=1, keepdim=True) - kernel[:, :1])
    to, source = torch.meshgrid(*[torch.arange(size, device=sigma.device)] * 2, indexing="ij")
    beyond = 2 * size - 1  # a distance whose weight is 0: the end pixels have no reflection
    before = torch.where(source > 0, to + source, beyond)
    after = torch.where(source < size - 1, 2 * (size - 1) - to - source, beyond)
    return kernel[:, (to - source).abs()] + kernel[:, before] + kernel[:, after]
