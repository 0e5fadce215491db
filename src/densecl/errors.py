"""The one exception that is meant for the user rather than for the developer."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """Something the user can put right: what is wrong, where, and what to do, in one or two lines.

    The command line prints the message without a traceback and exits with code 2.
    From Python it is an ordinary exception.
    """


class SharedError(UserError):
    """A failure of the run that another of its processes shows; the command line only ends with its exit code."""


def nearest(name: str, choices: Iterable[str]) -> str:
    """A hint such as ``" Did you mean 'resnet18'?"``, or nothing when no choice is close to `name`."""
    close = difflib.get_close_matches(name, list(choices), n=1, cutoff=0.6)
    return f" Did you mean '{close[0]}'?" if close else ""
