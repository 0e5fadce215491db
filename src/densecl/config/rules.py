"""How each setting left at "auto" is chosen: a rule a setting, with what it rests on and the reason that is shown.

A rule reads only the settings that it rests on, and facts. So it is also known when a choice has to be made anew:
when one of those changes. The numbers behind the choices stand in `automatic`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from fractions import Fraction
from typing import Any, NamedTuple

from densecl.choices import UNKNOWN_LICENSE
from densecl.config import automatic
from densecl.config.facts import Facts, Traits
from densecl.config.optimization import LENGTHS
from densecl.config.settings import Settings
from densecl.config.teacher import distills_alone, teaches_itself
from densecl.errors import UserError, flag
from densecl.names import counted
from densecl.normalization import IMAGENET

#: Whoever gives one of these wants keys from a momentum encoder.
OF_THE_KEYS = ("queue_length", "key_momentum", "key_momentum_end", "key_norm")

#: What decides whether a teacher's loss is all that a run has.
OF_THE_TEACHER = ("teacher", "teacher_weight")

#: What decides how much the starting weights rely on the light and the colors of the images.
OF_RELIANCE = ("data", "tile", "channels", "init", "backbone", "output_stride", "image_size")


class Choice(NamedTuple):
    """What a rule has chosen for its settings."""

    values: Mapping[str, Any]
    because: str | None = None  # shown at the start; "": without a reason; None: not worth a line


class Grounds:
    """The settings that a rule rests on. It cannot read others, so what it rests on is never incomplete."""

    def __init__(self, values: Mapping[str, Any], names: Iterable[str]) -> None:
        self._values = {name: values[name] for name in names}

    def __getattr__(self, name: str) -> Any:
        try:
            return self._values[name]
        except KeyError:
            raise AttributeError(f"a rule reads {name}, but does not say that it rests on it") from None


#: Chooses, given the settings that the rule rests on.
Choose = Callable[[Grounds, Facts], Choice]


class Rule(NamedTuple):
    """How some settings are chosen, which are always left open together."""

    settings: tuple[str, ...]
    rests_on: tuple[str, ...]
    choose: Choose

    def apply(self, values: Mapping[str, Any], facts: Facts) -> Choice:
        """What it chooses, given the values of all settings."""
        choice = self.choose(Grounds(values, self.rests_on), facts)
        return choice._replace(values={name: _short(value) for name, value in choice.values.items()})


def _short(value: Any) -> Any:
    """A number without the noise of its last digits: 0.208, not 0.20800000000000002."""
    return float(f"{value:.12g}") if isinstance(value, float) else value


RULES: list[Rule] = []


def rule(*settings: str, rests_on: Iterable[str]) -> Callable[[Choose], Choose]:
    """Adds a function to `RULES`. They are applied in the order in which they stand here."""

    def add(choose: Choose) -> Choose:
        RULES.append(Rule(settings, tuple(rests_on), choose))
        return choose

    return add


def resting() -> dict[str, tuple[str, ...]]:
    """What each setting that a run may choose rests on, in the order in which they are chosen."""
    return {name: one.rests_on for one in RULES for name in one.settings}


# --- the batch, the method ------------------------------------------------------------------------


@rule(
    "batch_size",
    rests_on=(
        *("data", "tile", "devices", "nodes", "accumulate", "recipe"),
        *("method", "dense_negatives", "key_norm", "key_split", *LENGTHS),
    ),
)
def _batch_size(chosen: Grounds, facts: Facts) -> Choice:
    processes = chosen.devices * chosen.nodes
    parts = processes * chosen.accumulate
    if facts.images < parts:
        raise UserError(
            f"{counted(facts.images, 'image')} cannot be shared by {counted(processes, 'device')} in"
            f" {counted(chosen.accumulate, 'part')}. Take fewer --devices, or less --accumulate."
        )
    open_method = chosen.method == "auto"  # which is chosen by the batch size
    least = automatic.ENOUGH_NEGATIVES if open_method else facts.methods[chosen.method].least_batch
    if chosen.key_norm == "split":
        least = max(least, 2 * chosen.key_split)
    if chosen.dense_negatives == "others":
        least = max(least, 2)
    on_gpu = facts.machine.gpus > 0
    size = automatic.batch_size(facts.images, chosen.epochs, parts=parts, least=least, on_gpu=on_gpu)
    epochs = chosen.epochs
    length = "" if epochs is None else f"{counted(epochs, 'epoch')} of "
    return Choice(
        {"batch_size": size}, f"for {length}{counted(facts.images, 'image')} on a {'GPU' if on_gpu else 'CPU'}"
    )


def _images_at_once(chosen: Grounds) -> int:
    """How many of a step's images a device computes together."""
    return chosen.batch_size // (chosen.devices * chosen.nodes * chosen.accumulate)


@rule(
    "method",
    rests_on=(
        *("batch_size", "devices", "nodes", "accumulate", "recipe", "dense_negatives"),
        *OF_THE_TEACHER,
        *OF_THE_KEYS,
    ),
)
def _method(chosen: Grounds, facts: Facts) -> Choice:
    given = [flag(name) for name in OF_THE_KEYS if getattr(chosen, name) not in ("auto", None)]
    if chosen.dense_negatives == "cells":
        given.append("--dense-negatives cells")
    if chosen.recipe == "paper":
        given.append("--recipe paper")
    images = _images_at_once(chosen)
    name = automatic.method(images, keys_given=bool(given))
    where = "queue" if name == "moco" else "batch"
    because = f"for {given[0]}" if given else f"negatives from a {where}, for {counted(images, 'image')} a device"
    return Choice({"method": name}, None if distills_alone(chosen) else because)


def _own(setting: str, value: Callable[[Traits], Any]) -> None:
    """A setting whose "auto" is the method's own value; None for what the method does not have."""

    @rule(setting, rests_on=("method",))
    def choose(chosen: Grounds, facts: Facts) -> Choice:
        return Choice({setting: value(facts.methods[chosen.method])})


_own("dim", lambda method: None)  # each head has the length that the method gives it
_own("temperature", lambda method: method.temperature)
_own("teacher_temperature", lambda method: method.teacher_temperature)
_own("key_momentum_end", lambda method: method.key_momentum_end)
_own("dense_negatives", lambda method: "batch" if method.dense_negatives else None)
_own("dense_statistics", lambda method: "cells" if method.statistics else None)
_own("symmetric", lambda method: method.symmetric)


# --- the images -----------------------------------------------------------------------------------


@rule("brightness", rests_on=("data", "channels"))
def _brightness(chosen: Grounds, facts: Facts) -> Choice:
    pixels = facts.pixels
    if pixels.deep and pixels.offset > automatic.NARROW_BAND:
        because = f"the values of an image lie {pixels.offset:.3g} of their standard deviations from 0"
        return Choice({"brightness": "shift"}, because)
    return Choice({"brightness": "scale"})


@rule("jitter", rests_on=OF_RELIANCE)
def _jitter(chosen: Grounds, facts: Facts) -> Choice:
    brightness, contrast, saturation, hue = automatic.JITTER
    found, lost = facts.reliance, []
    if found is not None and found.light > automatic.TELLS:
        brightness = contrast = 0.0
        lost.append(f"{found.light:.0%} in another light")
    if found is not None and found.color > automatic.TELLS:
        saturation = hue = 0.0
        lost.append(f"{found.color:.0%} in gray")
    because = None
    if lost:
        because = f"of what tells cells apart, the starting weights lose {' and '.join(lost)}"
    elif found is not None:
        because = (
            f"of what tells cells apart, the starting weights lose only {found.color:.0%} in gray and"
            f" {found.light:.0%} in another light"
        )
    return Choice({"jitter": (brightness, contrast, saturation, hue)}, because)


@rule("grayscale_probability", rests_on=OF_RELIANCE)
def _grayscale_probability(chosen: Grounds, facts: Facts) -> Choice:
    if facts.reliance is None or facts.reliance.color <= automatic.TELLS:
        return Choice({"grayscale_probability": automatic.GRAYSCALE})
    return Choice({"grayscale_probability": 0.0}, "for the same reason")


@rule("mean", "std", rests_on=("data", "channels", "brightness", "init", "backbone"))
def _normalization(chosen: Grounds, facts: Facts) -> Choice:
    if facts.start is not None and chosen.brightness == "scale":
        return Choice(facts.start._asdict(), facts.whose_start)
    if chosen.channels == 3 and chosen.brightness == "scale":
        return Choice(IMAGENET._asdict())
    assert facts.pixels.measured is not None, "inspect measures where no others fit"
    return Choice(facts.pixels.measured._asdict(), "measured")


def side_of_local_crops(settings: Settings[Any], stride: int) -> int | None:
    """The side of a local crop in pixels, at so many pixels per cell; None if there are none."""
    if not settings.local_crops:
        return None
    if settings.local_crop_size == "auto":
        return automatic.local_crop_size(settings.image_size, stride, settings.grid)
    return settings.local_crop_size


@rule("local_crop_size", rests_on=("local_crops", "image_size", "backbone", "output_stride", "grid"))
def _local_crop_size(chosen: Grounds, facts: Facts) -> Choice:
    size = automatic.local_crop_size(chosen.image_size, facts.network.stride, chosen.grid)
    return Choice({"local_crop_size": size if chosen.local_crops else None})


# --- the encoders ---------------------------------------------------------------------------------


@rule("freeze_norm_statistics", rests_on=("init", "backbone"))
def _freeze_norm_statistics(chosen: Grounds, facts: Facts) -> Choice:
    network = facts.network
    freeze = network.statistics_frozen or (chosen.init is not None and network.batch_statistics)
    new = freeze and not network.statistics_frozen
    because = "those of the starting weights are better than those of small crops" if new else None
    return Choice({"freeze_norm_statistics": freeze}, because)


@rule(
    "key_norm",
    rests_on=(
        *("backbone", "method", "freeze_norm_statistics", "recipe", "devices", "nodes"),
        *("accumulate", "batch_size", "key_split"),
    ),
)
def _key_norm(chosen: Grounds, facts: Facts) -> Choice:
    network = facts.network
    uses = network.always_batch_statistics if chosen.freeze_norm_statistics else network.batch_statistics
    if not uses:
        return Choice({"key_norm": None})
    processes = chosen.devices * chosen.nodes
    if chosen.recipe == "paper" and processes == 1 and _images_at_once(chosen) > chosen.key_split:
        return Choice(
            {"key_norm": "split"}, f"into {counted(chosen.key_split, 'image')}, as on each of the paper's devices"
        )
    if not facts.methods[chosen.method].queue:
        return Choice({"key_norm": None})
    return Choice({"key_norm": "shuffle"}, "on one device there is nothing to shuffle" if processes == 1 else "")


def steps_of_run(chosen: Grounds | Settings[Any], facts: Facts) -> int | None:
    """Steps of the run; None with a time limit."""
    if chosen.epochs is None:
        return chosen.steps
    return math.ceil(chosen.epochs * Fraction(facts.images, chosen.batch_size))


@rule("key_momentum", rests_on=("data", "batch_size", "method", *OF_THE_TEACHER, *LENGTHS))
def _key_momentum(chosen: Grounds, facts: Facts) -> Choice:
    highest = facts.methods[chosen.method].key_momentum
    if highest is None:
        return Choice({"key_momentum": None})
    steps = steps_of_run(chosen, facts)
    because = f"for {'an unknown number of steps' if steps is None else counted(steps, 'step')}"
    if distills_alone(chosen):
        because = None  # it has no keys
    return Choice({"key_momentum": automatic.key_momentum(steps, highest)}, because)


@rule("queue_length", rests_on=("data", "batch_size", "method", "key_momentum", *OF_THE_TEACHER, *LENGTHS))
def _queue_length(chosen: Grounds, facts: Facts) -> Choice:
    if not facts.methods[chosen.method].queue or chosen.key_momentum is None:
        return Choice({"queue_length": None})
    length = automatic.queue_length(facts.images, chosen.batch_size, chosen.key_momentum)
    because = None if distills_alone(chosen) else f"for {counted(facts.images, 'image')} and this key momentum"
    return Choice({"queue_length": length}, because)


# --- the teacher ----------------------------------------------------------------------------------


@rule(
    "teacher_size",
    rests_on=(
        *("teacher", "teacher_backbone", "teacher_cache"),
        *("image_size", "crop_scale", "backbone", "output_stride", "channels"),
    ),
)
def _teacher_size(chosen: Grounds, facts: Facts) -> Choice:
    if facts.teacher is None:
        return Choice({"teacher_size": None})
    grids, student = facts.teacher.grids, cells_to_follow(chosen, facts.network.followed_grid)
    enough = [size for size in grids if has_enough_cells(grids[size], student)]
    size = min(enough) if enough else max(grids, key=lambda size: min(grids[size]))
    whose = "the student has" if chosen.teacher_cache is None else "the smallest crop needs"
    because = f"{in_cells(grids[size])} cells; {whose} {in_cells(student)}"
    if teaches_itself(chosen) and size == 2 * chosen.image_size:
        because = f"twice a view, so that the weights learn what they see in a larger image: {because}"
    elif size != chosen.image_size and chosen.image_size in grids:
        because += f", and at {chosen.image_size} px the teacher would have {in_cells(grids[chosen.image_size])}"
    return Choice({"teacher_size": size}, because)


def cells_to_follow(settings: Any, student: tuple[int, int]) -> tuple[int, int]:
    """The rows and columns that a teacher's map should have: as many as the student's.

    A kept map shows the whole image. It is as fine if the smallest crop of it has as many.
    """
    if settings.teacher_cache is None:
        return student
    side = math.sqrt(settings.crop_scale[0])
    rows, cols = (math.ceil(cells / side) for cells in student)
    return rows, cols


def has_enough_cells(teacher: tuple[int, int], student: tuple[int, int]) -> bool:
    """Whether a teacher's map has at least as many cells a side as the student's."""
    return all(theirs >= own for theirs, own in zip(teacher, student, strict=True))


def in_cells(grid: tuple[int, int]) -> str:
    return "x".join(map(str, grid))


@rule("init_license", rests_on=("init",))
def _init_license(chosen: Grounds, facts: Facts) -> Choice:
    if chosen.init is None:
        return Choice({"init_license": None})
    if facts.start_license is None:
        because = "nothing says it; look it up before you pass on what is made of these weights"
        return Choice({"init_license": UNKNOWN_LICENSE}, because)
    return Choice({"init_license": facts.start_license}, facts.whose_start_license)


@rule("teacher_license", rests_on=("teacher", "teacher_backbone", "init_license"))
def _teacher_license(chosen: Grounds, facts: Facts) -> Choice:
    if facts.teacher is None:
        return Choice({"teacher_license": None})
    if teaches_itself(chosen):
        return Choice({"teacher_license": chosen.init_license}, "that of the starting weights")
    if facts.teacher.license is None:
        because = "nothing says it; look it up before you pass on what the teacher has taught"
        return Choice({"teacher_license": UNKNOWN_LICENSE}, because)
    return Choice({"teacher_license": facts.teacher.license}, facts.teacher.whose_license)


# --- the optimizer --------------------------------------------------------------------------------


@rule("base_learning_rate", rests_on=("optimizer", "backbone", "method"))
def _base_learning_rate(chosen: Grounds, facts: Facts) -> Choice:
    method = facts.methods[chosen.method]
    rate = automatic.base_learning_rate(chosen.optimizer, facts.network.batch_norm, method)
    return Choice({"base_learning_rate": rate})


@rule("learning_rate", rests_on=("base_learning_rate", "batch_size", "optimizer", "backbone", "method"))
def _learning_rate(chosen: Grounds, facts: Facts) -> Choice:
    rate = automatic.scaled_learning_rate(chosen.base_learning_rate, chosen.batch_size, chosen.optimizer)
    root = "the square root of " if chosen.optimizer == "adamw" else ""
    because = (
        f"base {chosen.base_learning_rate:g} for {chosen.optimizer} x {root}batch size {chosen.batch_size} /"
        f" {automatic.REFERENCE_BATCH}"
    )
    return Choice({"learning_rate": rate}, because)


@rule("weight_decay", rests_on=("optimizer", "method"))
def _weight_decay(chosen: Grounds, facts: Facts) -> Choice:
    return Choice({"weight_decay": automatic.weight_decay(chosen.optimizer, facts.methods[chosen.method])})


@rule("warmup_epochs", rests_on=("data", "batch_size", *LENGTHS))
def _warmup_epochs(chosen: Grounds, facts: Facts) -> Choice:
    steps = steps_of_run(chosen, facts)
    epochs = None if steps is None else float(steps / Fraction(facts.images, chosen.batch_size))
    return Choice({"warmup_epochs": automatic.warmup_epochs(epochs)}, "")


@rule("freeze_backbone_steps", rests_on=("init",))
def _freeze_backbone_steps(chosen: Grounds, facts: Facts) -> Choice:
    return Choice({"freeze_backbone_steps": automatic.FREEZE_BACKBONE_STEPS})


# --- the machine ----------------------------------------------------------------------------------


@rule("precision", rests_on=())
def _precision(chosen: Grounds, facts: Facts) -> Choice:
    machine = facts.machine
    precision = "bf16" if machine.fast_in_bf16 else "fp16" if machine.fast_in_fp16 else "32"
    return Choice({"precision": precision}, machine.why_bf16)


@rule("channels_last", rests_on=("precision",))
def _channels_last(chosen: Grounds, facts: Facts) -> Choice:
    pays = facts.machine.gpus > 0 or chosen.precision == "bf16"
    return Choice({"channels_last": pays}, "" if pays else "of little use in float32 on a CPU")


@rule("workers", rests_on=("devices",))
def _workers(chosen: Grounds, facts: Facts) -> Choice:
    machine = facts.machine
    count = automatic.workers(machine.cores, chosen.devices, on_gpu=machine.gpus > 0)
    return Choice({"workers": count}, counted(machine.cores, "core"))
