"""See it work without any data: pre-train on drawn scenes, and compare what was learned."""

from __future__ import annotations

import csv
import io
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from rich.console import Console
from rich.table import Table

from densecl.api import pretrain
from densecl.errors import UserError
from densecl.evaluation.dense import Labeled, judge
from densecl.evaluation.tasks.correspondence import backbone_correspondence, fixed_view_pairs
from densecl.evaluation.tasks.segmentation import fit_linear
from densecl.evaluation.views_drawn import draw_views, with_smaller_cells
from densecl.files import replacing
from densecl.images.scenes import CLASSES, Scenes, write_scenes
from densecl.images.sources import open_source
from densecl.model.backbone import Backbone, create_backbone
from densecl.model.weights import load_backbone
from densecl.normalization import Normalization
from densecl.pictures.drawing import save_picture
from densecl.views import Views

#: Settings of both runs that differ from the defaults. The runs themselves differ in the dense weight only.
DEMO_RECIPE: dict[str, Any] = {
    "method": "simclr",
    "backbone": "resnet10t",
    "output_stride": 16,
    "image_size": 64,
    "batch_size": 64,
    "steps": 200,
    "loggers": (),
}

#: Pixels per cell of the feature map that the linear classifier sees. The weights are the same at a finer stride.
JUDGED_STRIDE = 8

#: Numbers of scenes, of 96 px: to pre-train on, how many of these have labels for the classifier, and to score on.
SCENES = 2000
LABELED = 400
JUDGED = 200

#: A match may be off by so many diagonals of the larger cell and still counts as right.
RADIUS = 0.7

PAIRS_MEASURED = 256


class Scores(NamedTuple):
    """Scores of one set of weights on held-out scenes, in percent."""

    weights: str
    miou: float  # of a linear segmentation
    pixel_accuracy: float  # of the same segmentation
    match_accuracy: float  # on pairs of views
    match_chance: float  # chance level of the match accuracy


def demo(
    out: Path | str = Path("runs/demo"),
    *,
    seed: int = 0,
    scenes: int = SCENES,
    labeled: int = LABELED,
    judged: int = JUDGED,
    **settings: Any,
) -> list[Scores]:
    """Draw labeled scenes, pre-train on them without the labels, and compare what was learned.

    Three backbones are compared: random weights, trained with the global loss alone, and with the dense loss, too. Each
    is frozen. A linear classifier of cells is fitted to the labels of some scenes and scored on scenes that no backbone
    has seen. A demo that was interrupted goes on where it stopped.

    Args:
        out: folder for the scenes, both runs, the table and the picture.
        seed: fixes the scenes and the training.
        scenes: number of scenes to pre-train on.
        labeled: how many of them the classifier sees with their labels.
        judged: number of held-out scenes.
        settings: of the recipe. They replace those of `DEMO_RECIPE`.

    Returns:
        The scores of random weights, of the global loss alone, and of both losses.

    Raises:
        UserError: whatever the caller can put right, such as a folder that holds another demo.
    """
    out = Path(out).expanduser()
    if (out / "recipe.yaml").exists():
        raise UserError(f"--out {out} is a run of 'densecl pretrain'. Choose another folder for the demo.")
    console = Console(highlight=False, soft_wrap=True)
    started = time.monotonic()
    recipe = {**DEMO_RECIPE, **settings, "seed": seed}
    train, test = Scenes("train", seed=seed, count=scenes), Scenes("test", seed=seed, count=judged)
    folder = _draw(train, out / "scenes", console)

    resumed = False
    for name, dense_weight in (("global", 0.0), ("dense", 0.5)):
        console.rule(f"{name}: --dense-weight {dense_weight:g}")
        begun = (out / name / "recipe.yaml").exists()
        resumed |= begun
        # Resumed from the last checkpoint, if there is one, so that a finished run is not run again.
        try:
            pretrain(folder, out / name, resume=True, **{**recipe, "dense_weight": dense_weight})
        except KeyboardInterrupt:
            console.print("The same command goes on with the demo from there.")
            raise
        except UserError as error:
            if begun:  # perhaps by another version, or with other settings
                raise UserError(f"{error.args[0]} For a new demo choose another --out than {out}.") from error
            raise

    console.rule("what was learned")
    (plain, normalization), (dense, _) = (load_backbone(out / name) for name in ("global", "dense"))
    with torch.random.fork_rng(devices=()):  # the GPUs are left out, because they are not used here
        torch.default_generator.manual_seed(seed)
        untrained = create_backbone(plain.name, output_stride=plain.output_stride)
    contestants = (("random weights", untrained), ("global only", plain), ("global and dense", dense))
    query, key = fixed_view_pairs(
        open_source(test),
        image_size=recipe["image_size"],
        count=PAIRS_MEASURED,
        normalization=normalization,
        seed=seed,
    )
    sets = _with_labels(train, min(labeled, scenes)), _with_labels(test, judged)
    scores = [_score(name, backbone, normalization, sets, query, key) for name, backbone in contestants]
    _write_scores(scores, out / "scores.csv")
    picture = draw_views(
        [("Random weights", untrained), ("After training", dense)],
        open_source(test),
        image_size=recipe["image_size"],
        normalization=normalization,
        pairs=PAIRS_MEASURED,
        radius=RADIUS,
        seed=seed,
        what="held-out scenes",
    )
    save_picture(picture, out / "views.png")
    took = f"It took {(time.monotonic() - started) / 60:.1f} minutes{' from where it went on' if resumed else ''}."
    _present(scores, out, folder, took, console)
    return scores


def _draw(scenes: Scenes, folder: Path, console: Console) -> Path:
    """Draw the scenes into files, so that the run reads what a user's run would read. Returns the folder of images."""
    images = folder / "images"
    if images.is_dir() and len(list(images.glob("*.png"))) == scenes.count:
        return images  # an earlier demo drew them all
    console.print(f"Drawing {scenes.count} scenes into {images}", markup=False)
    try:
        write_scenes(folder, scenes.split, size=scenes.size, seed=scenes.seed, count=scenes.count)
    except OSError as error:
        raise UserError(f"{folder} cannot be written: {error.strerror or error}.") from error
    return images


def _with_labels(scenes: Scenes, count: int) -> list[Labeled]:
    return [(scene.image, scene.labels) for scene in map(scenes.scene, range(count))]


def _score(
    name: str,
    backbone: Backbone,
    normalization: Normalization,
    sets: tuple[Sequence[Labeled], Sequence[Labeled]],
    query: Views,
    key: Views,
) -> Scores:
    finer = with_smaller_cells(backbone, JUDGED_STRIDE)
    judged = judge(finer, *sets, {"linear": fit_linear}, classes=len(CLASSES), normalization=normalization)
    segmentation = judged["linear"]["all"]
    matches = backbone_correspondence(backbone, query, key, radius=RADIUS)
    return Scores(
        name,
        segmentation.miou,
        segmentation.pixel_accuracy,
        100 * matches.accuracy.item(),
        100 * matches.chance.item(),
    )


def _write_scores(scores: Sequence[Scores], path: Path) -> None:
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(Scores._fields)
    writer.writerows([[row.weights, *(f"{value:.2f}" for value in row[1:])] for row in scores])
    with replacing(path) as file:
        file.write(text.getvalue().encode())


def _present(scores: Sequence[Scores], out: Path, folder: Path, took: str, console: Console) -> None:
    table = Table(title="Frozen backbones on scenes they have not seen", title_justify="left")
    table.add_column("weights")
    for title in ("linear segmentation\nmIoU", "pixel\naccuracy", "match\naccuracy"):
        table.add_column(title, justify="right")
    best = max(score.miou for score in scores)
    for score in scores:
        table.add_row(
            score.weights,
            f"{score.miou:.1f}",
            f"{score.pixel_accuracy:.1f} %",
            f"{score.match_accuracy:.1f} %",
            style="bold" if score.miou == best else None,
        )
    console.print(table)
    console.print(f"The chance level of the match accuracy is {scores[0].match_chance:.1f} %. {took}\n")
    for path, what in (
        (out / "views.png", "what random and trained weights see in the same views"),
        (out / "scores.csv", "the table"),
        (out / "dense" / "backbone.safetensors", "the weights, with their normalization"),
        (out / "dense" / "recipe.yaml", "every setting; --config repeats the run"),
        (out / "dense" / "metrics.csv", "the losses and measures of the run"),
        (out / "global", "the run without the dense loss"),
        (folder, "the scenes; their labels lie beside them"),
    ):
        console.print(f"  {path}: {what}", markup=False)  # not as a table, because that would cut long paths
