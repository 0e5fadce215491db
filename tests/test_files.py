"""Files on file systems that lack what others have."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import tempfile
from pathlib import Path
from types import SimpleNamespace

import pytest
from filelock import FileLock, Timeout

from densecl.files import append, free_bytes, lock, new_folder, replacing

#: What file systems say of an operation that they do not have: CIFS, NFS, FUSE, mounted buckets.
LACKING = ["EPERM", "EINVAL", "ENOSYS", "ENOTSUP", "EOPNOTSUPP", "ENOLCK"]


def refuse(name: str):
    def refused(*_: object, **__: object) -> None:
        number = getattr(errno, name)
        raise OSError(number, os.strerror(number))

    return refused


def write(path: Path, content: bytes) -> None:
    with replacing(path) as file:
        file.write(content)


@pytest.mark.parametrize("reason", LACKING)
@pytest.mark.parametrize("operation", ["chmod", "fchmod", "fsync", "replace", "utime", "link"])
def test_a_file_is_written_without(operation: str, reason: str, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(os, operation, refuse(reason))
    for content in (b"first", b"second"):
        write(tmp_path / "file", content)
        assert (tmp_path / "file").read_bytes() == content
    assert os.listdir(tmp_path) == ["file"]


@pytest.mark.parametrize("reason", ["EEXIST", "EACCES", "EXDEV", "EBUSY"])
def test_a_file_that_nothing_can_be_moved_to_is_written(reason: str, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(os, "replace", refuse(reason))
    for content in (b"first", b"second"):
        write(tmp_path / "file", content)
        assert (tmp_path / "file").read_bytes() == content
    assert os.listdir(tmp_path) == ["file"]


def test_several_may_write_a_file_at_once_each_with_an_unfinished_one_of_its_own(tmp_path: Path) -> None:
    path, (one, other) = tmp_path / "file", (tmp_path / "one", tmp_path / "other")
    with replacing(path, beside=one) as first, replacing(path, beside=other) as second:
        first.write(b"first")
        second.write(b"second")
        assert not path.exists() and sorted(os.listdir(tmp_path)) == ["one", "other"]
    assert path.read_bytes() == b"first"  # the last to end
    with pytest.raises(TypeError), replacing(path, beside=other) as second:
        second.write(["not bytes"])  # pyright: ignore[reportCallIssue, reportArgumentType]
    assert path.read_bytes() == b"first" and os.listdir(tmp_path) == ["file"]


@pytest.mark.parametrize("durable", [True, False])
def test_the_disk_is_waited_for_only_where_that_matters(durable: bool, tmp_path: Path, monkeypatch) -> None:
    waited = []
    monkeypatch.setattr(os, "fsync", waited.append)
    with replacing(tmp_path / "file", durable=durable) as file:
        file.write(b"content")
    assert len(waited) == durable and (tmp_path / "file").read_bytes() == b"content"


@pytest.mark.parametrize("reason", ["", *LACKING])
def test_adding_to_a_file(reason: str, tmp_path: Path, monkeypatch) -> None:
    opened = Path.open
    if reason:
        monkeypatch.setattr(
            Path, "open", lambda path, mode="r", **how: refuse(reason)() if "a" in mode else opened(path, mode, **how)
        )
    for content in (b"first", b"second" * 10**4):
        append(tmp_path / "file", content)
    assert (tmp_path / "file").read_bytes() == b"first" + b"second" * 10**4
    assert os.listdir(tmp_path) == ["file"]


@pytest.mark.parametrize("operation", ["fsync", "replace"])
@pytest.mark.parametrize("reason", ["EIO", "ENOSPC", "EDQUOT", "EROFS"])
def test_what_is_no_lack_is_told_and_leaves_the_old_file(operation: str, reason: str, tmp_path, monkeypatch) -> None:
    write(tmp_path / "file", b"old")
    monkeypatch.setattr(os, operation, refuse(reason))
    with pytest.raises(OSError, match=os.strerror(getattr(errno, reason))):
        write(tmp_path / "file", b"new")
    assert (tmp_path / "file").read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["file"]


def test_others_may_read_what_the_umask_allows(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        write(tmp_path / "file", b"")
    finally:
        os.umask(before)
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o640


@pytest.mark.parametrize("reason", LACKING)
def test_without_locks_nothing_is_locked(reason: str, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(fcntl, "flock", refuse(reason))
    with lock(tmp_path / ".lock", timeout=0.1):
        write(tmp_path / "file", b"content")
    assert (tmp_path / "file").read_bytes() == b"content"


def test_a_lock_is_held_and_let_go(tmp_path: Path) -> None:
    with lock(tmp_path / ".lock") as locked, pytest.raises(Timeout), FileLock(tmp_path / ".lock", timeout=0):
        assert locked
    with FileLock(tmp_path / ".lock"), pytest.raises(Timeout), lock(tmp_path / ".lock", timeout=0.0):
        pass
    with FileLock(tmp_path / ".lock", timeout=0):
        pass


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_lock_that_nobody_may_make_is_told(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(PermissionError), lock(tmp_path / ".lock"):
        pass


def test_free_space_may_be_unknown(tmp_path: Path, monkeypatch) -> None:
    assert free_bytes(tmp_path) == pytest.approx(shutil.disk_usage(tmp_path).free, rel=0.1)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(total=0, free=0))  # some mounted buckets
    assert free_bytes(tmp_path) is None
    for reason in ("ENOSYS", "EIO", "ESTALE"):
        monkeypatch.setattr(shutil, "disk_usage", refuse(reason))
        assert free_bytes(tmp_path) is None


def test_errors_name_what_the_user_named_and_not_the_hidden_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(tmp_path / ".x.12345678.part"))

    with pytest.raises(FileNotFoundError) as failed, new_folder(tmp_path / "x") as folder:
        (folder / "none/model.bin").touch()
    assert failed.value.filename == str(tmp_path / "x/none/model.bin")
    (tmp_path / "y.part").mkdir()
    with pytest.raises(IsADirectoryError) as failed, replacing(tmp_path / "y"):
        pass
    assert failed.value.filename == str(tmp_path / "y")
    monkeypatch.setattr(tempfile, "mkdtemp", refuse)
    with pytest.raises(PermissionError) as failed, new_folder(tmp_path / "x"):
        pass
    assert failed.value.filename == str(tmp_path / "x")


def test_a_new_folder_is_there_whole_or_not_at_all(tmp_path: Path) -> None:
    with new_folder(tmp_path / "a" / "b") as folder:
        (folder / "one").write_text("1")
        assert not (tmp_path / "a" / "b").exists()
    assert (tmp_path / "a/b/one").read_text() == "1" and [path.name for path in (tmp_path / "a").iterdir()] == ["b"]
    assert (tmp_path / "a/b").stat().st_mode == (tmp_path / "a").stat().st_mode  # not for its owner alone
    with pytest.raises(RuntimeError), new_folder(tmp_path / "a" / "c") as folder:  # noqa: PT012
        (folder / "one").write_text("1")
        raise RuntimeError
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["b"]
    with pytest.raises(OSError), new_folder(tmp_path / "a" / "b"):  # noqa: PT011
        pass
    assert (tmp_path / "a/b/one").is_file()


def test_a_new_folder_where_none_can_be_moved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EXDEV, "another device")

    monkeypatch.setattr(os, "rename", refuse)
    with new_folder(tmp_path / "a") as folder:
        (folder / "one").write_text("1")
    assert [path.name for path in tmp_path.rglob("*")] == ["a", "one"]
