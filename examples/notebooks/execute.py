"""Executes notebooks and saves them with their outputs.

python examples/notebooks/execute.py [--notebooks pytorch quickstart]

It needs the extra "notebooks". Each runs in an empty folder, with the settings that stand in it. What a terminal would
have overwritten is left out of the outputs.
"""

from __future__ import annotations

import argparse
import base64
import io
import os
import re
import tempfile
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbformat import NotebookNode
from PIL import Image

FOLDER = Path(__file__).parent

#: What moves a terminal's cursor or colors its text.
CONTROL = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


#: Longer pictures are saved as JPEG, at most so many pixels wide and high.
MOST_CHARACTERS, LONGEST = 200_000, 1000


def clean(notebook: NotebookNode, folder: str) -> None:
    """Leave in each stream what one would see in the end, of pictures a small one, and nothing of this machine."""
    notebook.metadata["language_info"] = {"name": "python"}
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
        outputs = []
        for output in cell.get("outputs", ()):
            if outputs and output.output_type == "stream" and output.name == outputs[-1].get("name"):
                outputs[-1].text += output.text
            else:
                outputs.append(output)
        for output in outputs:
            if output.output_type == "stream":
                lines = CONTROL.sub("", output.text.replace("\r\n", "\n")).replace(f"{folder}/", "").split("\n")
                output.text = "\n".join(line.rpartition("\r")[2] for line in lines)
            elif len(output.get("data", {}).get("image/png", "")) > MOST_CHARACTERS:
                output.data["image/jpeg"] = smaller(output.data.pop("image/png"))
                output.metadata.pop("image/png", None)
        if cell.cell_type == "code":
            cell.outputs = outputs


def smaller(png: str) -> str:
    """The same picture as JPEG; both in base64."""
    picture = Image.open(io.BytesIO(base64.b64decode(png))).convert("RGB")
    picture.thumbnail((LONGEST, LONGEST))
    file = io.BytesIO()
    picture.save(file, format="JPEG", quality=80)
    return base64.b64encode(file.getvalue()).decode()


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
