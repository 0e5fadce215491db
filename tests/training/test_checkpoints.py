from __future__ import annotations

import errno
import io
import os
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError

from densecl.errors import UserError
from densecl.training.checkpoints import FORMAT, Checkpoint, load_checkpoint, save_checkpoint, try_saving, writing


def checkpoint(step: int) -> Checkpoint:
    model = {"weight": torch.full((3,), float(step))}
    return Checkpoint(
        format=FORMAT, step=step, seconds=1.5, images=7, fingerprint="f", model=model, optimizer={"state": {}}
    )


def test_what_was_saved_is_loaded(tmp_path: Path) -> None:
    path = tmp_path / "checkpoints" / "last.ckpt"
    save_checkpoint(checkpoint(4), path)
    loaded = load_checkpoint(path)
    assert (loaded["step"], loaded["seconds"], loaded["images"]) == (4, 1.5, 7)
    assert loaded["model"]["weight"].tolist() == [4, 4, 4]
    assert [file.name for file in path.parent.iterdir()] == ["last.ckpt"]


def test_a_full_disk_leaves_the_old_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "last.ckpt"
    save_checkpoint(checkpoint(4), path)

    class Full(io.FileIO):
        def write(self, data: object) -> int:
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "open", lambda self, mode: Full(self, mode))
    with pytest.raises(UserError, match="No space left on device"):
        save_checkpoint(checkpoint(5), path)
    monkeypatch.undo()
    assert load_checkpoint(path)["step"] == 4
    assert [file.name for file in tmp_path.iterdir()] == ["last.ckpt"]


def test_a_disk_that_takes_no_second_checkpoint_is_found_at_once(tmp_path: Path, monkeypatch) -> None:
    moved = os.replace

    def once(source: Path, target: Path) -> None:
        if Path(target).exists():
            raise OSError(errno.EIO, "Input/output error")
        moved(source, target)

    path = tmp_path / "checkpoints" / "last.ckpt"
    try_saving(path)
    assert not any(path.parent.iterdir())
    monkeypatch.setattr(os, "replace", once)
    with pytest.raises(UserError, match=r"Cannot write .*last\.ckpt: Input/output error"):
        try_saving(path)


def test_a_disk_that_removes_nothing_will_do(tmp_path: Path, monkeypatch) -> None:
    def kept(path: Path, **_: object) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(Path, "unlink", kept)
    try_saving(tmp_path / "checkpoints" / "last.ckpt")


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        SafetensorError("I/O error: No space left on device (os error 28)"),
    ],
)
def test_what_cannot_be_written_is_one_line(tmp_path: Path, error: Exception) -> None:
    line = r"Cannot write .*: .*No space left on device.*\(\d+ MiB are free, too few\)"
    with pytest.raises(UserError, match=line), writing(tmp_path / "backbone.safetensors"):
        raise error


def test_what_is_said_of_the_last_checkpoint_is_true(tmp_path: Path) -> None:
    refused = PermissionError(errno.EACCES, "Permission denied")
    with pytest.raises(UserError, match="Put that right and begin again\\.$"), writing(tmp_path / "recipe.yaml"):
        raise refused  # there is nothing yet to go on with
    (tmp_path / "recipe.yaml").touch()
    for file in ("metrics.csv", "checkpoints/last.ckpt", "backbone.safetensors"):
        with (
            pytest.raises(UserError, match="begin again with resume=True; there is no checkpoint yet"),
            writing(tmp_path / file),
        ):
            raise refused
    save_checkpoint(checkpoint(4), tmp_path / "checkpoints" / "last.ckpt")
    for file in ("metrics.csv", "checkpoints/last.ckpt", "backbone.safetensors"):
        with pytest.raises(UserError, match="go on with resume=True; the last checkpoint is whole"):  # noqa: SIM117
            with writing(tmp_path / file):
                raise refused


def test_other_errors_pass(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="something else"), writing(tmp_path / "last.ckpt"):
        raise RuntimeError("something else")


class Malicious:
    def __reduce__(self) -> object:
        return Path.touch, (Path("unpickled"),)


def test_nothing_is_unpickled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"format": FORMAT, "model": Malicious()}, "evil.ckpt")
    with pytest.raises(UserError, match="damaged"):
        load_checkpoint(Path("evil.ckpt"))
    assert not Path("unpickled").exists()


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", b"PK\x03\x04broken"])
def test_damage_is_told(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "last.ckpt").write_bytes(content)
    with pytest.raises(UserError, match="damaged"):
        load_checkpoint(tmp_path / "last.ckpt")


def test_a_foreign_checkpoint_is_told(tmp_path: Path) -> None:
    torch.save({"state_dict": {}}, tmp_path / "last.ckpt")
    with pytest.raises(UserError, match="no checkpoint of this version"):
        load_checkpoint(tmp_path / "last.ckpt")


def test_a_checkpoint_of_the_first_format_gets_the_new_names(tmp_path: Path) -> None:
    model = {"global_objective.centre": torch.ones(2), "dense_objective.centre": torch.zeros(2), "centre": 3}
    save_checkpoint({**checkpoint(4), "format": "densecl checkpoint 1", "model": model}, tmp_path / "last.ckpt")
    loaded = load_checkpoint(tmp_path / "last.ckpt")
    assert loaded["format"] == FORMAT and loaded["step"] == 4
    assert set(loaded["model"]) == {"global_objective.center", "dense_objective.center", "centre"}
    assert loaded["model"]["global_objective.center"].tolist() == [1, 1]


@pytest.mark.parametrize("content", [{"format": "densecl checkpoint 0"}, {"format": "densecl checkpoint 1"}, {}])
def test_what_is_no_whole_checkpoint_of_any_format_is_told(tmp_path: Path, content: dict) -> None:
    torch.save(content, tmp_path / "last.ckpt")
    with pytest.raises(UserError, match="no checkpoint of this version"):
        load_checkpoint(tmp_path / "last.ckpt")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("step", -1),
        ("step", "4"),
        ("step", True),
        ("step", 4.5),
        ("seconds", float("nan")),
        ("seconds", float("inf")),
        ("seconds", -1.0),
        ("seconds", None),
        ("images", 0),
        ("fingerprint", 3),
        ("model", [1]),
        ("optimizer", None),
    ],
)
def test_every_field_is_checked(tmp_path: Path, name: str, value: object) -> None:
    save_checkpoint({**checkpoint(4), name: value}, tmp_path / "last.ckpt")  # pyright: ignore[reportArgumentType]
    with pytest.raises(UserError, match=f"last.ckpt is damaged and cannot be resumed: its {name} is"):
        load_checkpoint(tmp_path / "last.ckpt")


def test_the_same_state_gives_the_same_bytes(tmp_path: Path) -> None:
    for number in range(3):
        save_checkpoint(checkpoint(4), tmp_path / f"{number}.ckpt")
    assert len({path.read_bytes() for path in tmp_path.iterdir()}) == 1
