"""Writing a file so that a crash leaves the old one or the new one, on any file system.

What a file system may lack, such as flush, locks, moving a file over another, or adding to one (network shares, mounted
buckets), is done without.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from filelock import FileLock, Timeout

#: What a file system says of an operation that it does not have.
MISSING = frozenset(
    (errno.EPERM, errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOTTY, errno.ENOLCK)
)

#: What it says where a file cannot be moved to another's place, though that one may well be written: shares that never
#: replace a file (EEXIST) or not one that somebody reads (EACCES), layers and parts of other disks (EXDEV, EBUSY).
NO_MOVE = MISSING | {errno.EEXIST, errno.EACCES, errno.EXDEV, errno.EBUSY}


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """Gives a file beside `path` to write into, which takes its place once all is written.

    Where the file system cannot move it there, it is copied; only a crash in the midst of that leaves a broken file.

    Raises:
        OSError: if it cannot be written; the old file is then still whole.
    """
    beside = path.with_name(path.name + ".part")
    try:
        with beside.open("wb") as file:
            yield file
            file.flush()
            with _optional():
                os.fsync(file.fileno())
        try:
            os.replace(beside, path)
        except OSError as error:
            if error.errno not in NO_MOVE:
                raise
            shutil.copyfile(beside, path)
    finally:
        with contextlib.suppress(OSError):  # which would hide what went wrong
            beside.unlink(missing_ok=True)


def append(path: Path, content: bytes) -> None:
    """Adds to a file, which need not be there, in one call.

    Where the file system cannot add to a file, all of it is written anew.

    Raises:
        OSError: if it cannot be written.
    """
    try:
        with path.open("ab", buffering=len(content) + 2) as file:
            file.write(content)
    except OSError as error:
        if error.errno not in MISSING:
            raise
        before = path.read_bytes() if path.exists() else b""
        with replacing(path) as file:
            file.write(before + content)


@contextlib.contextmanager
def lock(path: Path, timeout: float = -1.0) -> Iterator[bool]:
    """Holds the lock of this name, against other processes; where the file system has no locks, nothing.

    Args:
        path: of a file for the lock alone, which stays.
        timeout: seconds to wait for it; -1: as long as it takes.

    Gives:
        Whether there is a lock.

    Raises:
        filelock.Timeout: somebody else holds it.
        OSError: the file cannot be made.
    """
    held = FileLock(path, timeout=timeout)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # where there is no flock at all, filelock makes do with a marker
            held.acquire()
    except Timeout:
        raise
    except (OSError, NotImplementedError) as error:
        if isinstance(error, OSError) and error.errno not in MISSING:
            raise
        yield False
        return
    try:
        yield True
    finally:
        held.release()


def free_bytes(folder: Path) -> int | None:
    """What is free where `folder` lies; None where the file system does not tell."""
    try:
        usage = shutil.disk_usage(folder)
    except OSError:
        return None
    return usage.free if usage.total > 0 else None


@contextlib.contextmanager
def _optional() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in MISSING:
            raise
