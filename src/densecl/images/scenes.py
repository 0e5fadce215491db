"""Drawn scenes with labels, for when there is no data: textured objects over textured backgrounds.

Only local structure tells the classes apart. Each surface has two colors, drawn without regard to its class, and chance
decides which is the figure and which the ground. So the color of a pixel says nothing about its class: a linear probe
on colors, or on 3x3 patches of them, scores at chance level. Turn, period, warp, silhouette, colors, lighting, focus
and noise vary.

Scene `index` of a split depends on (seed, split, index) alone, and looks the same at every size. The numbers below were
chosen with linear probes of pixels and of random networks, and with a supervised network, never with pre-training
results. They stay as they are, because a benchmark must not follow its winners.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Float32, Int64, UInt8
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from densecl.files import replacing

Split = Literal["train", "test"]
Plane = Float32[np.ndarray, "height width"]

OBJECTS = (3, 5)  # in a scene, fewest and most
RADIUS = (0.18, 0.30)  # of an object, as a fraction of the scene's side
TURN = 0.4  # of a texture, at most, in radians either way
SPREAD_OF_PERIOD = 0.18  # of a texture's period around that of its class, as a fraction
BACKGROUND_PERIOD = (0.22, 0.4)  # as a fraction of the scene's side
CONTRAST = (0.45, 0.8)  # between the figure and the ground of a surface
TINT = 0.22  # how far from gray a surface's colors are, at most
HIDDEN = 0.3  # an object has no box if less than this fraction of it is visible


class Scene(NamedTuple):
    """A drawn scene."""

    image: UInt8[Tensor, "3 height width"]  # RGB
    labels: UInt8[Tensor, "height width"]  # index into CLASSES, 0 = background
    boxes: Int64[Tensor, "objects 5"]  # x0 y0 x1 y1 class of the visible part of each object, ends exclusive


def _apart(x: Plane) -> Plane:
    """Distance to the nearest integer, 0 to 0.5."""
    return np.abs(x - np.rint(x))


def _staggered(u: Plane, v: Plane) -> tuple[Plane, Plane]:
    """Offsets from the nearest point of a lattice in which every other row is shifted by half a period."""
    row = np.rint(v)
    u = u + 0.5 * row  # one row up, the shift is half a period; two rows up, a whole one, which is none
    return u - np.rint(u), v - row


# A texture maps a surface's own coordinates (in periods) to the signed distance (in periods) from the nearest contour,
# positive inside the figure.


def _stripes(u: Plane, v: Plane) -> Plane:
    return 0.25 - _apart(u)


def _zigzag(u: Plane, v: Plane) -> Plane:
    return 0.25 - _apart(u + 1.2 * _apart(0.8 * v))


def _checks(u: Plane, v: Plane) -> Plane:
    across, down = _apart(u) - 0.25, _apart(v) - 0.25
    return np.sign(across * down) * np.minimum(np.abs(across), np.abs(down))


def _dots(u: Plane, v: Plane) -> Plane:
    across, down = _staggered(u, v)
    return 0.3 - np.sqrt(across * across + down * down)


def _rings(u: Plane, v: Plane) -> Plane:
    return 0.11 - np.abs(_dots(u, v))


def _bricks(u: Plane, v: Plane) -> Plane:
    across, down = (np.abs(offset) for offset in _staggered(0.7 * u, 1.4 * v))
    return np.minimum((0.5 - across) / 0.7, (0.5 - down) / 1.4) - 0.09


#: Each class: its texture, and its period as a fraction of the scene's side.
TEXTURES: dict[str, tuple[Callable[[Plane, Plane], Plane], float]] = {
    "stripes": (_stripes, 0.07),
    "zigzag": (_zigzag, 0.14),
    "checks": (_checks, 0.18),
    "dots": (_dots, 0.10),
    "rings": (_rings, 0.17),
    "bricks": (_bricks, 0.20),
}

#: Names of the labels; label 0 is the background, an irregular pattern.
CLASSES: tuple[str, ...] = ("background", *TEXTURES)


def draw_scene(split: Split, index: int, *, size: int = 96, seed: int = 0) -> Scene:
    """Draw one scene of `size` x `size` pixels. It is the same for the same (seed, split, index), at any size."""
    # The noise has its own random stream, because it alone draws a number for each pixel.
    geometry, noise = (
        np.random.default_rng([seed, ("train", "test").index(split), index, stream]) for stream in range(2)
    )
    across = (np.arange(size, dtype=np.float32) + 0.5) / size
    x, y = np.broadcast_to(across, (size, size)), np.broadcast_to(across[:, None], (size, size))

    canvas = _paint(geometry, _irregular(geometry, across) * size)
    labels = np.zeros((size, size), dtype=np.uint8)
    owner = np.zeros((size, size), dtype=np.uint8)  # which object a pixel shows, 0 = none
    objects: list[tuple[int, int]] = []  # class and area of each
    for center in _spread(geometry, int(geometry.integers(OBJECTS[0], OBJECTS[1] + 1))):
        label = int(geometry.integers(1, len(CLASSES)))
        radius = geometry.uniform(*RADIUS)
        reach = 1.45 * radius  # the farthest that a silhouette gets from its center
        first, last = (np.rint((center + way * reach) * size).clip(0, size).astype(int) for way in (-1, 1))
        window = np.s_[first[1] : last[1], first[0] : last[0]]
        dx, dy = x[window] - float(center[0]), y[window] - float(center[1])
        inside = _silhouette(geometry, dx, dy, radius) * size
        surface = _paint(geometry, _textured(geometry, CLASSES[label], dx, dy) * size)
        alpha = np.clip(inside + 0.5, 0, 1)[..., None]
        canvas[window] += alpha * (surface - canvas[window])
        labels[window][inside > 0] = label
        objects.append((label, int((inside > 0).sum())))
        owner[window][inside > 0] = len(objects)

    angle, slope = geometry.uniform(0, 2 * math.pi), geometry.uniform(0, 0.5)
    light = 1 + slope * math.cos(angle) * (x - 0.5) + slope * math.sin(angle) * (y - 0.5)
    grain = geometry.uniform(0.01, 0.06)
    canvas = canvas * light[..., None] + grain * noise.standard_normal(canvas.shape, dtype=np.float32)
    image = (np.clip(canvas, 0, 1) * 255 + 0.5).astype(np.uint8)
    return Scene(
        torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1))),
        torch.from_numpy(labels),
        _boxes(owner, objects),
    )


def _spread(rng: np.random.Generator, count: int) -> Float[np.ndarray, "count 2"]:
    """Centers that keep away from each other: each is the one of six random places that is farthest from the others."""
    candidates = rng.uniform(0.1, 0.9, (count, 6, 2))
    centers = candidates[:1, 0]
    for places in candidates[1:]:
        gaps = np.linalg.norm(places[:, None] - centers[None], axis=-1).min(axis=1)
        centers = np.concatenate([centers, places[gaps.argmax()][None]])
    return centers


def _silhouette(rng: np.random.Generator, dx: Plane, dy: Plane, radius: float) -> Plane:
    """Approximate signed distance (in sides of the scene) to a wobbly oval around the origin, positive inside."""
    angle, stretch = rng.uniform(0, 2 * math.pi), rng.uniform(0.8, 1.25)
    wobble, phase = rng.uniform(0, 0.07, 3).tolist(), rng.uniform(0, 2 * math.pi, 3).tolist()
    along = (dx * math.cos(angle) + dy * math.sin(angle)) * stretch
    aside = (dy * math.cos(angle) - dx * math.sin(angle)) / stretch
    bearing = np.arctan2(aside, along)
    outline = 1 + sum(a * np.cos(k * bearing + p) for k, a, p in zip((2, 3, 5), wobble, phase, strict=True))
    return radius * outline - np.sqrt(along * along + aside * aside)


def _textured(rng: np.random.Generator, name: str, dx: Plane, dy: Plane) -> Plane:
    """Signed distance (in sides of the scene) to the contours of a texture, turned, scaled, shifted and warped."""
    texture, period = TEXTURES[name]
    period, angle = period * rng.uniform(1 - SPREAD_OF_PERIOD, 1 + SPREAD_OF_PERIOD), rng.uniform(-TURN, TURN)
    shift, warp, phase = (rng.uniform(0, limit, 2).tolist() for limit in (2, 0.12, 2 * math.pi))
    cosine, sine = math.cos(angle) / period, math.sin(angle) / period
    u, v = dx * cosine + dy * sine + shift[0], dy * cosine - dx * sine + shift[1]
    return period * texture(u + warp[0] * np.sin(1.7 * v + phase[0]), v + warp[1] * np.sin(1.7 * u + phase[1]))


def _irregular(rng: np.random.Generator, across: Float32[np.ndarray, " side"]) -> Plane:
    """Signed distance to the contours of a background: a sum of waves of all directions and various periods."""
    waves = 32
    period = rng.uniform(*BACKGROUND_PERIOD) * rng.uniform(0.8, rng.uniform(1.0, 2.0), waves)
    angle, phase = rng.uniform(0, 2 * np.pi, waves), rng.uniform(0, 2 * np.pi, waves)
    frequency = 2 * np.pi / period
    # cos(a x + b y + c) is the real part of a product, so the sum over waves is one matrix product.
    columns = np.exp(1j * (frequency * np.cos(angle))[:, None] * across).astype(np.complex64)
    rows = np.exp(1j * ((frequency * np.sin(angle))[:, None] * across + phase[:, None])).astype(np.complex64)
    field = (rows.T @ columns).real / np.sqrt(waves)
    return (field / frequency.mean()).astype(np.float32)  # dividing by the typical slope makes it a distance


def _paint(rng: np.random.Generator, distance: Plane) -> Float32[np.ndarray, "height width 3"]:
    """Color a signed distance (in pixels): one random color for the figure, one for the ground."""
    middle = rng.uniform(0.42, 0.58) + rng.uniform(-TINT, TINT, 3)
    apart = rng.choice((-0.5, 0.5)) * rng.uniform(*CONTRAST) + rng.uniform(-TINT, TINT, 3) / 2
    sharpness = rng.uniform(0.6, 1.0)  # below 1: out of focus
    blend = np.clip(sharpness * distance, -0.5, 0.5)[..., None]
    return middle.astype(np.float32) + 2 * blend * apart.astype(np.float32)


def _boxes(owner: UInt8[np.ndarray, "height width"], objects: list[tuple[int, int]]) -> Int64[Tensor, "objects 5"]:
    rows: list[list[int]] = []
    for number, (label, area) in enumerate(objects, start=1):
        visible = owner == number
        if visible.sum() >= max(1, HIDDEN * area):
            xs, ys = np.flatnonzero(visible.any(axis=0)), np.flatnonzero(visible.any(axis=1))
            rows.append([xs[0], ys[0], xs[-1] + 1, ys[-1] + 1, label])
    return torch.tensor(rows, dtype=torch.int64).reshape(-1, 5)


class Scenes(Dataset[UInt8[Tensor, "3 size size"]]):
    """A split of drawn scenes: a map-style data set of RGB images, with `labels` and `boxes` for each.

    Nothing is stored. Each scene is drawn when it is asked for, in about 3 ms at 96 px.
    """

    def __init__(self, split: Split = "train", *, size: int = 96, seed: int = 0, count: int = 2000):
        self.split: Split = split
        self.size = size
        self.seed = seed
        self.count = count

    def __len__(self) -> int:
        return self.count

    def scene(self, index: int) -> Scene:
        """Image, label map and boxes together. Raises IndexError outside 0 .. count - 1."""
        if not 0 <= index < self.count:
            raise IndexError(f"scene {index} of {self.count}")
        return draw_scene(self.split, index, size=self.size, seed=self.seed)

    def image(self, index: int) -> UInt8[Tensor, "3 size size"]:
        """The picture, RGB."""
        return self.scene(index).image

    def labels(self, index: int) -> UInt8[Tensor, "size size"]:
        """The class of every pixel, an index into `CLASSES`."""
        return self.scene(index).labels

    def boxes(self, index: int) -> Int64[Tensor, "objects 5"]:
        """x0 y0 x1 y1 class of every object that can be seen, in pixels, ends exclusive."""
        return self.scene(index).boxes

    __getitem__ = image


def write_scenes(
    folder: Path | str, split: Split = "train", *, size: int = 96, seed: int = 0, count: int = 2000
) -> None:
    """Write scenes to `folder`/images/00000.png and their label maps to `folder`/labels/00000.png.

    Each file is written beside its place and moved into it.
    """
    folder = Path(folder)
    scenes = Scenes(split, size=size, seed=seed, count=count)
    for kind in ("images", "labels"):
        (folder / kind).mkdir(parents=True, exist_ok=True)
    for index in range(count):
        scene = scenes.scene(index)
        for kind, pixels in (("images", scene.image.permute(1, 2, 0)), ("labels", scene.labels)):
            path = folder / kind / f"{index:05d}.png"
            with replacing(path) as file:
                Image.fromarray(pixels.numpy()).save(file, format="PNG", compress_level=1)
