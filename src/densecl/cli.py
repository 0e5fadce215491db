"""The commands. Each parses its flags and calls one function; the flags of `pretrain` are the settings in `config`.

argparse, because it can tell given flags from defaults (a recipe is composed from the given ones
alone), puts titles over groups of flags, and lets us word its complaints, all through its public interface.
"""

from __future__ import annotations

import argparse
import errno
import itertools
import os
import re
import sys
import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import NoneType
from typing import Any, Literal, NoReturn, get_args, get_origin

from densecl.config.convert import members, words_of
from densecl.config.presets import PAPER
from densecl.config.setting import Meaning, flag
from densecl.config.settings import defaults, meanings, setting_types
from densecl.config.words import as_typed
from densecl.errors import SharedError, UserError, nearest
from densecl.evaluation.settings import TASKS, Settings
from densecl.names import printable, shown
from densecl.training.cores import allowed_cores, available_cores
from densecl.version import __version__

#: What the system says of a path that cannot be used, wherever that comes out.
UNUSABLE = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENAMETOOLONG)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command in `arguments` (those of the process when not given).

    Returns:
        The exit code: 0, 2 for what the user can put right (told on stderr, in a line or two), or
        130 after Ctrl-C.
    """
    # Before torch is loaded: its threads on the CPU otherwise wait by spinning for milliseconds, and wherever anything
    # else wants a core (measured on two: one busy process beside the training), steps take several times as long. To
    # put them to sleep at once costs a tenth, because most waits end within microseconds.
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    if available_cores() < allowed_cores():
        # Torch knows nothing of quotas: its threads would wait for each other's turn.
        os.environ.setdefault("OMP_NUM_THREADS", str(available_cores()))
    # Torch's warnings from C++, such as of a connection that ends with its process, come with pages of frames.
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    try:
        options = _parse(sys.argv[1:] if arguments is None else list(arguments))
        options.pop("run")(**options)
    except SharedError:
        return 2
    except UserError as error:
        return _complain(error.args[0])
    except KeyboardInterrupt:
        print("densecl: interrupted", file=sys.stderr)
        return 130
    except Exception as error:
        if _disk_full(error):
            return _complain(
                "No space left on the disk. Free some, then go on with --resume: the last checkpoint is whole."
            )
        if isinstance(error, OSError) and error.errno in UNUSABLE and error.filename is not None:
            return _complain(f"{shown(error.filename)}: {error.strerror}.")
        raise
    return 0


def _complain(message: str) -> int:
    print(printable(f"densecl: error: {message}"), file=sys.stderr)
    return 2


def _disk_full(error: BaseException) -> bool:
    """Whether `error`, or what caused it, is a full disk. Safetensors and torch wrap the OSError in their own."""
    for cause in _causes(error):
        if isinstance(cause, OSError) and cause.errno in (errno.ENOSPC, errno.EDQUOT):
            return True
        text = str(cause)
        if "No space left on device" in text or ("inline_container.cc" in text and "unexpected pos" in text):
            return True
    return False


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


# --- the commands ---------------------------------------------------------------------------------


def _pretrain(out: Path, data: str | None = None, **settings: Any) -> None:
    from densecl.api import pretrain

    pretrain(data, out, **settings)


def _demo(out: Path, seed: int) -> None:
    from densecl.demo import demo

    demo(out, seed=seed)


def _evaluate(weights: list[str], task: list[str], data: str, **settings: Any) -> None:
    from densecl.evaluation.compare import evaluate

    evaluate(weights, task, data, **settings)


# --- parsing --------------------------------------------------------------------------------------


class _Formatter(argparse.HelpFormatter):
    """Keeps the lines of a help text, and wraps each of them."""

    def _split_lines(self, text: str, width: int) -> list[str]:
        # A flag that is broken at its hyphen cannot be copied.
        return [part for line in text.splitlines() for part in textwrap.wrap(line, width, break_on_hyphens=False)]


class _Parser(argparse.ArgumentParser):
    """A parser that raises UserError instead of printing its usage and leaving."""

    def __init__(self, **options: Any) -> None:
        super().__init__(
            allow_abbrev=False,
            formatter_class=lambda prog: _Formatter(prog, max_help_position=30),
            **options,
        )

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}. See '{self.prog} --help'.")


def _parse(arguments: list[str]) -> dict[str, Any]:
    """The options of the command in `arguments`, and under "run" the function to call with them.

    Settings of the recipe are there only when they were given.
    """
    parser = _Parser(
        prog="densecl", description="Pre-train a backbone for detection and segmentation on unlabeled images."
    )
    parser.add_argument("--version", action="version", version=f"densecl {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    _add_pretrain(commands)
    _add_evaluate(commands)
    _add_demo(commands)

    command = arguments[0] if arguments else None
    if command is None:
        *others, last = commands.choices
        raise UserError(f"Give a command: {', '.join(others)} or {last}. See 'densecl --help'.")
    if command not in commands.choices and command not in ("-h", "--help", "--version"):
        raise UserError(f"There is no command '{command}'.{nearest(command, commands.choices)} See 'densecl --help'.")
    if command in commands.choices:
        _check_flags(arguments[1:], commands.choices[command].format_help())
    options, unknown = parser.parse_known_args(arguments)
    if unknown:
        raise UserError(f"Unexpected argument '{unknown[0]}'. Values follow a flag, such as --data FOLDER.")
    return vars(options)


def _check_flags(words: Sequence[str], text: str) -> None:
    """Names a mistyped flag. Argparse would rather ask for the one that is missing because of it.

    Raises:
        UserError: a flag that the help `text` does not have.
    """
    known = re.findall(r"--[a-z-]+", text)
    for word in itertools.takewhile(lambda word: word != "--", words):
        typed = word.partition("=")[0]
        is_value = " " in typed or re.fullmatch(r"-([\d.].*|inf|nan|)", typed)
        if typed.startswith("-") and typed not in ("-h", *known) and not is_value:
            raise UserError(f"There is no flag {typed}.{nearest(typed, known)}")


def _add_pretrain(commands: Any) -> None:
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
    for title, settings in meanings().items():
        group = parser.add_argument_group(title)
        for name, meaning in settings.items():
            if name == "settled":  # the run's own note, for files
                continue
            group.add_argument(flag(name), help=_help(name, meaning), **_how_to_read(name))


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
        notes.append(f"default: {as_typed(default)}")
    if name in PAPER and name != "recipe" and PAPER[name] != default and PAPER[name] not in meaning.choices:
        notes.append(f"paper: {as_typed(PAPER[name])}")
    lines = [f"{meaning.help} ({'; '.join(notes)})" if notes else meaning.help]
    for word, what in meaning.choices.items():
        lines.append(f"{word}{' (default)' if word == default else ''}: {what}")
    return "\n".join(lines).replace("%", "%%")


def _add_evaluate(commands: Any) -> None:
    parser = commands.add_parser(
        "evaluate",
        help="compare what weights can do",
        description="Judge several weights by the same protocol and show them side by side, in percent.",
        epilog="What each task does, and the layouts of the data: docs/evaluate.md.",
        usage="densecl evaluate WEIGHTS [WEIGHTS ...] --task TASK [TASK ...]\n"
        "                        --data SOURCE [any setting]",
        argument_default=argparse.SUPPRESS,
    )
    parser.set_defaults(run=_evaluate)

    def add(where: Any, name: str, text: str, **how: Any) -> None:
        where.add_argument(name, help=text.replace("%", "%%"), **how)

    what = parser.add_argument_group("what is compared")
    add(
        what,
        "weights",
        "Run folder, backbone.safetensors, 'random', 'imagenet', or another file of weights with --backbone.",
        metavar="WEIGHTS",
        nargs="+",
    )
    add(what, "--task", f"One or several of {', '.join(TASKS)}.", metavar="TASK", nargs="+", required=True)
    add(
        what,
        "--data",
        "Folder of images, labeled unless for correspondence; for neighbors a CSV, too.",
        metavar="SOURCE",
        required=True,
    )
    add(
        what,
        "--backbone",
        "Of weights that do not say it (default: that of the first that do).",
        metavar="NAME",
    )
    add(what, "--json", "File for every result (default: evaluation.json).", metavar="FILE")
    how = parser.add_argument_group("the protocol")
    add(how, "--seeds", f"How many; scores are means over them (default: {Settings.seeds}).", metavar="N", type=int)
    add(how, "--first-seed", f"The first of these (default: {Settings.first_seed}).", metavar="N", type=int)
    add(
        how,
        "--image-size",
        "WIDTHxHEIGHT, or N for a square (default: the labeled images' own, in whole cells; views for"
        " correspondence and images for neighbors: 128; the longer side of images for detection: 320).",
        metavar="SIZE",
        type=_image_size,
    )
    add(
        how,
        "--output-stride",
        "Pixels per cell of the feature map (default: 16, or the backbone's own where it cannot be changed or for"
        " detection).",
        metavar="N",
        type=int,
    )
    add(
        how,
        "--batch-size",
        "Images at a time (default: 32; fine-tuned segmentation 16, detection 8).",
        metavar="N",
        type=int,
    )
    add(
        how,
        "--images",
        "Pairs of views for correspondence (default: 256), images for neighbors (default: 2000).",
        metavar="N",
        type=int,
    )
    labels = parser.add_argument_group("labeled data")
    add(
        labels,
        "--train-split",
        f"Name, or a list file, of what is learned from (default: {Settings.train_split}).",
        metavar="NAME",
    )
    add(labels, "--test-split", "... and of what is scored on (default: test, or else val or valid).", metavar="NAME")
    add(labels, "--classes", "Labels are 0 to N-1 (default: as many as occur).", metavar="N", type=int)
    add(
        labels,
        "--ignore",
        "Labels of pixels that do not count; 255 never does.",
        metavar="LABEL",
        nargs="+",
        type=int,
    )
    add(
        labels,
        "--also",
        "Score the test images whose file names match apart as well, such as 'Seq05V*'.",
        metavar="PATTERN",
        nargs="+",
    )
    add(
        labels,
        "--label-fraction",
        "Use this share of the training images, drawn by the seed (default: 1).",
        metavar="X",
        type=float,
    )
    training = parser.add_argument_group("training on the labels")
    add(training, "--fine-tune", "Train the backbone too, for segmentation and detection.", action="store_true")
    add(training, "--steps", "Of training (default: segmentation 300, detection 500).", metavar="N", type=int)
    add(training, "--learning-rate", "AdamW's, at its highest (default: 0.0005).", metavar="X", type=float)


def _image_size(text: str) -> tuple[int, int]:
    sides = text.lower().split("x")
    if len(sides) > 2 or not all(side.isdecimal() for side in sides):
        raise argparse.ArgumentTypeError(f"expected WIDTHxHEIGHT or one number, not '{text}'")
    return int(sides[0]), int(sides[-1])


def _add_demo(commands: Any) -> None:
    parser = commands.add_parser(
        "demo",
        help="see it work on drawn scenes, without any data",
        description="Draw labeled scenes, pre-train on them without the labels, and compare what was learned.",
    )
    parser.set_defaults(run=_demo)
    parser.add_argument(
        "--out",
        metavar="RUN",
        type=Path,
        default=Path("runs/demo"),
        help="Folder for the files (default: %(default)s).",
    )
    parser.add_argument(
        "--seed", metavar="N", type=int, default=0, help="Fixes scenes and training (default: %(default)s)."
    )
