"""Whether a run may begin in a folder. Loads nothing heavy, so that it can be told before anything else is done."""

from __future__ import annotations

import contextlib
from pathlib import Path

from densecl.errors import UserError
from densecl.names import shown
from densecl.watched_file import FORMER_WATCHED, WATCHED

#: Files that a run has before its first checkpoint. A folder with nothing else can be begun anew.
EARLY = frozenset(
    (
        "recipe.yaml",
        "metrics.csv",
        WATCHED,
        FORMER_WATCHED,
        "quarantine.csv",
        "train.log",
        "tensorboard",
        "wandb",
        "mlruns",
        ".lock",
    )
)


def check_folder(out: Path) -> None:
    """
    Raises:
        UserError: there is something else than a folder.
    """
    if out.exists() and not out.is_dir():
        raise UserError(f"--out {out} is a file, not a folder.")


def check_free(out: Path) -> None:
    """
    Raises:
        UserError: if `out` is a file, or there is more in it than what a run leaves before its first checkpoint.
    """
    check_folder(out)
    taken = [path.name for path in out.iterdir() if not _early(path)] if out.is_dir() else []
    if taken:
        hint = "Go on with --resume, or" if (out / "recipe.yaml").is_file() else "It holds other files:"
        raise UserError(f"--out {out} exists already. {hint} choose another folder.")


def check_empty(out: Path) -> None:
    """
    Raises:
        UserError: there is something in `out` already, or it is a file.
    """
    check_folder(out)
    if out.is_dir() and any(out.iterdir()):
        raise UserError(f"--out {out} exists already and holds files. Choose another folder.")


def _early(path: Path) -> bool:
    """Whether a run leaves this before its first checkpoint."""
    if path.name == "checkpoints":
        return path.is_dir() and not any(path.iterdir())
    return path.name in EARLY or path.name.startswith(".quarantine.csv") or path.suffix == ".part"


def check_makeable(out: Path, flag: str = "--out") -> None:
    """Makes the folder, and removes it again, because not even the permissions tell whether that will work.

    Args:
        out: the folder.
        flag: that it was given by.

    Raises:
        UserError: it cannot be made, or not be written to.
    """
    missing = [folder for folder in (out, *out.parents) if not folder.exists()]
    trial = out / ".densecl-trial"
    try:
        out.mkdir(parents=True, exist_ok=True)
        trial.touch()
    except OSError as error:
        raise UserError(f"{flag} {shown(out)}: nothing can be written there: {error.strerror}.") from error
    finally:
        with contextlib.suppress(OSError):
            trial.unlink()
        for folder in missing:
            with contextlib.suppress(OSError):  # another run may have begun there
                folder.rmdir()
