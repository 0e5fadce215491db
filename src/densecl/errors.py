"""The one exception that is meant for the user rather than for the developer."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable

#: Flags that take no value, and are true where they are given.
SWITCHES = (
    "resume",
    "fine-tune",
    "per-class",
    "freeze-norm-statistics",
    "channels-last",
    "checkpoint-activations",
    "compile",
    "symmetric",
    "sync-batch-norm",
    "keep-best",
    "teacher-standardize",
)

#: A setting as it is typed, with its value if that can be no word of the sentence; or anything in quotes, which may be
#: a command or what the user gave.
_SETTING = re.compile(
    r"(?<!\w)'[^']*'(?!\w)"
    r"|(?<![\w/.-])--(?P<flag>[a-z]+(?:-[a-z]+)*)(?![\w-])"
    r"(?:[ =](?P<value>\d+x\d+|-?\d+(?:\.\d+)?(?:e-?\d+)?|auto|none|True|False)(?![\w/]|\.\w))?"
)

_IN_PYTHON = {"auto": "'auto'", "none": "None"}


def flag(name: str) -> str:
    """A setting as it is typed: ``--image-size`` for ``image_size``."""
    return "--" + name.replace("_", "-")


class UserError(ValueError):
    """Something the user can put right: what is wrong, where, and what to do, in one or two lines.

    The message is written with settings as they are typed, such as ``--image-size 96``. The command line prints it so,
    without a traceback, and exits with code 2; it is `args[0]`. From Python it is an ordinary ValueError, and ``str``
    has settings as they are passed there: ``image_size=96``.
    """

    def __str__(self) -> str:
        return _SETTING.sub(_as_passed, super().__str__())


def _as_passed(found: re.Match[str]) -> str:
    """A setting as a keyword of Python."""
    typed, value = found["flag"], found["value"]
    if typed is None:
        return found[0]
    name = typed.removeprefix("no-").replace("-", "_")
    if value is None and typed.startswith("no-"):
        value = "False"
    elif value is None and typed in SWITCHES and not found.string.startswith(" takes", found.end()):
        value = "True"
    if value is None:
        return name
    if "x" in value:
        value = f"({value.replace('x', ', ')})"
    return f"{name}={_IN_PYTHON.get(value, value)}"


class SharedError(UserError):
    """A failure of the run that another of its processes shows; the command line only ends with its exit code."""


def nearest(name: str, choices: Iterable[str]) -> str:
    """A hint such as ``" Did you mean 'resnet18'?"``, or nothing when no choice is close to `name`."""
    close = difflib.get_close_matches(name, list(choices), n=1, cutoff=0.6)
    return f" Did you mean '{close[0]}'?" if close else ""


def one_line(error: BaseException, limit: int = 160) -> str:
    """What an error of a library says, without line breaks, colors and what is beyond `limit` characters."""
    text = re.sub(r"\x1b\[[0-9;]*m", "", str(error))  # torch colors some of its messages
    text = " ".join(text.split()) or type(error).__name__
    return text if len(text) <= limit else text[: limit - 3] + "..."
