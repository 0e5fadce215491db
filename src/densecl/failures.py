"""What the system refuses, in a line: a full disk, a file that may not grow, a folder that is closed."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator
from pathlib import Path

from densecl.names import shown

#: There is no room: on the disk, or within a quota.
FULL = (errno.ENOSPC, errno.EDQUOT)

#: What else a disk, a share or a limit of the system may refuse. It is no mistake of ours, so nobody needs a traceback.
#: (A file that is not there may be one, so that is left out.)
_NAMES = """
    EACCES EPERM EROFS ENAMETOOLONG EFBIG EIO ESTALE ETXTBSY EBUSY ENXIO EMFILE ENFILE ENODEV ENOTCONN ETIMEDOUT
    EHOSTDOWN EREMOTEIO EOPNOTSUPP ELOOP
"""
REFUSED = {getattr(errno, name) for name in _NAMES.split() if hasattr(errno, name)}

#: The commands whose runs have checkpoints.
RUNS = ("pretrain", "finetune")

#: The end of an error of Rust's, which safetensors passes on as words.
_RUST = re.compile(r"^(?:.*: )?(.+) \(os error (\d+)\)$")


def refused(error: BaseException, command: str | None, out: object) -> str | None:
    """What to tell the user if `error`, or what caused it, comes from the system; None if it does not.

    Safetensors and torch wrap what the system says in errors of their own.

    Args:
        error: that ended the command.
        command: the one that was given.
        out: its --out, if it has one.
    """
    for cause in _causes(error):
        number, said, path = _of_system(cause)
        if number in FULL:
            return f"No space left on the disk. Free some, then {_then(command, out)}"
        if number in REFUSED:
            place = path or out
            where = f"{shown(str(place))}: " if place is not None else ""
            limit = " (ulimit -f, or what the file system takes)" if number == errno.EFBIG else ""
            return f"{where}{said}{limit}. Put that right, then {_then(command, out)}"
    return None


def _of_system(cause: BaseException) -> tuple[int | None, str, str | None]:
    """The number of the error, its words, and the file."""
    text = str(cause)
    if isinstance(cause, OSError) and cause.errno is not None:
        path = None if cause.filename is None else os.fsdecode(cause.filename)
        return cause.errno, cause.strerror or text, path
    rust = _RUST.search(text)
    if rust is not None:
        return int(rust[2]), rust[1], None
    if "No space left on device" in text or ("inline_container.cc" in text and "unexpected pos" in text):
        return errno.ENOSPC, text, None
    return None, text, None


def _then(command: str | None, out: object) -> str:
    """How this command is begun again, or gone on with."""
    if command in RUNS and out is not None:
        begun = (Path(str(out)).expanduser() / "checkpoints" / "last.ckpt").is_file()
        return "go on with --resume: the last checkpoint is whole." if begun else "run it again."
    if command == "embed" and out is not None and Path(f"{out}.parts").expanduser().is_dir():
        return "go on with --resume."
    return "run it again: nothing was written." if command == "export" else "run it again."


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
