"""Composing a recipe from layers: a preset, files, and the settings given explicitly. Later layers win."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from densecl.config.convert import convert_all
from densecl.config.files import read_settings
from densecl.config.optimization import LENGTHS
from densecl.config.presets import PRESETS
from densecl.config.recipe import Recipe
from densecl.config.rules import resting
from densecl.config.settings import defaults
from densecl.errors import UserError
from densecl.weights_file import stated_architecture


def make_recipe(config: Path | str | Sequence[Path | str] | None = None, **settings: Any) -> Recipe:
    """Compose a recipe: the preset's defaults, then `config`, then `settings`, the last one winning.

    Args:
        config: A YAML file with some or all settings, or several of which later ones beat earlier ones.
        settings: Explicit values by name, also as typed on a command line. The name of the preset
            (`recipe`) is the one in `settings`, else in `config`, else "auto".

    What a run chose itself (`settled` in its ``recipe.yaml``) is chosen anew where a later layer changes what it rests
    on. A length of one kind (epochs, steps, time limit) replaces one of another kind from an earlier layer; without
    any, a run lasts 200 epochs. ``method="densecl"`` becomes moco with dense weight 0.5, unless the same layer gives
    another weight. A backbone that no layer names is what the weights of `init` say they are.

    Raises:
        UserError: an unknown setting, a value of the wrong type or out of range, no data, or a file that cannot be
            read.
    """
    files = () if config is None else (config,) if isinstance(config, (str, Path)) else config
    layers = [read_settings(file) for file in files] + [convert_all(settings, "")]
    if all(isinstance(layers[-1].get(name), float) for name in ("learning_rate", "base_learning_rate")):
        raise UserError("Give --learning-rate or --base-learning-rate, not both: the one is made from the other.")
    name = next((layer["recipe"] for layer in reversed(layers) if "recipe" in layer), "auto")
    preset = PRESETS[name]
    values: dict[str, Any] = dict(preset)
    for layer in layers:
        if layer.get("method") == "densecl":
            layer = {"dense_weight": 0.5, **layer, "method": "moco"}
        if any(layer.get(length) is not None for length in LENGTHS):
            layer = dict.fromkeys(LENGTHS) | layer
        values |= _reopened(values, layer, preset) | layer
    if values.get("init") and not any("backbone" in layer for layer in layers):
        values["backbone"] = stated_architecture(values["init"]) or values.get("backbone", defaults()["backbone"])
    if all(values.get(length) is None for length in LENGTHS):
        values["epochs"] = 200
    if isinstance(values.get("data"), tuple) and len(values["data"]) == 1:
        (values["data"],) = values["data"]
    if not values.get("data"):
        raise UserError("--data is missing: give a folder of images, a text file of paths, or a quoted glob.")
    return Recipe(**values)


def _reopened(values: Mapping[str, Any], layer: Mapping[str, Any], preset: Mapping[str, Any]) -> dict[str, Any]:
    """What an earlier run chose and `layer` opens again, at the preset's value; and what stays settled."""
    settled = values.get("settled", ())
    changed = {name for name in layer if name not in values or layer[name] != values[name]}
    reopened: dict[str, Any] = {}
    for name, grounds in resting().items():  # in this order: what is open again opens what rests on it
        if name in settled and name not in layer and changed.intersection(grounds):
            reopened[name] = preset.get(name, defaults()[name])
            changed.add(name)
    kept = tuple(name for name in settled if name not in {*reopened, *layer})
    return {**reopened, "settled": kept}
