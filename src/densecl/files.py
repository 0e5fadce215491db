"""Writing a file so that a crash leaves the old one or the new one, on any file system.

Network shares and mounted buckets may lack flushing, locks, appending, or moving a file over another. Each of these is
then replaced by something simpler.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from filelock import FileLock, Timeout

#: Errors by which a file system says that it lacks an operation.
MISSING = frozenset(
    (errno.EPERM, errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOTTY, errno.ENOLCK)
)

#: Errors by which it says that a file cannot be moved over another, although the other can be written: shares that
#: never replace a file (EEXIST) or none that somebody reads (EACCES), layered file systems and mounts (EXDEV, EBUSY).
NO_MOVE = MISSING | {errno.EEXIST, errno.EACCES, errno.EXDEV, errno.EBUSY}


@contextlib.contextmanager
def replacing(path: Path, *, beside: Path | None = None, durable: bool = True) -> Iterator[BinaryIO]:
    """Opens an unfinished file beside `path` for writing, and moves it to `path` once all is written.

    Where the file system cannot move it, it is copied. Only a crash during the copy leaves a broken file.

    Args:
        path: where the content belongs.
        beside: the unfinished file. The default, `path` with ".part" behind, needs no cleaning up after a crash: the
            next write takes the same name. Where several processes may write `path` at once, each needs its own.
        durable: wait until the content is on the disk, so that it also survives a power failure.

    Raises:
        OSError: it cannot be written. The old file is then still whole.
    """
    beside = beside or path.with_name(path.name + ".part")
    try:
        with beside.open("wb") as file:
            yield file
            file.flush()
            if durable:
                with _optional():
                    os.fsync(file.fileno())
        try:
            os.replace(beside, path)
        except OSError as error:
            if error.errno not in NO_MOVE:
                raise
            shutil.copyfile(beside, path)
    except OSError as error:
        if error.filename == str(beside):  # nobody knows this name
            error.filename = str(path)
        raise
    finally:
        with contextlib.suppress(OSError):  # it would hide the first error
            beside.unlink(missing_ok=True)


@contextlib.contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Makes a folder beside `path` to be filled, and moves it to `path` once that is done. After an error it is gone.

    Args:
        path: where the folder belongs. Nothing may be there but an empty folder.

    Raises:
        OSError: it cannot be made, or something is there.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        beside = Path(tempfile.mkdtemp(prefix=f".{path.name[:100]}.", suffix=".part", dir=path.parent))
    except OSError as error:
        error.filename = str(path)  # nobody knows the hidden name
        raise
    try:
        yield beside
        beside.chmod(0o777 & ~_umask())  # a temporary folder is for its owner alone
        with contextlib.suppress(FileNotFoundError):
            path.rmdir()
        try:
            os.rename(beside, path)
        except OSError as error:
            if error.errno not in NO_MOVE:
                raise
            shutil.copytree(beside, path)
    except OSError as error:
        if isinstance(error.filename, str) and Path(error.filename).is_relative_to(beside):
            error.filename = str(path / Path(error.filename).relative_to(beside))
        raise
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def _umask() -> int:
    """Permissions that the user takes away from new files. The system tells it only while it is set."""
    mask = os.umask(0)
    os.umask(mask)
    return mask


def append(path: Path, content: bytes) -> None:
    """Adds to a file in one call, and makes the file if there is none.

    Where the file system cannot append, the whole file is written again.

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
    """Holds a lock against other processes. Where the file system has no locks, it holds none.

    Args:
        path: of a file for the lock alone. The file stays.
        timeout: seconds to wait for the lock; -1: as long as it takes.

    Yields:
        Whether a lock is held.

    Raises:
        filelock.Timeout: somebody else holds it.
        OSError: the file cannot be made.
    """
    held = FileLock(path, timeout=timeout)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # without flock, filelock warns and uses a marker file
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
    """Free bytes on the file system of `folder`; None if it does not tell."""
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
