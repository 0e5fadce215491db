"""Where an export shall lie. Loads nothing heavy, so that it can be told before anything else is done."""

from __future__ import annotations

from pathlib import Path

from densecl.errors import UserError
from densecl.names import shown


def check_free(out: Path) -> None:
    """
    Raises:
        UserError: something is there already, other than an empty folder.
    """
    if out.is_dir() and not any(out.iterdir()):
        return
    if out.exists() or out.is_symlink():
        raise UserError(f"--out {shown(out)} is there already. Give another folder, or remove it first.")
