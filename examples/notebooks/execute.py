"""Executes notebooks and saves them with their outputs.

python examples/notebooks/execute.py [--notebooks pytorch quickstart]

It needs the extra "notebooks". Each runs in an empty folder, with the settings that stand in it. What a terminal would
have overwritten is left out of the outputs.
"""

from __future__ import annotations

import argparse
import os
import re
import tempfile
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbformat import NotebookNode

FOLDER = Path(__file__).parent

#: What moves a terminal's cursor or colors its text.
CONTROL = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


def clean(notebook: NotebookNode, folder: str) -> None:
    """Leave in each stream what one would see in the end, and in the metadata nothing of this machine."""
    notebook.metadata["language_info"] = {"name": "python"}
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
        for output in cell.get("outputs", ()):
            if output.output_type == "stream":
                lines = CONTROL.sub("", output.text.replace("\r\n", "\n")).replace(f"{folder}/", "").split("\n")
                output.text = "\n".join(line.rpartition("\r")[2] for line in lines)


def execute(path: Path) -> None:
    """Run a notebook from top to bottom and write it back."""
    notebook = nbformat.read(path, as_version=4)
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        os.environ["IPYTHONDIR"] = folder
        where = {"metadata": {"path": folder}}
        NotebookClient(notebook, timeout=None, kernel_name="python3", resources=where).execute()
    clean(notebook, folder)
    nbformat.write(notebook, path)
    print(f"{path.name}: {(time.monotonic() - began) / 60:.1f} minutes")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = sorted(path.stem for path in FOLDER.glob("*.ipynb"))
    parser.add_argument("--notebooks", nargs="+", choices=names, default=names)
    # tqdm wants a widget that not every Jupyter has.
    os.environ.setdefault("PYTHONWARNINGS", "ignore:IProgress not found")
    for name in parser.parse_args().notebooks:
        execute(FOLDER / f"{name}.ipynb")


if __name__ == "__main__":
    main()
