"""The commands. Each parses its flags and calls one function; the flags of `pretrain` are the fields of `Recipe`.

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
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import NoneType
from typing import Any, Literal, NoReturn, get_args, get_origin

from densecl.commands.evaluate import add_evaluate
from densecl.commands.help import HelpInLines
from densecl.errors import SharedError, UserError, nearest
from densecl.names import printable, shown
from densecl.recipe import PAPER, Recipe, documentation, flag, setting_types
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


# --- parsing --------------------------------------------------------------------------------------


class _Parser(argparse.ArgumentParser):
    """A parser that raises UserError instead of printing its usage and leaving."""

    def __init__(self, **options: Any) -> None:
        super().__init__(allow_abbrev=False, formatter_class=HelpInLines, **options)

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
    add_evaluate(commands)
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
    for title, settings in documentation().items():
        group = parser.add_argument_group(title)
        for name, text in settings.items():
            if name == "settled":  # the run's own note, for files
                continue
            group.add_argument(flag(name), help=_help(name, text), **_how_to_read(name))


def _how_to_read(name: str) -> dict[str, Any]:
    """What argparse has to know about a setting; `make_recipe` turns the strings into values."""
    kind = setting_types()[name]
    members = [member for member in _members(kind) if member is not NoneType]
    if bool in members:  # "auto" beside it is what it is when not given
        return {"action": argparse.BooleanOptionalAction}
    tuples = [member for member in members if get_origin(member) is tuple]
    if tuples:
        words = get_args(tuples[0])
        if words[-1] is ...:
            return {"nargs": "+", "metavar": _metavar(words[0])}
        return {"nargs": len(words), "metavar": tuple(map(_metavar, words))}
    return {"metavar": "|".join(map(_metavar, members))}


def _members(kind: Any) -> tuple[Any, ...]:
    return (kind,) if get_origin(kind) in (tuple, Literal) or not get_args(kind) else get_args(kind)


def _metavar(kind: Any) -> str:
    if get_origin(kind) is Literal:
        return "|".join(get_args(kind))
    return {int: "N", float: "X", str: "TEXT"}[kind]


def _help(name: str, text: str) -> str:
    """The setting's description with its default, escaped for argparse."""
    notes = []
    default = getattr(Recipe, name, None)  # `data` has none
    if default is not None:
        notes.append(f"default: {_shown(default)}")
    if name != "recipe" and name in PAPER and PAPER[name] != default:
        notes.append(f"paper: {_shown(PAPER[name])}")
    return (f"{text} ({'; '.join(notes)})" if notes else text).replace("%", "%%")


def _shown(value: Any) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    if value is None:
        return "none"
    return " ".join(map(str, value)) if isinstance(value, tuple) else str(value)


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
