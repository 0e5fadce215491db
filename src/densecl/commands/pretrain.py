"""`densecl pretrain` on the command line. Its flags are the settings in `config`."""

from __future__ import annotations

import argparse
from pathlib import Path
from types import NoneType
from typing import Any, Literal, get_args, get_origin

from densecl.config.convert import members, words_of
from densecl.config.presets import PAPER
from densecl.config.setting import Meaning
from densecl.config.settings import defaults, meanings, setting_types
from densecl.errors import flag


def add_pretrain(commands: Any) -> None:
    """Add the command to argparse's subparsers."""
    parser = commands.add_parser(
        "pretrain",
        help="turn a folder of unlabeled images into a backbone",
        description="Turn unlabeled images into a backbone for dense tasks. The result is RUN/backbone.safetensors.",
        epilog="Flags beat --config, which beats --recipe. 'none' unsets a value, as in --tile none.",
        usage="densecl pretrain --data SOURCE --out RUN [--config FILE] [--resume]\n"
        "                        [any setting]",
        argument_default=argparse.SUPPRESS,
    )
    parser.set_defaults(run=_pretrain)
    run = parser.add_argument_group("the run")
    run.add_argument("--out", metavar="RUN", type=Path, required=True, help="Folder that the run is written to.")
    run.add_argument("--resume", action="store_true", help="Go on from the last checkpoint in RUN.")
    run.add_argument("--config", metavar="FILE", help="YAML file of settings, such as another run's recipe.yaml.")
    add_settings(parser)


def add_settings(parser: Any) -> None:
    """Add a flag for each setting of a run, by topic."""
    for title, settings in meanings().items():
        group = parser.add_argument_group(title)
        for name, meaning in settings.items():
            if name == "settled":  # the run's own note, for files
                continue
            group.add_argument(flag(name), help=_help(name, meaning), **_how_to_read(name))


def _pretrain(out: Path, data: list[str] | None = None, **settings: Any) -> None:
    from densecl.api import pretrain

    pretrain(data[0] if data is not None and len(data) == 1 else data, out, **settings)


def _how_to_read(name: str) -> dict[str, Any]:
    """What argparse has to know about a setting; `make_recipe` turns the strings into values."""
    kinds = [kind for kind in members(setting_types()[name]) if kind is not NoneType]
    if bool in kinds:  # "auto" beside it is what it is when not given
        return {"action": argparse.BooleanOptionalAction}
    tuples = [get_args(kind) for kind in kinds if get_origin(kind) is tuple]
    if tuples:
        (words,) = tuples
        if words[-1] is ...:
            return {"nargs": "+", "metavar": _metavar(words[0])}
        return {"nargs": len(words), "metavar": tuple(map(_metavar, words))}
    if all(get_origin(kind) is Literal for kind in kinds):
        return {"metavar": "|".join(words_of(setting_types()[name]))}
    return {"metavar": "|".join(map(_metavar, kinds))}


def _metavar(kind: Any) -> str:
    if get_origin(kind) is Literal:
        return "|".join(get_args(kind))
    return {int: "N", float: "X", str: "TEXT"}[kind]


def _help(name: str, meaning: Meaning) -> str:
    """What the setting means, its default, and a line for each of its words; escaped for argparse."""
    notes = []
    default = defaults().get(name)  # `data` has none
    if default is not None and default not in meaning.choices:
        notes.append(f"default: {_as_typed(default)}")
    if name in PAPER and name != "recipe" and PAPER[name] != default and PAPER[name] not in meaning.choices:
        notes.append(f"paper: {_as_typed(PAPER[name])}")
    lines = [f"{meaning.help} ({'; '.join(notes)})" if notes else meaning.help]
    for word, what in meaning.choices.items():
        lines.append(f"{word}{' (default)' if word == default else ''}: {what}")
    return "\n".join(lines).replace("%", "%%")


def _as_typed(value: Any) -> str:
    """A value as one types it on the command line."""
    if isinstance(value, bool):
        return "on" if value else "off"
    if value is None:
        return "none"
    return " ".join(map(str, value)) if isinstance(value, tuple) else str(value)
