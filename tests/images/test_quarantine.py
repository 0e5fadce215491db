"""What becomes of bad images, and when they stop a run."""

import csv
import io
import os
import struct
import zlib
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image

from densecl.errors import UserError
from densecl.images.loader import make_loader
from densecl.images.pairs import BadRecord
from densecl.images.quarantine import Quarantine
from densecl.images.sampler import StepSampler
from densecl.images.sources import open_source
from densecl.names import from_cell
from tests.images.patches import Patches, pairs_of


def rows(path):
    with path.open(newline="", encoding="utf-8", errors="surrogateescape") as file:
        return list(csv.reader(file))


def bad(*numbers, attempt=0):
    return [BadRecord(f"patch {number}", f"reason, {number}", attempt) for number in numbers]


def test_rows_are_written_once_and_as_they_come(tmp_path):
    path = tmp_path / "quarantine.csv"
    quarantine = Quarantine(path, size=1000)
    quarantine.record([])
    assert not path.exists()
    quarantine.record(bad(3, 1, 3))
    assert rows(path) == [["path", "reason"], ["patch 3", "reason, 3"], ["patch 1", "reason, 1"]]
    quarantine.record(bad(1))
    quarantine.record(bad(2))
    assert [row[0] for row in rows(path)] == ["path", "patch 3", "patch 1", "patch 2"]
    resumed = Quarantine(path, size=1000)
    resumed.record(bad(2, 4))
    assert [row[0] for row in rows(path)] == ["path", "patch 3", "patch 1", "patch 2", "patch 4"]


def test_names_of_any_bytes_come_back(tmp_path):
    path = tmp_path / "quarantine.csv"
    odd = [
        os.fsdecode(b"caf\xe9.jpg"),
        "日本.jpg",
        'a"b,c.jpg',
        "new\nline.jpg",
        "\x1b[31m.jpg",
        "a\\b",
        "=1+1",
        "-a;@b",
    ]
    for _ in range(2):
        Quarantine(path, size=1000).record([BadRecord(name, "broken", 0) for name in odd])
    assert [[from_cell(cell) for cell in row] for row in rows(path)[1:]] == [[name, "broken"] for name in odd]
    text = path.read_text()  # is UTF-8
    assert "\x1b" not in text and len(text.splitlines()) == 1 + len(odd)
    assert not any(cell.startswith(tuple("=+-@\t\r")) for row in csv.reader(io.StringIO(text)) for cell in row)


def test_names_in_the_message_are_safe_and_short(tmp_path):
    with pytest.raises(UserError) as error:
        Quarantine(tmp_path / "q.csv", size=1).record([BadRecord("a\x1b]0;\n" + "b" * 10**6, "not\u202ean image", 0)])
    assert str(error.value).isprintable() and len(str(error.value)) < 1000


def test_half_a_row_is_removed(tmp_path):
    path = tmp_path / "quarantine.csv"
    Quarantine(path, size=1000).record(bad(1, 2))
    whole = path.read_bytes()
    path.write_bytes(whole[:-5])
    quarantine = Quarantine(path, size=1000)
    assert [row[0] for row in rows(path)] == ["path", "patch 1"]
    quarantine.record(bad(2))
    assert path.read_bytes() == whole


def test_one_row_costs_one_row(tmp_path):
    path = tmp_path / "quarantine.csv"
    quarantine = Quarantine(path, size=10**6)
    quarantine.record(bad(*range(1000)))
    place = path.stat().st_ino
    quarantine.record(bad(1000))
    assert path.stat().st_ino == place  # appended, not rewritten


def test_processes_share_the_file(tmp_path):
    path = tmp_path / "quarantine.csv"

    def process(number):  # threads, but each with a lock and a file of its own, as processes have
        quarantine = Quarantine(path, size=100_000)
        for place in range(60):
            quarantine.record(bad((number * 7 + place) % 60))

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(process, range(4)))
    assert sorted(rows(path)[1:]) == sorted([record.name, record.reason] for record in bad(*range(60)))


def test_more_than_five_percent_stop_the_run(tmp_path):
    path = tmp_path / "quarantine.csv"
    quarantine = Quarantine(path, size=100)
    for _ in range(3):  # epochs
        quarantine.record(bad(1, 2, 3, 4, 5))
    with pytest.raises(UserError) as error:
        quarantine.record(bad(6))
    assert str(error.value) == (
        f"6 of 100 images cannot be used (5% is the limit): see {path}. The first: patch 1: reason, 1."
        " To do without them: max_bad_images=0.2"
    )
    assert len(rows(path)) == 7


def test_what_other_processes_found_counts(tmp_path):
    path = tmp_path / "quarantine.csv"
    first, second = Quarantine(path, size=100), Quarantine(path, size=100)
    first.record(bad(1, 2, 3))
    with pytest.raises(UserError, match="6 of 100"):
        second.record(bad(4, 5, 6))


def test_what_was_found_before_a_resume_counts_when_it_is_met_again(tmp_path):
    path = tmp_path / "quarantine.csv"
    with pytest.raises(UserError):
        Quarantine(path, size=100).record(bad(*range(6)))
    resumed = Quarantine(path, size=100)  # the user has repaired 1 to 5
    resumed.record(bad(0))


@pytest.mark.parametrize("workers", [0, 2])
def test_only_bad_images_stop_the_run_at_once(tmp_path, workers):
    source = Patches(100_000, bad=range(100_000))
    batch = next(iter(make_loader(pairs_of(source), StepSampler(len(source), 4, seed=0), workers=workers)))
    with pytest.raises(
        UserError,
        match=r"its 16 replacements .* of 100000 so far\): see .*quarantine.csv. The first: patch",
    ):
        Quarantine(tmp_path / "quarantine.csv", len(source)).record(batch.bad)


def jpeg(number):
    pixels = np.random.default_rng(number).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG")
    return file.getvalue()


def test_a_thousand_images_thirty_of_them_corrupt(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    header = b"IHDR" + struct.pack(">IIBBBBB", 50_000, 50_000, 8, 2, 0, 0, 0)
    bomb = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header))
    bomb += struct.pack(">I", 0) + b"IDAT" + struct.pack(">I", zlib.crc32(b"IDAT"))
    for number in range(1000):
        data = jpeg(number)
        if number < 30:
            half = data[: len(data) * 3 // 4]
            data = [half, b"", b"only text\n", half.ljust(len(data), b"\0"), bomb][number % 5]
        elif number == 30:
            file = io.BytesIO()
            Image.new("RGB", (24, 24), "red").save(file, "PNG")
            data = file.getvalue()
        (folder / f"{number:04}.jpg").write_bytes(data)
    source = open_source(folder)
    path = tmp_path / "quarantine.csv"
    quarantine = Quarantine(path, len(source))
    used = set()
    for batch in make_loader(pairs_of(source), StepSampler(1000, 50, seed=0, stop_step=20), workers=2):
        quarantine.record(batch.bad)
        used.update(batch.pairs.index.tolist())
    assert sorted(row[0] for row in rows(path)[1:]) == [str(folder / f"{number:04}.jpg") for number in range(30)]
    reasons = {row[0][-8:-4]: row[1] for row in rows(path)[1:]}
    expected = ["truncated", "empty", "not a JPEG", "truncated", "decompression bomb"]
    assert [n for n in range(30) if expected[n % 5] not in reasons[f"{n:04}"]] == [], reasons
    assert used == set(range(30, 1000))  # the PNG named .jpg among them


def test_how_many_images_may_be_bad_can_be_chosen(tmp_path):
    bad = [BadRecord(f"{number}.png", "no image", 0) for number in range(3)]
    with pytest.raises(UserError, match=r"2 of 20 images cannot be used \(5% is the limit\).* max_bad_images=0.2$"):
        Quarantine(tmp_path / "a.csv", 20).record(bad[:2])
    quarantine = Quarantine(tmp_path / "b.csv", 20, most=0.1)
    quarantine.record(bad[:2])
    with pytest.raises(UserError, match=r"10% is the limit"):
        quarantine.record(bad)
