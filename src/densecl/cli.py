"""The front door of the command line: finds the command, and turns what goes wrong into a line and an exit code.

Each command adds its flags in a file of `commands`. argparse, because it tells given flags from defaults (a recipe is
composed from the given ones alone), puts titles over groups of flags, and lets us word its complaints.
"""

from __future__ import annotations

import argparse
import itertools
import os
import re
import shlex
import shutil
import sys
import textwrap
from collections.abc import Sequence
from typing import Any, NoReturn

from densecl.commands.check import add_check
from densecl.commands.demo import add_demo
from densecl.commands.embed import add_embed
from densecl.commands.evaluate import add_evaluate
from densecl.commands.export import add_export
from densecl.commands.finetune import add_finetune
from densecl.commands.help import HelpInLines
from densecl.commands.predict import add_predict
from densecl.commands.pretrain import add_pretrain
from densecl.commands.report import add_report
from densecl.cores import allowed_cores, available_cores
from densecl.errors import SharedError, UserError, nearest
from densecl.failures import refused
from densecl.names import listing, printable
from densecl.synonyms import meant
from densecl.version import __version__


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command in `arguments` (those of the process when not given).

    Returns:
        The exit code: 0, 1 if `check` has found something to put right, 2 for what the user can put right (told on
        stderr, in a line or two), or 130 after Ctrl-C.
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
    if sys.platform == "darwin":  # what Apple's GPU lacks is then computed on the CPU
        os.environ.setdefault("PYTORCH_ENABLE_MPS_FALLBACK", "1")
    given = sys.argv[1:] if arguments is None else list(arguments)
    out = None
    try:
        options = _parse(given)
        out = options.get("out")
        return options.pop("run")(**options) or 0
    except SharedError:
        return 2
    except UserError as error:
        return _complain(error.args[0])
    except KeyboardInterrupt:
        print("densecl: interrupted", file=sys.stderr)
        return 130
    except Exception as error:
        told = refused(error, given[0] if given else None, out)
        if told is None:
            raise
        return _complain(told)


def _complain(message: str) -> int:
    text = printable(f"densecl: error: {message}")
    if sys.stderr.isatty():  # which would break lines within words
        width = shutil.get_terminal_size().columns
        text = textwrap.fill(text, width, break_long_words=False, break_on_hyphens=False)
    print(text, file=sys.stderr)
    return 2


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
    add_pretrain(commands)
    add_check(commands)
    add_report(commands)
    add_evaluate(commands)
    add_export(commands)
    add_finetune(commands)
    add_predict(commands)
    add_embed(commands)
    add_demo(commands)

    command = arguments[0] if arguments else None
    if command is None:
        raise UserError(f"Give a command: {listing(commands.choices)}. See 'densecl --help'.")
    if command not in commands.choices and command not in ("-h", "--help", "--version"):
        raise UserError(f"There is no command '{command}'.{nearest(command, commands.choices)} See 'densecl --help'.")
    if command == "pretrain":
        _check_order(arguments[1:])
    if command in commands.choices:
        _check_flags(arguments[1:], commands.choices[command].format_help())
    options, unknown = parser.parse_known_args(arguments)
    if unknown:
        glob = "" if len(unknown) == 1 else " A glob needs quotes, or the shell puts the names of files in its place."
        raise UserError(f"Unexpected argument '{unknown[0]}'. Values follow a flag, such as --data FOLDER.{glob}")
    return vars(options)


def _check_order(words: Sequence[str]) -> None:
    """
    Raises:
        UserError: the values of pretrain stand there without their flags.
    """
    alone = list(itertools.takewhile(lambda word: not word.startswith("-"), words))
    if not alone:
        return
    data, out = alone, ["RUN"]
    if "--data" in words:
        data, out = [], alone
    elif len(alone) == 2 and "--out" not in words:
        data, out = alone[:1], alone[1:]
    flags = [*(("--data", *data) if data else ()), *(() if "--out" in words else ("--out", *out))]
    raise UserError(f"Say what is what: densecl pretrain {shlex.join(flags)}. See 'densecl pretrain --help'.")


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
            raise UserError(f"There is no flag {typed}.{meant(typed, known)}")
