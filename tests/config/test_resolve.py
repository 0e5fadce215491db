"""What "auto" becomes, from facts alone: without a run, a file, a network or a GPU."""

from __future__ import annotations

import dataclasses
import itertools
import subprocess
import sys
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from densecl.config import rules
from densecl.config.compose import make_recipe
from densecl.config.facts import Facts, Machine, Network, Pixels, Reliance
from densecl.config.resolve import Resolution, resolve
from densecl.config.rules import RULES, Choice, Grounds, Rule
from densecl.errors import UserError
from densecl.model import METHODS
from densecl.normalization import IMAGENET, Normalization

HALF = Normalization((0.5, 0.5, 0.5), (0.25, 0.25, 0.25))


def facts(
    images: int = 1000,
    *,
    pixels: dict | None = None,
    network: dict | None = None,
    machine: dict | None = None,
    **others: Any,
) -> Facts:
    """Of a ResNet on a plain CPU, but for what is given."""
    usual: dict[str, Any] = {
        "name": "resnet18", "stride": 32, "grid": (7, 7), "batch_norm": True, "batch_statistics": True
    }  # fmt: skip
    cpu: dict[str, Any] = {"gpus": 0, "cores": 8, "fast_in_bf16": False, "why_bf16": "so it is"}
    return Facts(
        images=images,
        pixels=Pixels(**(pixels or {})),
        network=Network(**{**usual, **(network or {})}),
        machine=Machine(**{**cpu, **(machine or {})}),
        methods=METHODS,
        **others,
    )


def resolved(known: Facts | None = None, **asked: Any) -> Resolution:
    launched = {"devices": 1, "nodes": 1}
    length = {} if asked.keys() & {"steps", "epochs", "time_limit"} else {"steps": 100}
    return resolve(make_recipe(**{"data": "images", **launched, **length, **asked}), known or facts())


def test_nothing_is_left_open_and_what_was_chosen_is_on_record() -> None:
    made = resolved().resolved
    values = dataclasses.asdict(made)
    assert values.pop("recipe") == "auto"  # the name of the preset
    assert "auto" not in values.values()
    assert set(made.settled) == {name for rule in RULES for name in rule.settings}
    assert resolve(made, facts()) == (made, (), ())  # again: nothing to choose, nothing to say


@given(
    method=st.sampled_from(["auto", *METHODS]),
    images=st.integers(64, 10**7),
    gpus=st.integers(0, 8),
    bf16=st.booleans(),
    batch_norm=st.booleans(),
    init=st.sampled_from([None, "imagenet"]),
    recipe=st.sampled_from(["auto", "paper"]),
    length=st.sampled_from([{"steps": 100}, {"epochs": 3}, {"time_limit": "8m"}, {}]),
    local_crops=st.sampled_from([0, 4]),
)
def test_any_facts_give_settings_that_can_be_run(
    method, images, gpus, bf16, batch_norm, init, recipe, length, local_crops
) -> None:
    if recipe == "paper" and (method not in ("auto", "moco") or "time_limit" in length or images < 256):
        return
    known = facts(
        images,
        network={
            "batch_norm": batch_norm,
            "batch_statistics": batch_norm,
            "local_grid": (4, 4) if local_crops else None,
        },
        machine={"gpus": gpus, "fast_in_bf16": bf16},
    )
    made, *_ = resolved(known, method=method, init=init, recipe=recipe, local_crops=local_crops, **length)
    traits = METHODS[made.method]
    assert traits.least_batch <= made.batch_size <= images
    assert (made.queue_length is None) == (not traits.queue)
    assert (made.temperature is None) == (traits.temperature is None)
    assert (made.key_momentum is None) == (traits.key_momentum is None)
    assert made.freeze_norm_statistics == (init is not None and batch_norm)
    assert (made.key_norm is None) == (not batch_norm or made.freeze_norm_statistics or not traits.queue)
    assert resolve(made, known).resolved == made


def test_a_rule_cannot_read_what_it_does_not_say_that_it_rests_on() -> None:
    def choose(chosen: Any, known: Facts) -> Choice:
        return Choice({"workers": chosen.devices + chosen.seed})

    values = {"devices": 2, "seed": 3}
    assert Rule(("workers",), ("devices", "seed"), choose).apply(values, facts()).values == {"workers": 5}
    with pytest.raises(AttributeError, match="a rule reads seed, but does not say that it rests on it"):
        Rule(("workers",), ("devices",), choose).apply(values, facts())
    assert Grounds(values, ["devices"]).devices == 2


def test_a_rule_stands_after_those_that_it_rests_on() -> None:
    names = {name for rule in RULES for name in rule.settings}
    #: What these read of later ones is only whether it was given.
    may_look_ahead = {"batch_size": {"method", "key_norm", "dense_negatives"}}
    may_look_ahead["method"] = {*rules.OF_THE_KEYS, "dense_negatives"}
    for number, rule in enumerate(RULES):
        before = {name for one in RULES[: number + 1] for name in one.settings}
        later = names.intersection(rule.rests_on) - before
        assert later <= may_look_ahead.get(rule.settings[0], set()), rule.settings


def test_reasons_read_like_what_one_types() -> None:
    made, reasons, _ = resolved(facts(4000, start=HALF, whose_start="those of the weights"), init="x", method="moco")
    assert reasons == (
        "--batch-size 64 (for 4000 images on a CPU)",
        "--mean 0.5 0.5 0.5 --std 0.25 0.25 0.25 (those of the weights)",
        "--freeze-norm-statistics (those of the starting weights are better than those of small crops)",
        "--key-momentum 0.9 (for 100 steps)",
        "--queue-length 256 (for 4000 images and this key momentum)",
        "--init-license unknown (nothing says it; look it up before you pass on what is made of these weights)",
        "--learning-rate 0.0015 (base 0.003 for adamw x the square root of batch size 64 / 256)",
        "--warmup-epochs 0.16",
        "--precision 32 (so it is)",
        "--no-channels-last (of little use in float32 on a CPU)",
        "--workers 2 (8 cores)",
    )
    assert (made.mean, made.std) == HALF


@pytest.mark.parametrize(
    ("fast", "gpus", "given", "precision", "channels_last"),
    [
        (True, 0, {}, "bf16", True),
        (False, 0, {}, "32", False),
        (False, 1, {}, "32", True),
        (True, 0, {"precision": "32"}, "32", False),
        (False, 0, {"precision": "bf16"}, "bf16", True),
        (True, 0, {"channels_last": False}, "bf16", False),
    ],
)
def test_precision_and_layout_follow_the_processor(fast, gpus, given, precision, channels_last) -> None:
    made, reasons, _ = resolved(facts(machine={"fast_in_bf16": fast, "gpus": gpus}), **given)
    assert (made.precision, made.channels_last) == (precision, channels_last)
    assert (f"--precision {precision} (so it is)" in reasons) == ("precision" not in given)


@pytest.mark.parametrize(
    ("given", "known", "key_norm"),
    [
        ({}, {}, "split"),
        ({"devices": 2}, {}, "shuffle"),
        ({"accumulate": 2}, {}, "shuffle"),  # four images at a time need no splitting
        ({"key_norm": "shuffle"}, {}, "shuffle"),
        ({}, {"batch_norm": False, "batch_statistics": False}, None),
        ({"freeze_norm_statistics": True}, {}, None),
        ({"freeze_norm_statistics": True}, {"always_batch_statistics": True}, "split"),
        ({"recipe": "auto", "method": "moco"}, {}, "shuffle"),
        ({"recipe": "auto", "method": "byol"}, {}, None),
    ],
)
def test_on_one_device_the_papers_keys_see_the_papers_number_of_images(given, known, key_norm) -> None:
    asked = {"recipe": "paper", "batch_size": 8, "key_split": 4, "queue_length": 16, **given}
    if asked["recipe"] == "auto":
        asked = {name: value for name, value in asked.items() if name not in ("key_split", "queue_length")}
    made, reasons, warnings = resolved(facts(network=known), **asked)
    assert made.key_norm == key_norm
    assert any("--key-norm split (into 4 images" in reason for reason in reasons) == (key_norm == "split")
    if key_norm == "split":
        assert not any("key-split does nothing" in warning for warning in warnings)


MEASURED = Normalization((0.1,) * 3, (0.2,) * 3)


@pytest.mark.parametrize(
    ("given", "pixels", "start", "brightness", "normalization"),
    [
        ({}, {}, None, "scale", IMAGENET),
        ({}, {}, HALF, "scale", HALF),
        ({"mean": MEASURED.mean, "std": MEASURED.std}, {}, HALF, "scale", MEASURED),
        ({}, {"offset": 9.0, "deep": True, "measured": MEASURED}, HALF, "shift", MEASURED),
        ({}, {"offset": 9.0, "deep": False}, None, "scale", IMAGENET),
        ({"brightness": "scale"}, {"offset": 9.0, "deep": True}, HALF, "scale", HALF),
    ],
)
def test_mean_and_std_are_those_that_fit(given, pixels, start, brightness, normalization) -> None:
    made, reasons, warnings = resolved(facts(pixels=pixels, start=start, whose_start="theirs"), **given)
    assert made.brightness == brightness
    assert (made.mean, made.std) == normalization
    assert ("mean" in made.settled) == ("mean" not in given)
    assert any(line.startswith("--brightness shift (") for line in reasons) == (brightness == "shift")
    narrow = pixels.get("offset", 0) > 8 and brightness == "scale"
    assert any("--brightness shift goes by its own contrast" in line for line in warnings) == narrow


@pytest.mark.parametrize(
    ("color", "light", "given", "jitter", "gray", "lost"),
    [
        (None, None, {}, (0.4, 0.4, 0.4, 0.1), 0.2, None),
        (0.2, 0.3, {}, (0.4, 0.4, 0.4, 0.1), 0.2, "only 20% in gray and 30% in another light"),
        (0.44, 0.2, {}, (0.4, 0.4, 0.0, 0.0), 0.0, "44% in gray"),
        (0.1, 0.53, {}, (0.0, 0.0, 0.4, 0.1), 0.2, "53% in another light"),
        (0.59, 0.6, {}, (0.0, 0.0, 0.0, 0.0), 0.0, "60% in another light and 59% in gray"),
        (0.44, 0.2, {"jitter": (0.1, 0.1, 0.1, 0.1)}, (0.1, 0.1, 0.1, 0.1), 0.0, None),
        (0.44, 0.2, {"grayscale_probability": 0.5}, (0.4, 0.4, 0.0, 0.0), 0.5, "44% in gray"),
        (0.44, 0.6, {"recipe": "paper"}, (0.4, 0.4, 0.4, 0.1), 0.2, None),
    ],
)
def test_views_keep_what_the_starting_weights_rely_on(color, light, given, jitter, gray, lost) -> None:
    reliance = None if color is None else Reliance(color=color, light=light)
    made, reasons, _ = resolved(facts(reliance=reliance), init="imagenet", **given)
    assert (made.jitter, made.grayscale_probability) == (jitter, gray)
    said = [reason for reason in reasons if reason.startswith("--jitter")]
    of_what = f"(of what tells cells apart, the starting weights lose {lost})"
    assert [reason.endswith(of_what) for reason in said] == ([] if lost is None else [True])


@pytest.mark.parametrize(
    ("given", "frozen", "said"),
    [
        ({}, False, False),
        ({"init": "imagenet"}, True, True),
        ({"init": "imagenet", "freeze_norm_statistics": False}, False, False),
        ({"freeze_norm_statistics": True}, True, False),
    ],
)
def test_the_statistics_of_starting_weights_are_kept(given, frozen, said) -> None:
    made, reasons, _ = resolved(**given)
    assert made.freeze_norm_statistics is frozen
    assert any(line.startswith("--freeze-norm-statistics (") for line in reasons) == said


def test_statistics_that_came_frozen() -> None:
    known = facts(network={"batch_statistics": False, "statistics_frozen": True})
    assert resolved(known).resolved.freeze_norm_statistics is True
    with pytest.raises(UserError, match="freeze_norm_statistics=False: those of this resnet18"):
        resolved(known, freeze_norm_statistics=False)


@pytest.mark.parametrize(
    ("given", "complaint"),
    [
        ({"batch_size": 2048}, "batch_size=2048 is larger than the data set of 1000 images. Take 512."),
        ({"method": "byol", "batch_size": 1}, "byol takes statistics over the batch in its heads .* Give at least 2."),
        ({"method": "barlow", "batch_size": 4, "accumulate": 4}, "in 4 parts: barlow .* in its loss .* at least 8"),
        ({"dense_negatives": "others", "batch_size": 2, "accumulate": 2}, "no others. Give batch_size=4 or more"),
        ({"method": "byol", "temperature_max": 0.3}, "temperature_max=0.3: byol has no temperature. Leave it out"),
        ({"method": "simclr", "key_momentum_end": 1}, "key_momentum_end=1.0: simclr has no key momentum"),
        ({"method": "moco", "temperature": None}, "temperature=None: moco does not go without. Leave it out"),
        ({"method": "moco", "key_momentum": None}, "key_momentum=None: moco does not go without"),
        ({"method": "moco", "key_norm": None}, "key_norm=None: moco does not go without where there is batch norm"),
        ({"grid": 8}, "grid=8: the feature map has only 7x7 cells. Give at most 7"),
        ({"epochs": 1, "devices": 1001}, "1000 images cannot be shared by 1001 device"),
    ],
)
def test_what_cannot_work_is_one_clear_line(given, complaint) -> None:
    with pytest.raises(UserError, match=complaint):
        resolved(**given)


@pytest.mark.parametrize(
    ("grid", "dense_weight", "error", "warning"),
    [((1, 1), 0.5, True, False), ((1, 1), 0.0, False, False), ((3, 3), 0.5, False, True), ((4, 4), 0.5, False, False)],
)
def test_too_few_cells(grid, dense_weight, error, warning) -> None:
    known = facts(network={"grid": grid})
    if error:
        with pytest.raises(UserError, match=r"is 1x1: dense learning .* image_size=128 or output_stride=16"):
            resolved(known, image_size=64, dense_weight=dense_weight)
        return
    _, _, warnings = resolved(known, image_size=96, dense_weight=dense_weight)
    assert any("on which the dense loss means little; use --image-size 128" in line for line in warnings) == warning


def test_too_few_cells_in_a_local_crop() -> None:
    known = facts(network={"local_grid": (2, 2)})
    with pytest.raises(UserError, match="local_crop_size=64: the feature map of resnet18 is then 2x2.* at least 128"):
        resolved(known, local_crops=2, local_crop_size=64)
    assert resolved(known, local_crops=2, local_crop_size=64, dense_weight=0).resolved.local_crop_size == 64


@pytest.mark.parametrize(
    ("given", "line"),
    [
        ({"match_radius": 1.0, "matching": "features", "dense_negatives": "pooled"}, "--match-radius does nothing"),
        ({"momentum": 0.5}, "--momentum does nothing without --optimizer sgd or lars"),
        ({"local_crop_scale": (0.1, 0.2)}, "--local-crop-scale does nothing without --local-crops"),
        ({"key_split": 8}, "--key-split does nothing without --key-norm split"),
        ({"devices": 9, "batch_size": 90}, "--devices 9: without a GPU these are processes on 8 cores"),
        ({"method": "moco", "queue_length": 2000}, "longer than the data set of 1000 images.* 256 would fit"),
    ],
)
def test_what_is_likely_not_meant_is_said(given, line) -> None:
    _, _, warnings = resolved(**given)
    assert sum(line.split(".*")[0] in warning for warning in warnings) == 1


def test_a_network_without_batch_norm_has_nothing_to_freeze() -> None:
    without = {"batch_norm": False, "batch_statistics": False}
    made, _, warnings = resolved(facts(network=without), freeze_norm_statistics=True)
    assert "--freeze-norm-statistics does nothing: resnet18 has no batch norm" in warnings
    assert resolved(facts(network=without), init="imagenet").resolved.freeze_norm_statistics is False
    assert made.base_learning_rate == 0.0005


def test_resolving_needs_no_torch() -> None:
    program = (
        "import sys; from densecl.config import compose, resolve, facts;"
        " print(sorted({name.split('.')[0] for name in sys.modules} & {'torch', 'numpy', 'lightning', 'timm'}))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_what_rests_on_what_has_no_circle_but_the_batch_size_and_the_method() -> None:
    grounds = rules.resting()
    circles = {frozenset((one, other)) for one, other in itertools.permutations(grounds, 2)
               if one in grounds[other] and other in grounds[one]}  # fmt: skip
    assert circles <= {
        frozenset(("batch_size", "method")),
        frozenset(("batch_size", "key_norm")),
        frozenset(("method", "key_norm")),
        frozenset(("method", "queue_length")),
        frozenset(("method", "key_momentum")),
        frozenset(("method", "key_momentum_end")),
        frozenset(("method", "dense_negatives")),
    }


def test_what_is_chosen_has_no_noise_in_its_last_digits() -> None:
    made = resolved(base_learning_rate=0.104, optimizer="sgd", batch_size=512).resolved
    assert made.learning_rate == 0.208 and made.learning_rate == 0.104 * 2.0
    assert len(repr(resolved(images := facts(4350), steps=20, batch_size=16).resolved.warmup_epochs)) <= 16, images


def test_a_gpu_without_bf16_computes_in_float16() -> None:
    t4 = facts(machine={"gpus": 1, "fast_in_fp16": True, "why_bf16": "the GPU lacks bf16"})
    assert resolved(t4).resolved.precision == "fp16"
    assert resolved(t4, precision="32").resolved.precision == "32"


def test_the_license_of_the_starting_weights_is_recorded_and_said() -> None:
    made = resolved(facts(start_license="dinov3-license", whose_start_license="its file says so"), init="x")
    assert made.resolved.init_license == "dinov3-license"
    assert "--init-license dinov3-license (its file says so)" in made.reasons
    unknown = resolved(init="x")
    assert unknown.resolved.init_license == "unknown"
    assert any("init-license unknown (nothing says it; look it up" in reason for reason in unknown.reasons)
    assert resolved(init="x", init_license="mine").resolved.init_license == "mine"
    assert resolved().resolved.init_license is None
