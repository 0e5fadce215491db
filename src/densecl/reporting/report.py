"""`densecl report`: reads runs, and writes or serves their page."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from densecl.errors import UserError
from densecl.files import replacing
from densecl.names import printable, shown
from densecl.reporting.run_files import check_run, read_run

#: More runs than this are no longer told apart by their colors.
MOST_RUNS = 8

#: What is written beside the first of several runs.
SEVERAL = "report-of-several.html"


def report(runs: str | Path | Sequence[str | Path], out: str | Path | None = None, *, watch: bool = False) -> Path:
    """Write a page that tells what a run learned: verdicts, curves, and what the network makes of images.

    The page is one file. It opens from disk, and needs no network.

    Args:
        runs: The folder of a run; or of several runs, which are then compared.
        out: The file (default: ``report.html`` in the run's folder; of several runs, ``report-of-several.html`` in the
            first one's).
        watch: Also serve the page to this machine alone, and keep it up to date, until Ctrl-C.

    Returns:
        The file.

    Raises:
        UserError: a folder holds no run, or the file cannot be written.
        KeyboardInterrupt: with `watch`, on Ctrl-C.
    """
    several = [runs] if isinstance(runs, str | Path) else list(runs)
    folders = list(dict.fromkeys(Path(run).expanduser().absolute() for run in several))
    if not folders:
        raise UserError("Give the folder of a run.")
    if len(folders) > MOST_RUNS:
        raise UserError(f"{len(folders)} runs are more than a page can show side by side. Give at most {MOST_RUNS}.")
    for folder in folders:
        check_run(folder)
    path = folders[0] / ("report.html" if len(folders) == 1 else SEVERAL) if out is None else Path(out).expanduser()
    if path.is_dir():
        raise UserError(f"--out {shown(path)} is a folder. Give a file, such as {shown(path / 'report.html')}.")
    try:
        write_page(folders, path)
    except OSError as error:
        raise UserError(f"{shown(path)} cannot be written: {error.strerror or error}.") from error
    print(printable(f"The report is {shown(path)}"), flush=True)
    if watch:
        from densecl.reporting.watch import serve

        serve(folders)
    return path


def write_page(folders: Sequence[Path], path: Path) -> None:
    """Write the page of the runs in these folders.

    Raises:
        UserError: a folder holds no run.
        OSError: the file cannot be written.
    """
    from densecl.reporting.page import make_page

    page = make_page([read_run(folder) for folder in folders])
    with replacing(path) as file:
        file.write(page)
