"""A format costs one file and one row: the documentation's example, added to a copy of the package."""

import re
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import densecl

DOCS = Path(__file__).parents[2] / "docs"
ROWS = "FORMATS = (\n"
SECTION = re.compile(r"^#{2,4} Adding an image format\n(?:(?!#{2,4} ).*\n)*", re.MULTILINE)

PROGRAM = """
import sys
from densecl.images.decode import BadImage, decode, measure
from densecl.images.sources import open_source

folder, one, broken, bomb = sys.argv[1:]
source = open_source(folder)
print(len(source), source.name(0)[-4:], tuple(source.read(0).shape), source.read(0).dtype)
print(source.read(0)[:, 2, 3].tolist(), measure(one, 3))
tiles = open_source(one, tile=4)
print(len(tiles), tiles.name(3)[-18:], tiles.read(3)[:, 0, 0].tolist())
for path in (broken, bomb):
    try:
        decode(path, 3, max_pixels=1000)
    except BadImage as error:
        print(error)
"""


@pytest.fixture
def example() -> tuple[str, str]:
    """The file and the row, as they stand in the documentation."""
    (section,) = (found for page in DOCS.glob("*.md") for found in SECTION.findall(page.read_text()))
    file, row = re.search(r"```python\n(.*?)```", section, re.DOTALL), re.search(r"`(Format\(.*\),)`", section)
    assert file and row
    return file[1], row[1]


def test_the_format_of_the_documentation_is_read(example: tuple[str, str], tmp_path: Path) -> None:
    package, photos = tmp_path / "package/densecl", tmp_path / "photos"
    shutil.copytree(Path(densecl.__file__).parent, package, ignore=shutil.ignore_patterns("__pycache__"))
    file, row = example
    (package / "images/decode/farbfeld.py").write_text(file)
    table = package / "images/decode/table.py"
    text = table.read_text().replace(ROWS, f"from densecl.images.decode import farbfeld\n\n{ROWS}    {row}\n")
    table.write_text(text)

    photos.mkdir()
    values = np.random.default_rng(0).integers(0, 65536, (5, 7, 4), dtype=np.uint16)
    values[..., 3] = 65535
    whole = b"farbfeld" + struct.pack(">II", 7, 5) + values.astype(">u2").tobytes()
    (photos / "a.ff").write_bytes(whole)
    Image.new("RGB", (7, 5)).save(photos / "b.png")
    broken, bomb = tmp_path / "broken.ff", tmp_path / "bomb.ff"
    broken.write_bytes(whole[:-9])
    bomb.write_bytes(b"farbfeld" + struct.pack(">II", 50, 50))

    command = [sys.executable, "-c", PROGRAM, photos, photos / "a.ff", broken, bomb]
    environment = {"PYTHONPATH": str(package.parent), "PATH": "", "HOME": str(tmp_path)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path)
    listed, pixel, tile, damaged, large = done.stdout.splitlines() if not done.returncode else [done.stderr] * 5
    assert listed == "2 a.ff (3, 5, 7) torch.uint16"
    assert pixel == f"{values[2, 3, :3].tolist()} (5, 7)"
    assert tile == f"4 /a.ff#xywh=3,1,4,4 {values[1, 3, :3].tolist()}"
    assert "ValueError" in damaged
    assert "50x50 is more than 1000 pixels" in large
