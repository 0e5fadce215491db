"""`densecl predict`: a fine-tuned network finds objects, or labels pixels, in other images."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import os
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

from jaxtyping import Shaped
from rich.console import Console
from torch import Tensor, nn

from densecl.errors import UserError
from densecl.evaluation.given import make_settings
from densecl.evaluation.labeled import resize
from densecl.evaluation.learn_boxes import detect
from densecl.evaluation.learn_pixels import segment
from densecl.finetuning.boxes import marked
from densecl.finetuning.outputs import Names, save_label_map, save_overlay, writing_coco, writing_index
from densecl.finetuning.settings import PredictSettings
from densecl.finetuning.tuned import Tuned, load_tuned
from densecl.images.decode import BadImage
from densecl.images.pairs import BadRecord
from densecl.images.quarantine import Quarantine
from densecl.images.sources import ImageSource, open_source
from densecl.names import counted, shown
from densecl.pictures.predictions import draw_labels, draw_objects
from densecl.progress import Display, Screen, duration
from densecl.training.vacant import check_empty

#: Values of the images of a batch. Larger images go through the network in smaller batches.
MOST_VALUES = 2**26

#: Images that are read while others are looked at.
AHEAD = 2


class Predicted(NamedTuple):
    """What was written.

    Attributes:
        out: the folder.
        images: how many were looked at.
        bad: how many could not be used; quarantine.csv says why.
        objects: how many were found; None for segmentation.
    """

    out: Path
    images: int
    bad: int
    objects: int | None


class _Read(NamedTuple):
    """An image with its name for the user and the place of its outputs."""

    image: Shaped[Tensor, "channels height width"]
    name: str
    file: Path


def predict(run: str | Path, data: Any, out: str | Path, **settings: Any) -> Predicted:
    """Find objects, or label pixels, in images.

    Args:
        run: the folder of a run of `finetune`, whose best weights are taken, or a file of its weights.
        data: whatever `pretrain` takes: a folder, a text file of paths, a glob, an image, or a data set in Python.
        out: a new folder. Detections become ``predictions.json`` in COCO's form, with boxes in pixels of the image
            itself, file names and scores. Label maps become ``labels/NAME.png``, of the image's own size. Pictures
            lie in ``pictures/``.
        settings: fields of `PredictSettings`.

    Raises:
        UserError: whatever the caller can put right.
    """
    chosen = make_settings(PredictSettings, settings)
    out = Path(out).expanduser()
    check_empty(out)
    model, tuned = load_tuned(Path(run))
    if chosen.threshold is not None and tuned.task != "detection":
        raise UserError("--threshold is for detection. In a label map each pixel has the class with the highest score.")
    if chosen.image_size is not None:
        tuned = _with_size(model, tuned, chosen.image_size)
    source = open_source(data, channels=tuned.in_channels)
    source.check()
    console = Console(file=Screen())  # pyright: ignore[reportArgumentType]
    say = functools.partial(console.print, highlight=False, soft_wrap=True, markup=False)
    for note in source.notes():
        say(note)
    root = os.path.expanduser(str(data)) if isinstance(data, str | Path) else None
    names = Names(root if root is not None and os.path.isdir(root) else None)
    with _writing(out):
        out.mkdir(parents=True, exist_ok=True)
    quarantine = Quarantine(out / "quarantine.csv", len(source), most=1.0)
    display = Display(console, len(source), what="image")
    started = time.monotonic()
    work = _Work(model, tuned, chosen, out, len(source), display, started)
    try:
        with _writing(out):
            batches = _batches(_images(source, names, quarantine), chosen.batch_size)
            objects = work.boxes(batches, run) if tuned.task == "detection" else work.pixels(batches)
    finally:
        display.close()
    bad = len(source) - work.done
    if work.done == 0:
        raise UserError(f"None of the {len(source)} images can be used: see {shown(out / 'quarantine.csv')}.")
    what = (
        f"{counted(objects, 'object')} in {shown(out / 'predictions.json')}"
        if objects is not None
        else f"label maps in {shown(out / 'labels')}"
    )
    say(f"{counted(work.done, 'image')} in {duration(time.monotonic() - started)}: {what}")
    if objects == 0:
        least = tuned.threshold if chosen.threshold is None else chosen.threshold
        say(f"No detection has a score of at least {least or 0.0:.2f}. A lower --threshold shows weaker ones.")
    if (told := quarantine.told()) is not None:
        say(told)
    return Predicted(out, work.done, bad, objects)


class _Work:
    """What is done with each batch."""

    def __init__(
        self,
        model: nn.Module,
        tuned: Tuned,
        settings: PredictSettings,
        out: Path,
        images: int,
        display: Display,
        started: float,
    ) -> None:
        self.model = model
        self.tuned = tuned
        self.settings = settings
        self.out = out
        self.images = images
        self.display = display
        self.started = started
        self.done = 0

    def boxes(self, batches: Iterator[list[_Read]], run: str | Path) -> int:
        """Writes predictions.json. Returns the number of objects."""
        tuned = self.tuned
        threshold = self.settings.threshold
        least = threshold if threshold is not None else tuned.threshold or 0.0
        info = {"description": "found by densecl predict", "weights": str(run), "threshold": round(least, 5)}
        with writing_coco(self.out / "predictions.json", tuned.classes, info) as coco:
            for batch in batches:
                found = detect(self.model, [each.image for each in batch], max(tuned.image_size), least_score=least)
                for each, objects in zip(batch, found, strict=True):
                    coco.add(each.name, each.image.shape[2], each.image.shape[1], objects)
                    if self.done < self.settings.pictures:
                        picture = draw_objects(each.image, marked(objects, tuned.classes))
                        save_overlay(picture, self._picture(each))
                    self._count()
            return coco.objects

    def pixels(self, batches: Iterator[list[_Read]]) -> None:
        """Writes label maps, and a table of them."""
        tuned = self.tuned
        with writing_index(self.out / "index.csv") as add:
            for batch in batches:
                small = [resize(each.image, tuned.image_size) for each in batch]
                sizes = [(each.image.shape[1], each.image.shape[2]) for each in batch]
                for each, labels in zip(batch, segment(self.model, small, tuned.normalization, sizes), strict=True):
                    path = _with_extension(Path("labels") / each.file, ".png")
                    save_label_map(labels, self.out / path)
                    add(each.name, str(path))
                    if self.done < self.settings.pictures:
                        save_overlay(draw_labels(each.image, labels), self._picture(each))
                    self._count()
        names = "".join(f"{name}\n" for name in map(shown, tuned.classes))
        (self.out / "classes.txt").write_text(names, encoding="utf-8")

    def _picture(self, each: _Read) -> Path:
        return self.out / _with_extension(Path("pictures") / each.file, ".jpg")

    def _count(self) -> None:
        self.done += 1
        left = (time.monotonic() - self.started) / self.done * max(0, self.images - self.done)
        self.display.step(self.done, self.done / self.images, left)
        if self.display.stale or self.done == self.images:
            self.display.report(self.done, (), left)


@contextlib.contextmanager
def _writing(out: Path) -> Iterator[None]:
    """Only writing raises an OSError here: what happens while images are read is a `BadImage`.

    Raises:
        UserError: for a full disk, a missing permission and the like.
    """
    try:
        yield
    except OSError as error:
        raise UserError(f"Cannot write into {shown(out)}: {error.strerror or error}.") from error


def _with_extension(path: Path, extension: str) -> Path:
    """`with_suffix` would cut a name at its last dot."""
    return path.with_name(path.name + extension)


def _with_size(model: nn.Module, tuned: Tuned, size: tuple[int, int]) -> Tuned:
    """The same network for images of another size.

    Raises:
        UserError: it does not take this size.
    """
    if tuned.task == "detection":
        longer = max(size)
        transform: Any = model.transform  # torchvision's, which would resize the images once more
        transform.min_size, transform.max_size = (longer,), longer
        return dataclasses.replace(tuned, image_size=(longer, longer))
    backbone: Any = model.backbone
    backbone.grid_at(size[1], size[0])
    return dataclasses.replace(tuned, image_size=size)


# --- reading ---------------------------------------------------------------------------------------------------------


def _images(source: ImageSource, names: Names, quarantine: Quarantine) -> Iterator[_Read]:
    """The images that can be used, in their order. A few are read ahead."""
    with ThreadPoolExecutor(AHEAD) as pool:
        waiting = [pool.submit(source.read, index) for index in range(min(AHEAD, len(source)))]
        for index in range(len(source)):
            reading = waiting.pop(0)
            try:
                image = reading.result()
            except BadImage as error:
                quarantine.record([BadRecord(source.name(index), str(error), 0)])
                continue
            finally:
                if index + AHEAD < len(source):
                    waiting.append(pool.submit(source.read, index + AHEAD))
            name = source.name(index)
            yield _Read(image, names.shown(name), names.file(name))


def _batches(images: Iterator[_Read], batch_size: int) -> Iterator[list[_Read]]:
    """Successive images of one shape. So what is found in an image does not depend on the others: none is padded."""
    batch: list[_Read] = []
    for each in images:
        full = len(batch) == batch_size or sum(one.image.numel() for one in batch) + each.image.numel() > MOST_VALUES
        if batch and (full or each.image.shape != batch[0].image.shape or each.image.dtype != batch[0].image.dtype):
            yield batch
            batch = []
        batch.append(each)
    if batch:
        yield batch
