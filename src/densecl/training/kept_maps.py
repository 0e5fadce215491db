"""The teacher's maps of whole images, made before the first step and kept: `--teacher-cache`."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float, Shaped
from lightning.fabric.utilities import move_data_to_device
from torch import Tensor
from torch.utils.data import default_collate

from densecl.augment import augment
from densecl.config.setting import seconds_in
from densecl.errors import UserError
from densecl.images.loader import make_loader
from densecl.images.maps import KeptMaps
from densecl.images.pairs import NO_CROP
from densecl.images.whole import WholeImages, collate_whole
from densecl.names import shown
from densecl.progress import Display
from densecl.training.build import Parts
from densecl.training.voice import Voice
from densecl.training.world import World
from densecl.views import Crop

#: Increase it whenever the same network would give another map of the same image.
VERSION = 1

#: Images that go through the teacher at a time.
AT_ONCE = 16

#: Seconds between two looks for the maps of the other processes.
LOOK_EVERY = 1.0


def open_maps(parts: Parts) -> KeptMaps | None:
    """The maps of the run's teacher; None if they are not kept.

    Raises:
        UserError: the folder cannot be written, or the images have no files.
    """
    recipe, guidance = parts.recipe, parts.model.guidance
    if recipe.teacher_cache is None or guidance is None or guidance.teacher is None:
        return None
    frozen, size = guidance.teacher.frozen, _size(parts)
    made_by = (VERSION, frozen.digest, size, frozen.channels, frozen.normalization, recipe.brightness)
    shape = (frozen.network.channels, *frozen.network.grid_at(size))
    return KeptMaps(parts.source, recipe.teacher_cache, repr(made_by), shape)


def make_maps(
    maps: KeptMaps,
    parts: Parts,
    device: torch.device,
    *,
    world: World | None,
    voice: Voice | None,
    stop: Callable[[], bool],
) -> None:
    """Makes the maps that are not there. Several processes share the work, and wait for each other.

    Args:
        maps: of the run.
        parts: of the run.
        device: on which the teacher computes.
        world: the processes of the run.
        voice: on the first process, tells how it goes.
        stop: is asked after every few images. If it says yes, the rest is left for the next time.

    Raises:
        UserError: there is no room for them, a file cannot be written, or no other process goes on.
    """
    missing = list(maps.missing())
    if not missing:
        return
    maps.check_space(len(missing))
    rank, processes = (0, 1) if world is None else (world.rank, world.size)
    # By their number: the others may have made some of them before this process looked what is missing.
    mine = [index for index in missing if index % processes == rank]
    display = None
    if voice is not None:
        told = f"--teacher-cache: {len(missing)} maps are missing, {len(missing) * maps.bytes_each / 1e9:.3g} GB"
        voice.say(f"{told} in {shown(maps.folder)}")
        display = Display(voice.console, len(mine), title="the teacher's maps", what="image", log=voice.log)
    try:
        _make(maps, parts, device, mine, display, stop)
    except OSError as error:
        raise UserError(f"--teacher-cache {shown(maps.folder)}: a map cannot be written ({error.strerror}).") from error
    finally:
        if display is not None:
            display.close()
    if processes > 1:
        _wait(maps, missing, seconds_in(parts.recipe.distributed_timeout), stop)


def _make(
    maps: KeptMaps,
    parts: Parts,
    device: torch.device,
    images: Sequence[int],
    display: Display | None,
    stop: Callable[[], bool],
) -> None:
    recipe, guidance = parts.recipe, parts.model.guidance
    assert guidance is not None and guidance.teacher is not None
    frozen, size = guidance.teacher.frozen, _size(parts)
    loader = make_loader(
        WholeImages(parts.source, (size, size)),
        [list(images[start : start + AT_ONCE]) for start in range(0, len(images), AT_ONCE)],
        collate=collate_whole,
        workers=recipe.workers,
        pin_memory=device.type == "cuda",
        read_timeout=recipe.read_timeout,
    )
    begun, done = time.monotonic(), 0
    for batch in loader:
        if len(batch.index):
            features = frozen(_normalized(batch.pixels.to(device), parts))
            for index, one in zip(batch.index.tolist(), features, strict=True):
                maps.write(index, one)
        for index, _ in batch.bad:
            maps.write(index, None)
        done += len(batch.index) + len(batch.bad)
        if display is not None:
            rate = done / max(1e-9, time.monotonic() - begun)
            left = (len(images) - done) / rate
            display.step(done, done / len(images), left)
            if display.stale or done == len(images):
                display.report(done, (f"{rate:.3g} images/s",), left)
        if stop():
            return


def _size(parts: Parts) -> int:
    """Side in pixels at which the teacher sees a whole image."""
    return parts.recipe.teacher_size or parts.recipe.image_size


def _normalized(
    pixels: Shaped[Tensor, "batch channels height width"], parts: Parts
) -> Float[Tensor, "batch channels height width"]:
    """The images in their own colors, as views are normalized."""
    plain = move_data_to_device(default_collate([NO_CROP] * len(pixels)), pixels.device)
    crop = Crop(pixels, plain.box, plain.flipped, plain.photometrics)
    return augment(crop, parts.normalization, shift_brightness=parts.recipe.brightness == "shift").pixels


def _wait(maps: KeptMaps, missing: Sequence[int], patience: float, stop: Callable[[], bool]) -> None:
    """Until the maps of the other processes are there.

    Raises:
        UserError: none came for so many seconds.
    """
    left, seen = list(missing), time.monotonic()
    while left and not stop():
        time.sleep(LOOK_EVERY)
        still = [index for index in left if maps.lacks(index)]
        if len(still) < len(left):
            left, seen = still, time.monotonic()
        elif time.monotonic() - seen > patience:
            raise UserError(
                f"--teacher-cache {shown(maps.folder)}: the other processes make no maps, {len(left)} are missing. All"
                " machines must see the same folder."
            )
