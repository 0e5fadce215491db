"""Speed of the data path alone: images per second, two views of each, and a worker's computing time for one image.

    python benchmarks/data.py --photos FOLDER [--only 480x360] [--workers 0 1 2] [--peer PYTHON]

The images are made from those of FOLDER, in a temporary folder: JPEG of 128x128 and 480x360, and JPEG and PNG of 12
megapixels (mosaics). They are read in four forms:
- files;
- cache: from `--cache`, which is filled before;
- data set: a data set in Python that opens them with Pillow;
- peer: its own data set and transform. benchmarks/throughput.py says how to make its environment.

Each case is a process of its own, with one thread for each data-loading worker. The files are in the system's memory.
The milliseconds are the computing time of one process for one image, from the file to the collated batch. The peer's
include colors and blur, which densecl leaves to the device that trains (benchmarks/augment.py). Appends to
docs/benchmarks/data.csv.
"""

from __future__ import annotations

import argparse
import csv
import datetime
import functools
import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from machine import this_machine
from PIL import Image
from torch.utils.data import Dataset

from densecl.augment import PhotometricSettings, draw_photometrics
from densecl.images.cache import CachedSource
from densecl.images.crops import least_side
from densecl.images.loader import CropPairDataset, StepSampler, make_loader
from densecl.images.sources import open_source

HERE = Path(__file__).parent
TABLE = HERE.parent / "docs" / "benchmarks" / "data.csv"
FIELDS = ("images", "form", "image_size", "workers", "images_per_second", "cpu_ms", "date", "machine")
CROP_SCALE = (0.2, 1.0)


class Kind(NamedTuple):
    """Images of one kind, and the image sizes to measure them at."""

    size: tuple[int, int]
    extension: str
    count: int
    batch_size: int
    image_sizes: tuple[int, ...]


KINDS = {
    "128x128 JPEG": Kind((128, 128), ".jpg", 512, 32, (128,)),
    "480x360 JPEG": Kind((480, 360), ".jpg", 256, 32, (224, 96)),
    "12 MP JPEG": Kind((4032, 3024), ".jpg", 8, 8, (224,)),
    "12 MP PNG": Kind((4032, 3024), ".png", 8, 8, (224,)),
}
FORMS = ("files", "cache", "data set", "peer")


class Photographs(Dataset):
    """A folder that gives Pillow images, as torchvision's ImageFolder does."""

    def __init__(self, folder: str) -> None:
        self.paths = sorted(Path(folder).iterdir())

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Image.Image:
        with Image.open(self.paths[index]) as image:
            return image.convert("RGB")


def make_images(photos: Path, folder: Path, kind: Kind) -> None:
    folder.mkdir()
    found = open_source(photos)
    ours = itertools.cycle(found.name(index * 37 % len(found)) for index in range(len(found)))
    width, height = kind.size
    across, down = min(width, 1008), min(height, 756)
    for number in range(kind.count):
        whole = Image.new("RGB", kind.size)
        for left, top in itertools.product(range(0, width, across), range(0, height, down)):
            part = Image.open(next(ours)).convert("RGB").resize((across, down), Image.Resampling.BICUBIC)
            whole.paste(part, (left, top))
        whole.save(folder / f"{number:04}{kind.extension}", quality=90)


def measure(folder: str, form: str, image_size: int, workers: int, batch_size: int, seconds: float) -> dict[str, float]:
    torch.set_num_threads(1)
    data: Any = Photographs(folder) if form == "data set" else folder
    source = open_source(data, least_side=least_side(image_size, CROP_SCALE))
    if form == "cache":
        source = CachedSource(source, Path(folder).with_suffix(".cache"))
        for index in range(len(source)):
            source.read(index)
    settings = PhotometricSettings.for_image_size(image_size)
    pairs = CropPairDataset(
        source,
        image_size=image_size,
        crop_scale=CROP_SCALE,
        flip_probability=0.5,
        draw_photometrics=functools.partial(draw_photometrics, settings=settings),
        seed=0,
    )
    loader = make_loader(pairs, StepSampler(len(source), batch_size, seed=0), workers=workers)
    return rate(iter(loader), batch_size, workers, seconds)


def rate(batches: Iterator[Any], batch_size: int, workers: int, seconds: float) -> dict[str, float]:
    for _ in range(2 + 2 * workers):  # skips the batches that the workers have prefetched
        next(batches)
    start, computing, images = time.perf_counter(), time.process_time(), 0
    while time.perf_counter() - start < seconds:
        next(batches)
        images += batch_size
    found = {"images_per_second": images / (time.perf_counter() - start)}
    return found if workers else {**found, "cpu_ms": (time.process_time() - computing) / images * 1000}


def apart(command: list[Any]) -> dict[str, float]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False, env=environment)
    if done.returncode != 0:
        raise SystemExit(f"{' '.join(map(str, command))} failed:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=Path, help="a folder of photographs")
    parser.add_argument("--only", default="", help="only kinds of images whose name contains this")
    parser.add_argument("--forms", nargs="+", choices=FORMS, default=FORMS)
    parser.add_argument("--workers", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--peer", type=Path, default=HERE / "peer" / ".venv" / "bin" / "python")
    parser.add_argument("--measure", nargs=5, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        folder, form, *numbers = options.measure
        print(json.dumps(measure(folder, form, *map(int, numbers), seconds=options.seconds)))
        return

    print(f"{datetime.date.today()}, {this_machine()}")
    print("{:16}{:10}{:>10}{:>9}{:>19}{:>8}".format(*FIELDS[:6]))
    with tempfile.TemporaryDirectory() as temporary:
        for number, (name, kind) in enumerate(KINDS.items()):
            if options.only not in name:
                continue
            folder = Path(temporary) / str(number)
            make_images(options.photos, folder, kind)
            for image_size, form, workers in itertools.product(kind.image_sizes, options.forms, options.workers):
                numbers = [image_size, workers, kind.batch_size]
                if form == "peer":
                    command = [options.peer, HERE / "peer" / "data.py", folder, *numbers, options.seconds]
                else:
                    command = [sys.executable, __file__, "--seconds", options.seconds, "--measure", folder, form]
                    command += numbers
                found = apart(command)
                row = [name, form, image_size, workers, f"{found['images_per_second']:.1f}"]
                row.append(f"{found['cpu_ms']:.2f}" if "cpu_ms" in found else "")
                print("{:16}{:10}{:>10}{:>9}{:>19}{:>8}".format(*row), flush=True)
                begin = not TABLE.is_file()
                with TABLE.open("a", newline="") as file:
                    writer = csv.writer(file, lineterminator="\n")
                    if begin:
                        writer.writerow(FIELDS)
                    writer.writerow([*row, datetime.date.today().isoformat(), this_machine()])


if __name__ == "__main__":
    main()
