"""Every setting of a pre-training run, its default, and the reason for the default.

One dataclass is the command line (each field a flag), the YAML file (each field a key) and the
Python call (each field a keyword). A recipe is composed from three layers, each beating the one
before: the named recipe, the configuration file, the settings given explicitly.
Nothing heavy may be imported here: ``densecl --help`` needs it.
"""

from __future__ import annotations

import ast
import dataclasses
import functools
import inspect
import itertools
import math
import numbers
import os
import re
import sys
import types
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import yaml

from densecl.choices import (
    Auto,
    Brightness,
    DenseNegatives,
    DenseStatistics,
    KeyNorm,
    Matching,
    MethodName,
)
from densecl.errors import UserError, nearest
from densecl.files import replacing


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """The settings of a run, checked when it is made.

    `make_recipe` composes one from a named recipe, files and settings. Where a setting says "auto",
    the run finds the value and writes it to its ``recipe.yaml``; "none" stands there for what the method does not have.

    Raises:
        UserError: a value out of its range, or settings that contradict each other.
    """

    # --- the data -------------------------------------------------------------------------------
    data: str
    """A folder (searched recursively; label maps beside the photographs are left out), a text file with a path per
    line, or a quoted glob."""
    channels: int = 3
    """Channels of an image. Other than 3 (RGB): N-channel TIFF or .npy; 1: grayscale."""
    mean: tuple[float, ...] | None = None
    """Mean of each channel, 0-1 scale. Not given: that of the starting weights if they say it, else ImageNet's for 3
    channels, else (or with --brightness shift) measured from the data."""
    std: tuple[float, ...] | None = None
    """Standard deviation of each channel, 0-1 scale. Not given: as for the mean."""
    tile: int | None = None
    """Treat an image as a grid of square tiles of this many pixels (for drone frames and slides)."""
    max_image_pixels: int = 178_956_970
    """Larger images are refused, and so are those that would need more bytes of memory than 8 times this number. For
    larger TIFF and .npy, --tile is the better way: it reads only the parts that are wanted."""
    image_size: int = 224
    """Side of a view in pixels."""
    crop_scale: tuple[float, float] = (0.2, 1.0)
    """Share of the image's area that a crop covers, smallest and largest [paper]."""
    jitter: tuple[float, float, float, float] = (0.4, 0.4, 0.4, 0.1)
    """Strength of the jitter of brightness, contrast, saturation and hue [paper]."""
    brightness: Literal["auto", Brightness] = "auto"
    """How brightness is jittered: scale multiplies the values [paper]; shift adds to them by their own contrast. auto:
    scale, but shift for images of sixteen bits whose values lie in a narrow band (thermal, elevation)."""
    jitter_probability: float = 0.8
    """Share of views whose colors are jittered [paper]."""
    grayscale_probability: float = 0.2
    """Share of views turned gray [paper]. RGB only."""
    blur_probability: float = 0.5
    """Share of views that are blurred [paper]."""
    blur_sigma: tuple[float, float] = (0.1, 2.0)
    """Range of the blur's standard deviation in pixels at 224 px; scaled with --image-size [paper]."""
    flip_probability: float = 0.5
    """Share of views mirrored left to right [paper]."""
    local_crops: int = 0
    """Multi-crop: further small views of an image, which are queries only [DINO: 6 to 10]."""
    local_crop_size: int | Auto | None = "auto"
    """Side of a small view in pixels. auto: 3/7 of --image-size [DINO: 96 of 224], and 4x4 cells at least."""
    local_crop_scale: tuple[float, float] = (0.05, 0.4)
    """Share of the image's area that a small view covers, smallest and largest [DINO]."""

    # --- the backbone ---------------------------------------------------------------------------
    backbone: str = "resnet50"
    """Any timm model that gives a feature map: resnet18, convnext_nano, vit_small_patch16_224, ..."""
    output_stride: int | None = None
    """16 or 8 for a finer feature map at the same weights (dilation), for small images. Not given: the model's own."""
    init: str | None = None
    """Start from these weights instead of random ones: a run, a file of weights, a checkpoint of any training;
    'imagenet': timm's pretrained ones."""
    freeze_norm_statistics: bool | Auto = "auto"
    """Batch norm keeps its means and variances; its weights and biases train. auto: on with --init, else off."""

    # --- the method -----------------------------------------------------------------------------
    method: Literal["auto", MethodName] = "auto"
    """The self-supervised objective, used on image vectors and on cells. 'densecl': moco at --dense-weight 0.5.
    auto: simclr, or moco where the batch is too small to find negatives in, or a setting of its keys is given."""
    dense_weight: float = 0.5
    """Share of the dense loss, 0 to 1; 0 is the plain global method [paper: 0.5]."""
    dense_warmup_steps: int = 0
    """Steps at dense weight 0 before the dense loss joins [authors: 10000 helps at full scale]."""
    dim: int | Auto = "auto"
    """Length of an embedding vector; dino: number of prototypes. auto: the method's, 128 for moco [paper]."""
    hidden_dim: int | None = None
    """Width of the heads' hidden layers. Not given: the method's, for moco the backbone's own width [paper]."""
    grid: int | None = None
    """Pool the feature map to this many cells a side before matching and before the dense head."""
    temperature: float | Auto | None = "auto"
    """Temperature of the softmax over similarities. auto: the method's, 0.2 for moco [paper]."""
    temperature_max: float | None = None
    """Given: the temperature swings between --temperature and this as a cosine [Kukleva et al. 2023]."""
    temperature_period: float = 1.0
    """Length of one such swing as a share of the run."""
    teacher_temperature: tuple[float, float] | Auto | None = "auto"
    """dino: temperature of the teacher at the start and after its warm-up. auto: 0.04 0.07 [DINO]."""
    teacher_warmup: float = 0.1
    """Length of that warm-up as a share of the run [DINO: 30 of 300 epochs]."""
    queue_length: int | Auto | None = "auto"
    """moco: keys kept as negatives [paper: 65536]. auto: by number of images and key momentum; longer ones fail."""
    key_momentum: float | Auto | None = "auto"
    """Share of its old weights the key encoder keeps each step [paper: 0.999]. auto: by the length of the run."""
    key_momentum_end: float | Auto | None = "auto"
    """Where a cosine takes --key-momentum by the end. auto: the method's, 1 for byol and dino."""
    key_norm: Literal["auto", KeyNorm] = "auto"
    """How the key encoder's batch norm is kept from leaking: shuffle (across devices), split, or ema. auto: shuffle;
    with --recipe paper on one device split."""
    key_split: int = 32
    """Images per sub-batch with --key-norm split [paper: 32 per device]."""
    matching: Matching = "geometry"
    """A query cell's positive: by geometry (the crops are known), features [paper], mutual, or half the loss each."""
    match_radius: float = 0.7
    """With geometry: how far apart two cells may lie, in diagonals of the larger cell [PixPro]."""
    match_top_k: float = 1.0
    """Share of an image's cells to keep, those with the best matches [VICRegL: 0.4]."""
    dense_negatives: DenseNegatives | Auto | None = "auto"
    """moco, simclr: the batch's cells (auto), or those of its other images, pooled vectors (in a queue: the paper),
    or a queue of single cells."""
    dense_statistics: DenseStatistics | Auto | None = "auto"
    """barlow, vicreg: statistics over all matched cells (auto), or over the batch at each position [VICRegL]."""
    symmetric: bool | Auto = "auto"
    """Also use the second view as query. auto: as the method's paper, for moco no."""

    # --- optimization ---------------------------------------------------------------------------
    batch_size: int | Auto = "auto"
    """Images per step, over all devices together [paper: 256]. auto: 256, on a CPU 64; fewer for few epochs."""
    optimizer: Literal["sgd", "lars", "adamw"] = "adamw"
    """The optimizer [paper: sgd]. adamw learns in the first hundred steps."""
    base_learning_rate: float | Auto = "auto"
    """Learning rate at batch size 256. auto: sgd 0.03, lars 0.3 or as the method's paper has it, adamw 0.003
    (0.0005 without batch norm)."""
    learning_rate: float | Auto = "auto"
    """The peak itself. auto: --base-learning-rate x batch size / 256; for adamw x the square root of that."""
    momentum: float = 0.9
    """Momentum of SGD and LARS [paper]."""
    weight_decay: float | Auto = "auto"
    """Weight decay. auto: 0.0001 for sgd [paper]; 1.5e-6 for lars and 0.02 for adamw, on the weights of layers
    alone: not on biases, norms, position embeddings and tokens."""
    warmup_epochs: float | Auto = "auto"
    """Epochs in which the learning rate rises linearly to its peak. auto: a tenth of the run, at most 10 [paper: 0]."""
    schedule_per: Literal["step", "epoch"] = "step"
    """How often the cosine schedule moves [paper: epoch]."""
    clip_gradient: float | None = None
    """Largest norm of the gradient. Not given: no clipping."""
    epochs: int | None = None
    """Length of the run in passes over the data (200 if no length is given)."""
    steps: int | None = None
    """Length of the run in steps, instead of epochs."""
    time_limit: str | None = None
    """Length of the run in time, such as 90s, 8m or 12h, instead of epochs; the schedule follows the clock."""

    # --- the machine ----------------------------------------------------------------------------
    precision: Literal["auto", "32", "bf16"] = "auto"
    """auto: bf16 on GPUs that have it, CPUs with AMX and AMD's with avx512_bf16; else 32."""
    channels_last: bool | Auto = "auto"
    """The memory format of images and weights. auto: on for GPUs and bf16."""
    compile: bool = False
    """Compile the encoders (torch.compile). Pays on GPUs, in runs of more than some minutes."""
    accumulate: int = 1
    """Parts in which the batch of a step is computed, for want of memory. What compares or takes statistics within a
    batch then does so within a part."""
    checkpoint_activations: bool = False
    """Keep fewer activations and compute them once more: less memory, a third more time. For networks without batch
    norm, such as ViTs."""
    devices: int | Auto = "auto"
    """GPUs to use, or CPU processes where there is no GPU. auto: 1, or as many as torchrun, srun or mpirun started."""
    nodes: int | Auto = "auto"
    """Machines to use. auto: 1, or as for --devices."""
    distributed_timeout: str = "5m"
    """How long processes wait for one that does not answer, or for each other, before the run is given up."""
    sync_batch_norm: bool = False
    """Batch-norm statistics over all devices (GPUs only)."""
    workers: int | Auto = "auto"
    """Processes that read images, per device. auto: by the cores."""
    read_timeout: float = 300.0
    """Seconds without a single image read after which the run stops with a message (with --workers 0 never)."""
    cache: str | None = None
    """A folder to keep decoded, shrunk images in, for later epochs and runs. Pays for large photos, PNG and TIFF."""
    seed: int = 0
    """Fixes the weights' initialization, the order, the crops and the colors."""

    # --- what is kept ---------------------------------------------------------------------------
    log_every: int = 10
    """Steps between rows of metrics.csv."""
    checkpoint_every: int = 1000
    """Steps between checkpoints."""
    checkpoint_minutes: float = 10.0
    """Minutes between checkpoints, whichever comes first."""
    loggers: tuple[Literal["tensorboard", "wandb", "mlflow"], ...] = ("tensorboard",)
    """Loggers beside metrics.csv; 'none' for none."""

    # --- the defaults ---------------------------------------------------------------------------
    recipe: Literal["auto", "paper"] = "auto"
    """The named set of defaults: auto, or paper for the authors' values on COCO. They had 8 devices of 32 images each;
    on one, the keys' batch norm still sees 32 at a time, but the queries' sees the whole batch."""
    settled: tuple[str, ...] = ()
    """Written by the run: the settings that it chose itself. It chooses anew where what they rest on is given."""

    def __post_init__(self) -> None:
        _check(self)

    @property
    def processes(self) -> int:
        """Devices on all machines; as long as they are left open, one."""
        return math.prod(number for number in (self.devices, self.nodes) if number != "auto")

    @property
    def images_at_once(self) -> int:
        """Of a step's batch, once that is settled, those that a device computes together."""
        assert isinstance(self.batch_size, int)
        return self.batch_size // (self.processes * self.accumulate)


#: The authors' values for COCO train2017 (facts table; rate, no warm-up, schedule stepped per epoch).
PAPER = {
    "recipe": "paper",
    "image_size": 224,
    "crop_scale": (0.2, 1.0),
    "jitter": (0.4, 0.4, 0.4, 0.1),
    "jitter_probability": 0.8,
    "grayscale_probability": 0.2,
    "blur_probability": 0.5,
    "blur_sigma": (0.1, 2.0),
    "flip_probability": 0.5,
    "backbone": "resnet50",
    "output_stride": None,
    "method": "moco",
    "dense_weight": 0.5,
    "dense_warmup_steps": 0,
    "dim": 128,
    "hidden_dim": None,
    "grid": None,
    "temperature": 0.2,
    "temperature_max": None,
    "queue_length": 65536,
    "key_momentum": 0.999,
    "key_momentum_end": None,
    "key_norm": "auto",  # shuffle, the authors'; on one device, where that mixes nothing, split into their 32 images
    "key_split": 32,
    "matching": "features",
    "dense_negatives": "pooled",
    "symmetric": False,
    "local_crops": 0,
    "match_top_k": 1.0,
    "batch_size": 256,
    "optimizer": "sgd",
    "base_learning_rate": 0.3,
    "momentum": 0.9,
    "weight_decay": 1e-4,
    "warmup_epochs": 0.0,
    "schedule_per": "epoch",
    "clip_gradient": None,
    "epochs": 800,
    "precision": "32",
}


#: At most one of these says how long a run is.
LENGTHS = ("epochs", "steps", "time_limit")

#: Whoever gives one of these wants keys from a moving average.
OF_THE_KEYS = ("queue_length", "key_momentum", "key_momentum_end", "key_norm")

#: The settings that a run may choose itself, once for all its resumptions, and what they rest on. (Precision,
#: memory format and workers rest on the machine.)
RESTS_ON = {
    "brightness": ("data", "channels"),
    "mean": ("data", "channels", "brightness", "init", "backbone"),
    "std": ("data", "channels", "brightness", "init", "backbone"),
    "freeze_norm_statistics": ("init", "backbone"),
    "batch_size": (
        "data",
        "tile",
        "devices",
        "nodes",
        "accumulate",
        "recipe",
        "method",
        "dense_negatives",
        "key_norm",
        "key_split",
        *LENGTHS,
    ),
    "method": (
        "batch_size",
        "devices",
        "nodes",
        "accumulate",
        "recipe",
        "dense_negatives",
        *OF_THE_KEYS,
    ),  # before what rests on it
    "local_crop_size": ("local_crops", "image_size", "backbone", "output_stride", "grid"),
    "temperature": ("method",),
    "teacher_temperature": ("method",),
    "key_momentum": ("data", "batch_size", "method", *LENGTHS),
    "key_momentum_end": ("method",),
    "queue_length": ("data", "batch_size", "method", "key_momentum", *LENGTHS),
    "key_norm": (
        "backbone",
        "method",
        "freeze_norm_statistics",
        "recipe",
        "devices",
        "nodes",
        "accumulate",
        "batch_size",
        "key_split",
    ),
    "dense_negatives": ("method",),
    "dense_statistics": ("method",),
    "symmetric": ("method",),
    "base_learning_rate": ("optimizer", "backbone", "method"),
    "learning_rate": ("base_learning_rate", "batch_size", "optimizer", "backbone", "method"),
    "weight_decay": ("optimizer", "method"),
    "warmup_epochs": ("data", "batch_size", *LENGTHS),
    "devices": (),
    "nodes": (),
    "precision": (),
    "channels_last": ("precision",),
    "workers": (),
}


def field_names() -> tuple[str, ...]:
    """The names of all settings, in the order of `Recipe`."""
    return tuple(field.name for field in dataclasses.fields(Recipe))


def flag(name: str) -> str:
    """The setting as it is typed: ``--image-size`` for ``image_size``."""
    return "--" + name.replace("_", "-")


# --- composing ----------------------------------------------------------------------------------


def make_recipe(config: Path | str | Sequence[Path | str] | None = None, **settings: Any) -> Recipe:
    """Compose a recipe: the named recipe's defaults, then `config`, then `settings`, the last one winning.

    Args:
        config: A YAML file with some or all settings, or several of which later ones beat earlier ones.
        settings: Explicit values by field name. Values may be strings, as typed on a command line.
            The name of the recipe is the one in `settings`, else in `config`, else "auto".

    What a run chose itself (`Recipe.settled` in its ``recipe.yaml``) is chosen anew where a later layer
    changes what it rests on. A length of one kind (epochs, steps, time limit) replaces one of another kind from an
    earlier layer; without any, a run lasts 200 epochs. ``method="densecl"`` becomes moco with dense weight
    0.5, unless the same layer gives another weight.

    Raises:
        UserError: an unknown setting, a value of the wrong type or out of range, no data, or a file
            that cannot be read.
    """
    if config is None:
        files: Sequence[Path | str] = ()
    else:
        files = (config,) if isinstance(config, (str, Path)) else config
    layers = [read_settings(file) for file in files] + [_convert_all(settings, "")]
    if all(isinstance(layers[-1].get(name), float) for name in ("learning_rate", "base_learning_rate")):
        raise UserError("Give --learning-rate or --base-learning-rate, not both: the one is made from the other.")
    name = next((layer["recipe"] for layer in reversed(layers) if "recipe" in layer), "auto")

    named = PAPER if name == "paper" else {}
    values: dict[str, Any] = dict(named)
    for layer in layers:
        if layer.get("method") == "densecl":
            layer = {"dense_weight": 0.5, **layer, "method": "moco"}
        if any(layer.get(length) is not None for length in LENGTHS):
            layer = dict.fromkeys(LENGTHS) | layer
        values |= _unsettled(values, layer, named) | layer
    if all(values.get(length) is None for length in LENGTHS):
        values["epochs"] = 200
    if not values.get("data"):
        raise UserError("--data is missing: give a folder of images, a text file of paths, or a quoted glob.")
    return Recipe(**values)


def _unsettled(values: Mapping[str, Any], layer: Mapping[str, Any], named: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that are open again once `layer` changes `values`, as in the `named` recipe, and which are not."""
    changed = {name for name in layer if name not in values or layer[name] != values[name]}
    open_again: dict[str, Any] = {}
    for name, grounds in RESTS_ON.items():  # in this order: what is open again opens what rests on it
        if name in values.get("settled", ()) and name not in layer and changed.intersection(grounds):
            open_again[name] = named.get(name, getattr(Recipe, name))
            changed.add(name)
    kept = tuple(name for name in values.get("settled", ()) if name not in {*open_again, *layer})
    return {**open_again, "settled": kept}


def read_settings(path: Path | str) -> dict[str, Any]:
    """The settings in a YAML file, which may be partial, each converted to its field's type.

    Raises:
        UserError: no such file, not a mapping in YAML, an unknown setting, or a value of the wrong type.
    """
    try:
        if os.path.getsize(path) > 1_000_000:  # a recipe has 2 kB
            raise UserError(f"{path} is too large to be a recipe.")
        content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"Cannot read the configuration {path}: {error.strerror}.") from error
    except UserError:
        raise
    except (yaml.YAMLError, UnicodeDecodeError, ValueError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark else ""
        reason = str(getattr(error, "problem", None) or error).splitlines()[0]
        raise UserError(f"{path}{where} is not valid YAML: {reason}.") from error
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise UserError(f"{path} must hold lines such as 'image_size: 224', not a {type(content).__name__}.")
    return _convert_all(content, f"{path}: ")


def read_recipe(path: Path | str) -> Recipe:
    """The recipe that a run wrote with `write_recipe`.

    Raises:
        UserError: as `read_settings`; also when the file names no data.
    """
    settings = read_settings(path)
    if "data" not in settings:
        raise UserError(f"{path} is not a complete recipe: it names no data.")
    return Recipe(**settings)


def write_recipe(recipe: Recipe, path: Path | str) -> None:
    """Write every setting of `recipe` as YAML, into the place of `path` once all is written."""
    lines = [
        "# Every setting of this run. To repeat it:",
        "#     densecl pretrain --config THIS_FILE --out ANOTHER_RUN",
    ]
    for title, settings in documentation().items():
        values = {name: getattr(recipe, name) for name in settings}
        lines += ["", f"# {title}", yaml.dump(values, Dumper=_Dumper, sort_keys=False, allow_unicode=True).rstrip()]
    with replacing(Path(path)) as file:
        file.write(("\n".join(lines) + "\n").encode())


class _Dumper(yaml.SafeDumper):
    """Tuples on one line: ``crop_scale: [0.2, 1.0]``."""


_Dumper.add_representer(
    tuple, lambda dumper, items: dumper.represent_sequence("tag:yaml.org,2002:seq", items, flow_style=True)
)


@functools.cache
def documentation() -> dict[str, dict[str, str]]:
    """What each setting means, by group: ``{"the data": {"data": "A folder ...", ...}, ...}``.

    Read from the source of `Recipe`, so that a setting is described in one place only.
    """
    source = inspect.getsource(sys.modules[__name__])
    (body,) = (node.body for node in ast.parse(source).body if isinstance(node, ast.ClassDef) and node.name == "Recipe")
    titles = {
        number: match[1]
        for number, line in enumerate(source.splitlines(), start=1)
        if (match := re.match(r"    # --- (.+?) -+$", line))
    }
    groups: dict[str, dict[str, str]] = {title: {} for title in titles.values()}
    for field, text in itertools.pairwise(body):
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name):
            assert isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant)
            title = titles[max(number for number in titles if number < field.lineno)]
            groups[title][field.target.id] = str(text.value.value)
    return groups


# --- from what was typed to the type of the field --------------------------------------------------


@functools.cache
def setting_types() -> dict[str, Any]:
    """The type of every setting, annotations resolved."""
    return get_type_hints(Recipe)


def _convert_all(settings: Mapping[Any, Any], where: str) -> dict[str, Any]:
    """Check the names of `settings` and bring the values to the types of `Recipe`."""
    types_by_name = setting_types()
    converted = {}
    for given, value in settings.items():
        name = str(given).replace("-", "_")
        if name not in types_by_name:
            raise UserError(f"{where}unknown setting '{given}'.{nearest(name, types_by_name)}")
        converted[name] = convert(name, value, where)
    return converted


def convert(name: str, value: object, where: str = "") -> Any:
    """Bring the value of a setting to the type of its field.

    Strings are read as numbers where the field is one ("1e-4" is a string to YAML), lists become
    tuples, and "none" is None where the field may be left out.

    Args:
        name: A field of `Recipe`.
        value: As typed, as read from YAML, or as given in Python.
        where: What to begin a complaint with, such as the file's name.

    Raises:
        UserError: the value does not fit the field's type.
    """
    kind = setting_types()[name]
    try:
        return _as(kind, value)
    except (ValueError, TypeError, OverflowError):
        shown = " ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)
        shown = shown if len(shown) <= 80 else shown[:77] + "..."
        hint = nearest(shown, _choices(kind))
        message = f"{where}{flag(name)} takes {_describe(kind)}, not '{shown}'.{hint}"
        raise UserError(message) from None


def _as(kind: Any, value: Any) -> Any:
    """`value` as a `kind`, else ValueError or TypeError."""
    origin, arguments = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        for member in sorted(arguments, key=lambda member: member is not types.NoneType):
            try:
                return _as(member, value)
            except (ValueError, TypeError):
                pass
        raise ValueError
    if origin is tuple:
        if get_origin(arguments[0]) is Literal and value in ("none", ["none"]):
            return ()
        if arguments[-1] is ... and isinstance(value, (str, numbers.Real)):
            value = (value,)
        if not isinstance(value, (list, tuple)):
            raise TypeError
        members = arguments[:1] * len(value) if arguments[-1] is ... else arguments
        return tuple(_as(member, item) for member, item in zip(members, value, strict=True))
    if origin is Literal:
        text = str(value)  # YAML reads an unquoted 32 as a number
        if isinstance(value, bool) or text not in arguments:
            raise ValueError
        return text
    if kind is types.NoneType:
        words = value[0] if isinstance(value, list) and len(value) == 1 else value  # a flag of several values
        if words is not None and words != "none":
            raise ValueError
        return None
    if kind is bool:
        if not isinstance(value, bool):
            raise TypeError
        return value
    if kind is int:
        if isinstance(value, str):
            return int(value)
        if isinstance(value, bool) or not isinstance(value, numbers.Real) or not float(value).is_integer():
            raise TypeError
        return int(float(value))
    if kind is float:
        if isinstance(value, bool) or not isinstance(value, (str, numbers.Real)):
            raise TypeError
        return float(value)
    assert kind is str, kind
    if not isinstance(value, (str, os.PathLike)):
        raise TypeError
    return os.fspath(value)


def _choices(kind: Any) -> list[str]:
    """The words that `kind` accepts, if it is or holds a Literal."""
    if get_origin(kind) is Literal:
        return list(get_args(kind))
    return [word for member in get_args(kind) for word in _choices(member)]


def _describe(kind: Any) -> str:
    """`kind` in words, such as "a whole number or auto"."""
    origin, arguments = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        return " or ".join(_describe(member) for member in arguments)
    if origin is Literal:
        return _listing(arguments, "or")
    if origin is tuple and get_origin(arguments[0]) is Literal:
        return f"some of {_listing(get_args(arguments[0]), 'and')}"
    if origin is tuple:
        return "numbers" if arguments[-1] is ... else f"{len(arguments)} numbers"
    return {int: "a whole number", float: "a number", bool: "true or false", str: "text"}.get(kind, "none")


def _listing(words: Iterable[str], conjunction: str) -> str:
    *first, last = words
    return f"{', '.join(first)} {conjunction} {last}" if first else last


# --- what a recipe must fulfil --------------------------------------------------------------------

_Rule = tuple[Callable[[Any], bool], str]
_SHARE: _Rule = (lambda value: 0 <= value <= 1, "must lie in 0..1")
_COUNT: _Rule = (lambda value: value >= 1, "must be at least 1")
_POSITIVE: _Rule = (lambda value: 0 < value < math.inf, "must be greater than 0")
_NOT_NEGATIVE: _Rule = (lambda value: 0 <= value < math.inf, "must be at least 0")

_RULES: dict[str, _Rule] = {
    "channels": _COUNT,
    "mean": (lambda mean: all(map(math.isfinite, mean)), "must be finite numbers"),
    "std": (lambda std: all(0 < value < math.inf for value in std), "must be greater than 0 in every channel"),
    "tile": _COUNT,
    "max_image_pixels": _COUNT,
    "read_timeout": _POSITIVE,
    "image_size": (lambda size: size >= 16, "must be at least 16 pixels"),
    "crop_scale": (lambda scale: 0 < scale[0] <= scale[1] <= 1, "takes a smallest and a largest share in 0..1"),
    "jitter": (
        lambda jitter: all(0 <= strength <= 1 for strength in jitter[:3]) and 0 <= jitter[3] <= 0.5,
        "takes brightness, contrast and saturation in 0..1 and hue in 0..0.5",
    ),
    "jitter_probability": _SHARE,
    "grayscale_probability": _SHARE,
    "blur_probability": _SHARE,
    "blur_sigma": (lambda sigma: 0 < sigma[0] <= sigma[1] < math.inf, "takes a smallest and a largest sigma above 0"),
    "flip_probability": _SHARE,
    "local_crops": _NOT_NEGATIVE,
    "local_crop_size": (lambda size: size >= 16, "must be at least 16 pixels"),
    "local_crop_scale": (lambda scale: 0 < scale[0] <= scale[1] <= 1, "takes a smallest and a largest share in 0..1"),
    "output_stride": (lambda stride: stride in (8, 16, 32), "must be 8, 16 or 32"),
    "dense_weight": _SHARE,
    "dense_warmup_steps": _NOT_NEGATIVE,
    "dim": _COUNT,
    "hidden_dim": _COUNT,
    "grid": (lambda grid: grid >= 2, "must be at least 2: with one cell, dense learning means nothing"),
    "temperature": _POSITIVE,
    "temperature_max": _POSITIVE,
    "temperature_period": (lambda period: 0 < period <= 1, "must lie above 0 and up to 1"),
    "teacher_temperature": (
        lambda ends: all(0 < value < math.inf for value in ends),
        "takes one at the start and one after the warm-up, both above 0",
    ),
    "teacher_warmup": _SHARE,
    "queue_length": _COUNT,
    "key_momentum": _SHARE,
    "key_momentum_end": _SHARE,
    "key_split": (lambda images: images >= 2, "must be at least 2: one image has no batch statistics"),
    "match_radius": _POSITIVE,
    "match_top_k": (lambda share: 0 < share <= 1, "must lie above 0 and up to 1"),
    "batch_size": _COUNT,
    "base_learning_rate": _POSITIVE,
    "learning_rate": _POSITIVE,
    "momentum": (lambda momentum: 0 <= momentum < 1, "must lie in 0..1, below 1"),
    "weight_decay": _NOT_NEGATIVE,
    "warmup_epochs": _NOT_NEGATIVE,
    "clip_gradient": _POSITIVE,
    "epochs": _COUNT,
    "steps": _COUNT,
    "time_limit": (lambda text: parse_time(text, "time_limit") > 0, "must be longer than nothing"),
    "accumulate": _COUNT,
    "devices": _COUNT,
    "nodes": _COUNT,
    "distributed_timeout": (lambda text: parse_time(text, "distributed_timeout") > 0, "must be longer than nothing"),
    "workers": _NOT_NEGATIVE,
    "seed": (lambda seed: 0 <= seed < 2**32, "must lie in 0..4294967295"),
    "log_every": _COUNT,
    "checkpoint_every": _COUNT,
    "checkpoint_minutes": _POSITIVE,
    "loggers": (lambda loggers: len(set(loggers)) == len(loggers), "names a logger twice"),
    "settled": (lambda names: RESTS_ON.keys() >= set(names), "names only settings that a run may choose"),
}


def _check(recipe: Recipe) -> None:
    """Raise UserError for the first setting out of range, or the first two that contradict each other."""
    for name, (fulfilled, demand) in _RULES.items():
        value = getattr(recipe, name)
        if value is not None and value != "auto" and not fulfilled(value):
            shown = " ".join(map(str, value)) if isinstance(value, tuple) else value
            raise UserError(f"{flag(name)} {demand}, not {shown}.")

    if not recipe.data:
        raise UserError("--data is empty: give a folder of images, a text file of paths, or a quoted glob.")
    if (recipe.mean is None) != (recipe.std is None):
        raise UserError("Give --mean and --std together, or neither.")
    for name, values in (("mean", recipe.mean), ("std", recipe.std)):
        if values is not None and len(values) != recipe.channels:
            raise UserError(f"{flag(name)} takes one number a channel: {recipe.channels}, not {len(values)}.")
    if recipe.local_crops and recipe.local_crop_size is None:
        raise UserError("--local-crop-size none: the small views of --local-crops need a size. Leave it out for auto.")
    if isinstance(recipe.local_crop_size, int) and not recipe.local_crops and "local_crop_size" not in recipe.settled:
        raise UserError(
            f"--local-crop-size {recipe.local_crop_size} does nothing without --local-crops. Give how many."
        )
    if recipe.recipe == "paper" and recipe.method not in ("auto", "moco"):
        raise UserError(f"--recipe paper is that of moco, not of {recipe.method}. Leave it out.")
    if (
        recipe.temperature_max is not None
        and isinstance(recipe.temperature, float)
        and recipe.temperature_max < recipe.temperature
    ):
        raise UserError(
            f"--temperature-max must be at least --temperature {recipe.temperature}, not {recipe.temperature_max}."
        )
    lengths = [name for name in LENGTHS if getattr(recipe, name) is not None]
    if len(lengths) > 1:
        raise UserError(f"Give only one of {_listing(map(flag, lengths), 'and')}: each says how long the run is.")
    if recipe.batch_size != "auto":
        _check_batch_size(recipe, recipe.batch_size)


def _check_batch_size(recipe: Recipe, batch_size: int) -> None:
    """Raise UserError if the batch cannot be shared out as the recipe says."""
    processes = recipe.processes
    if batch_size % processes:
        raise UserError(f"--batch-size {batch_size} cannot be shared evenly by {processes} devices.")
    images = batch_size // processes
    if images % recipe.accumulate:
        raise UserError(
            f"--accumulate {recipe.accumulate}: {images} images a device cannot be divided into equal parts."
        )
    images //= recipe.accumulate
    if recipe.key_norm == "split" and "key_norm" not in recipe.settled and images <= recipe.key_split:
        raise UserError(
            f"--key-norm split has nothing to split: {images} images at a time are at most --key-split"
            f" {recipe.key_split}. Take a smaller one, such as {max(2, images // 2)}, or a larger --batch-size."
        )


def parse_time(text: str, name: str) -> float:
    """Seconds in "90s", "8m", "12h" or "2d".

    Args:
        text: of the setting.
        name: of the setting.

    Raises:
        UserError: anything else.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([smhd])", text.strip())
    if match is None:
        raise UserError(f"{flag(name)} takes a number and a unit, such as 90s, 8m, 12h or 2d, not '{text}'.")
    return float(match[1]) * {"s": 1, "m": 60, "h": 3600, "d": 86400}[match[2]]


def resolve_queue_length(images: int) -> int:
    """The length of the queue for this many images.

    A queue longer than the data set holds several old keys of the query's own image as negatives:
    training is then unstable or the loss only rises (rule of thumb from reported runs).
    """
    for most, length in ((1_000, 256), (10_000, 2048), (40_000, 8192), (200_000, 32768)):
        if images <= most:
            return length
    return 65536
