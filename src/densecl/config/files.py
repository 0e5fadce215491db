"""Settings in YAML: a run's ``recipe.yaml``, and files of some settings that a user writes."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from densecl.config.convert import convert_all
from densecl.config.recipe import Recipe
from densecl.config.setting import meaning_of
from densecl.config.settings import Settings, meanings, setting_fields
from densecl.errors import UserError
from densecl.files import replacing

#: A recipe has 2 kB.
MAX_BYTES = 1_000_000


def read_settings(path: Path | str) -> dict[str, Any]:
    """The settings in a YAML file, which may be some of all, each brought to its type.

    A file with `settled` was written by a run. Settings that did not exist then get the value that it had without them.

    Raises:
        UserError: no such file, not a mapping in YAML, an unknown setting, or a value of the wrong type.
    """
    try:
        if os.path.getsize(path) > MAX_BYTES:
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
    settings = convert_all(content, f"{path}: ")
    return _before_the_setting() | settings if "settled" in settings else settings


def _before_the_setting() -> dict[str, Any]:
    """What a run did without a setting that did not exist then. Its file says nothing of it."""
    before = {name: meaning_of(field).before for name, field in setting_fields().items()}
    return {name: value for name, value in before.items() if value is not None}


def read_recipe(path: Path | str) -> Recipe:
    """The recipe that a run wrote.

    Raises:
        UserError: as `read_settings`; also when the file names no data.
    """
    settings = read_settings(path)
    if "data" not in settings:
        raise UserError(f"{path} is not a complete recipe: it names no data.")
    return Recipe(**settings)


def write_recipe(settings: Settings[Any], path: Path | str, notes: Sequence[str] = ()) -> None:
    """Writes every setting as YAML. The file takes its place once all is written.

    Args:
        settings: all of them. The name of the preset is left out if it is "auto", because then it names nothing that
            the other lines do not say.
        path: of the file.
        notes: lines of comment that stand first.
    """
    lines = [
        *(f"# {note}" for note in notes),
        "# Every setting of this run. To repeat it:",
        "#     densecl pretrain --config THIS_FILE --out ANOTHER_RUN",
    ]
    for title, names in meanings().items():
        values = {name: getattr(settings, name) for name in names if name != "recipe" or settings.recipe != "auto"}
        lines += ["", f"# {title}", yaml.dump(values, Dumper=_Dumper, sort_keys=False, allow_unicode=True).rstrip()]
    with replacing(Path(path)) as file:
        file.write(("\n".join(lines) + "\n").encode())


class _Dumper(yaml.SafeDumper):
    """Tuples on one line: ``crop_scale: [0.2, 1.0]``."""


_Dumper.add_representer(
    tuple, lambda dumper, items: dumper.represent_sequence("tag:yaml.org,2002:seq", items, flow_style=True)
)
