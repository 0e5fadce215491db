"""The same batches whatever the workers, the rank and the past; and what becomes of bad images."""

import csv
import io
import itertools
import math
import multiprocessing
import os
import signal
import struct
import subprocess
import sys
import textwrap
import threading
import zlib
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch.utils._pytree import tree_leaves

from densecl.errors import UserError
from densecl.images.crops import take_crop
from densecl.images.decode import BadImage
from densecl.images.loader import (
    ATTEMPTS,
    BadRecord,
    Batch,
    CropPairDataset,
    LocalCrops,
    Quarantine,
    Sample,
    StepSampler,
    collate,
    make_loader,
)
from densecl.images.sources import ImageSource, open_source
from densecl.names import from_cell
from densecl.views import Photometrics


def draw_photometrics(rng):
    return Photometrics(
        brightness=torch.tensor(rng.random()),
        contrast=torch.tensor(1.0),
        saturation=torch.tensor(1.0),
        hue=torch.tensor(0.0),
        order=torch.arange(4),
        grayscale=torch.tensor(False),
        blur_sigma=torch.tensor(0.0),
    )


class Patches(ImageSource):
    """Small images that differ, some of which are bad, some of sixteen bits."""

    def __init__(self, size, bad=(), deep=()):
        self.size, self.bad, self.deep = size, frozenset(bad), frozenset(deep)

    def __len__(self):
        return self.size

    def name(self, index):
        return f"patch {index}"

    def fingerprint(self):
        return f"{self.size} patches"

    def read(self, index):
        if index in self.bad:
            raise BadImage(f"reason {index}")
        pixels = np.random.default_rng(index).integers(0, 256, (3, 20 + index % 3, 24), dtype=np.uint8)
        return torch.from_numpy(pixels.astype(np.uint16) * 257 if index in self.deep else pixels)


def pairs_of(source, seed=0, **settings):
    settings = {"image_size": 8, "crop_scale": (0.2, 1.0), "flip_probability": 0.5} | settings
    return CropPairDataset(source, draw_photometrics=draw_photometrics, seed=seed, **settings)


def good(sample):
    assert sample.pair is not None
    return sample.pair


def equal(first, second):
    return all(
        torch.equal(a, b) and a.dtype == b.dtype if isinstance(a, torch.Tensor) else a == b
        for a, b in zip(tree_leaves(first), tree_leaves(second), strict=True)
    )


# --- samples ------------------------------------------------------------------------------------------------------


def test_both_views_are_their_boxes_of_one_image():
    source = Patches(10)
    sample = pairs_of(source)[(3, 7)]
    assert sample.bad == ()
    pair = good(sample)
    assert pair.index == 7
    for view in (pair.first, pair.second):
        assert torch.equal(view.pixels, take_crop(source.read(7), view.box, bool(view.flipped), 8))
    assert not torch.equal(pair.first.box, pair.second.box)
    assert pair.first.photometrics.brightness != pair.second.photometrics.brightness


def test_small_views_come_after_the_pair_and_leave_it_as_it_is():
    source = Patches(4, deep=[2])
    plain, local = pairs_of(source), pairs_of(source, local_crops=LocalCrops(3, 5, (0.05, 0.4), draw_photometrics))
    pair = good(local[(1, 2)])
    assert equal(pair._replace(local=()), good(plain[(1, 2)]))
    assert len({tuple(view.box.tolist()) for view in pair.local}) == 3
    for view in pair.local:
        assert torch.equal(view.pixels, take_crop(source.read(2), view.box, bool(view.flipped), 5))
        x0, y0, x1, y1 = view.box.tolist()
        assert (x1 - x0) * (y1 - y0) < 0.5 * 22 * 24
    batch = collate([local[(0, index)] for index in range(4)]).pairs  # one of them has sixteen bits
    assert [tuple(view.pixels.shape) for view in batch.local] == [(4, 3, 5, 5)] * 3
    assert {view.pixels.dtype for view in (batch.first, batch.second, *batch.local)} == {torch.uint16}
    assert [tuple(view.box.shape) for view in batch.local] == [(4, 4)] * 3


def test_an_image_is_read_once(monkeypatch):
    source, reads = Patches(3), []
    original = source.read
    monkeypatch.setattr(source, "read", lambda index: reads.append(index) or original(index))
    pairs_of(source)[(0, 1)]
    assert reads == [1]


def test_a_sample_follows_from_seed_epoch_and_index_alone():
    source = Patches(10)
    places = [(0, 1), (1, 0), (0, 0), (1, 1)]
    for place in places:
        torch.manual_seed(place[0])
        np.random.seed(place[1])  # noqa: NPY002
        assert equal(pairs_of(source)[place], pairs_of(source)[place])
    boxes = {tuple(good(pairs_of(source, seed)[place]).first.box.tolist()) for seed in (0, 1) for place in places}
    assert len(boxes) == 8


def test_flips_are_as_frequent_as_wanted():
    for probability in (0.0, 0.25, 1.0):
        dataset = pairs_of(Patches(10), flip_probability=probability)
        flips = [bool(good(dataset[(epoch, index)]).first.flipped) for epoch in range(20) for index in range(10)]
        assert abs(np.mean(flips) - probability) <= 4 * (probability * (1 - probability) / 200) ** 0.5


def test_a_bad_image_is_replaced_by_another_known_in_advance():
    dataset = pairs_of(Patches(10, bad=[4]))
    replacements = set()
    for epoch in range(8):
        sample = dataset[(epoch, 4)]
        assert sample.bad[0] == BadRecord("patch 4", "reason 4", 0)
        assert good(sample).index != 4
        assert equal(dataset[(epoch, 4)], sample)
        replacements.add(int(good(sample).index))
    assert len(replacements) > 1


def test_attempts_end():
    pair, bad = pairs_of(Patches(10, bad=range(10)))[(0, 3)]
    assert pair is None
    assert [record.attempt for record in bad] == list(range(ATTEMPTS + 1))


# --- order --------------------------------------------------------------------------------------------------------


@given(size=st.integers(1, 60), batch=st.integers(1, 60), seed=st.integers(0, 2**40))
def test_every_image_is_used_once_an_epoch(size, batch, seed):
    if batch > size:
        with pytest.raises(UserError, match=f"batch size {batch} is larger than the data set \\({size} images\\)"):
            StepSampler(size, batch, seed=seed)
        return
    sampler = StepSampler(size, batch, seed=seed)
    assert sampler.steps_per_epoch * batch == size
    batches = list(itertools.islice(sampler, math.ceil(3 * sampler.steps_per_epoch)))
    assert {len(places) for places in batches} == {batch}
    places = list(itertools.chain(*batches))[: 3 * size]
    for epoch in range(3):
        assert sorted(places[epoch * size : (epoch + 1) * size]) == [(epoch, index) for index in range(size)]


def test_orders_differ_by_epoch_and_seed():
    def order(seed, epoch):
        return [index for _, index in next(iter(StepSampler(50, 50, seed=seed, start_step=epoch)))]

    orders = [order(seed, epoch) for seed in (0, 1) for epoch in (0, 1, 2)]
    assert len(set(map(tuple, orders))) == 6
    assert order(1, 2) == orders[-1]


@given(start=st.integers(0, 40), length=st.integers(0, 20), world=st.sampled_from([1, 2, 3]))
def test_resume_and_ranks(start, length, world):
    whole = list(StepSampler(20, 6, seed=5, stop_step=start + length))
    parts = [
        StepSampler(20, 6, seed=5, start_step=start, stop_step=start + length, rank=rank, world_size=world)
        for rank in range(world)
    ]
    assert [len(part) for part in parts] == [length] * world
    assert [sum(shares, []) for shares in zip(*parts, strict=True)] == whole[start:]  # noqa: RUF017


def test_a_late_start_costs_nothing():
    sampler = StepSampler(1000, 10, seed=0, start_step=10**12)
    assert next(iter(sampler))[0][0] == 10**10
    with pytest.raises(TypeError):
        len(sampler)


def test_batches_that_cannot_be_shared():
    with pytest.raises(UserError, match="batch size 7 cannot be shared equally by 2"):
        StepSampler(10, 7, seed=0, world_size=2)
    with pytest.raises(UserError, match="batch size 0"):
        StepSampler(10, 0, seed=0)


# --- batches ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [1, 2])
def test_workers_change_nothing(workers):
    dataset = pairs_of(Patches(30, bad=[3, 17]))
    sampler = StepSampler(30, 8, seed=0, stop_step=9)
    torch.manual_seed(0)
    alone = list(make_loader(dataset, sampler, workers=0))
    state = torch.get_rng_state()
    torch.manual_seed(0)
    helped = list(make_loader(dataset, sampler, workers=workers))
    assert len(alone) == len(helped) == 9
    assert all(map(equal, alone, helped))
    assert any(batch.bad for batch in alone)
    assert torch.equal(state, torch.get_rng_state())
    torch.manual_seed(0)
    assert torch.equal(state, torch.get_rng_state())  # the global stream was not touched


def test_a_resumed_loader_gives_the_same_batches():
    dataset = pairs_of(Patches(30, bad=[3]))
    whole = list(make_loader(dataset, StepSampler(30, 8, seed=0, stop_step=9), workers=0))
    rest = list(make_loader(dataset, StepSampler(30, 8, seed=0, start_step=5, stop_step=9), workers=2))
    assert all(map(equal, whole[5:], rest))


def test_a_batch_has_the_shapes_of_its_types():
    batch = next(iter(make_loader(pairs_of(Patches(30)), StepSampler(30, 8, seed=0), workers=0)))
    assert batch.pairs.first.pixels.shape == (8, 3, 8, 8)
    assert batch.pairs.first.pixels.dtype == torch.uint8
    assert batch.pairs.first.box.shape == (8, 4)
    assert batch.pairs.first.flipped.dtype == torch.bool
    assert batch.pairs.second.photometrics.order.shape == (8, 4)
    assert batch.pairs.index.dtype == torch.int64


def test_eight_and_sixteen_bits_in_one_batch():
    shallow, deep = pairs_of(Patches(4)), pairs_of(Patches(4, deep=[2]))
    batch = collate([deep[(0, index)] for index in range(4)])
    assert batch.pairs.second.pixels.dtype == torch.uint16
    for index in range(4):
        expected = good(shallow[(0, index)]).second.pixels.int() * 257
        gap = (batch.pairs.second.pixels[index].int() - expected).abs().max()
        assert gap == 0 if index != 2 else gap <= 257


def test_what_cannot_be_replaced_is_left_out():
    dataset = pairs_of(Patches(4, bad=range(4)))
    batch = collate([dataset[(0, index)] for index in range(3)])
    assert len(batch.pairs.index) == len(batch.pairs.first.pixels) == 0
    assert len(batch.bad) == 3 * (ATTEMPTS + 1)
    usable = pairs_of(Patches(4))[(0, 0)]
    assert len(collate([usable, Sample(None, ()), usable]).pairs.index) == 2


# --- quarantine ---------------------------------------------------------------------------------------------------


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
        f"6 of 100 images cannot be used (5% is the limit): see {path}. The first: patch 1: reason, 1"
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


def test_workers_leave_signals_to_the_main_process():
    # Ctrl-C and the end of a cluster job reach the whole process group.
    code = """
        import functools, os, signal, subprocess, sys, time
        import numpy as np, torch
        from densecl.images.loader import CropPairDataset, StepSampler, make_loader
        from densecl.images.sources import open_source
        from densecl.views import Photometrics
        def draw(rng):
            values = [torch.tensor(1.0)] * 4 + [torch.arange(4), torch.tensor(False), torch.tensor(0.0)]
            return Photometrics(*values)
        class Items(torch.utils.data.Dataset):
            def __len__(self): return 8
            def __getitem__(self, index):
                time.sleep(0.01)
                return np.zeros((9, 9, 3), np.uint8)
        if __name__ == "__main__":
            caught = []
            for number in (signal.SIGINT, signal.SIGTERM):
                signal.signal(number, lambda number, frame: caught.append(number))
            dataset = CropPairDataset(open_source(Items()), image_size=4, crop_scale=(0.2, 1.0), flip_probability=0.5,
                                      draw_photometrics=draw, seed=0)
            for step, batch in enumerate(make_loader(dataset, StepSampler(8, 2, seed=0, stop_step=40), workers=2)):
                if step in (10, 20):
                    number = "INT" if step == 10 else "TERM"
                    subprocess.run(["/bin/sh", "-c", f"trap : {number}; kill -{number} -$PPID"])
            print(step, len(caught))
    """
    result = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, start_new_session=True
    )
    assert (result.stdout, result.stderr, result.returncode) == ("39 2\n", "", 0)


def test_a_program_ends_with_a_loader_left_over():
    code = """
        import numpy as np, torch
        from densecl.images.loader import StepSampler, make_loader
        from tests.images.test_loader import Patches, pairs_of
        batches = iter(make_loader(pairs_of(Patches(8)), StepSampler(8, 2, seed=0), workers=2))
        print(len(next(batches).pairs.index))
        raise KeyError("its traceback keeps them alive")
    """
    result = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, timeout=60)
    assert (result.stdout, result.returncode) == ("2\n", 1)
    assert "KeyError" in result.stderr


def test_workers_end_with_a_program_that_is_killed():
    code = """
        import os, signal, time
        import numpy as np, torch
        from densecl.images.loader import StepSampler, make_loader
        from tests.images.test_loader import Patches, pairs_of
        pairs = pairs_of(Patches(64), image_size=48)
        batches = iter(make_loader(pairs, StepSampler(64, 8, seed=0, stop_step=40), workers=2))
        next(batches)
        time.sleep(1)  # until the pipe is full: 55 kB a batch
        os.kill(os.getpid(), signal.SIGKILL)
    """
    command = [sys.executable, "-c", textwrap.dedent(code)]
    # The workers hold the ends of these pipes that are written to, and this waits until they are closed.
    assert subprocess.run(command, capture_output=True, timeout=60).returncode == -signal.SIGKILL


def test_small_tensors_travel_by_value():
    source = Patches(30)
    local = LocalCrops(2, 8, (0.2, 0.5), draw_photometrics)
    batch = collate([pairs_of(source, image_size=200, local_crops=local)[0, index] for index in range(3)])
    function, (pairs, bad) = batch.__reduce__()
    leaves = [*pairs.first, *pairs.first.photometrics, *pairs.second, *pairs.second.photometrics, *pairs.local[0]]
    assert [leaf.nbytes for leaf in leaves if isinstance(leaf, torch.Tensor)] == [3 * 3 * 200 * 200] * 2
    again = function(pairs, bad)
    assert type(again) is Batch and type(again.pairs.local) is type(batch.pairs.local)
    for crop, other in zip((*again.pairs[:2], *again.pairs.local), (*batch.pairs[:2], *batch.pairs.local), strict=True):
        for one, two in zip((*crop[:3], *crop.photometrics), (*other[:3], *other.photometrics), strict=True):
            assert one.dtype == two.dtype and torch.equal(one, two)
    assert torch.equal(again.pairs.index, batch.pairs.index)


# --- workers that are stuck -----------------------------------------------------------------------------------------


class Stuck(Patches):
    """The third image is on a share that no longer answers; or the process that reads it is stopped."""

    def __init__(self, stopped):
        super().__init__(8)
        self.stopped = stopped

    def read(self, index):
        if index == 2 and self.stopped:
            os.kill(os.getpid(), signal.SIGSTOP)
        elif index == 2:
            threading.Event().wait(60)
        return super().read(index)


@pytest.mark.parametrize("stopped", [False, True])
def test_a_worker_that_does_not_go_on_is_waited_for_only_so_long(stopped):
    loader = make_loader(pairs_of(Stuck(stopped)), StepSampler(8, 4, seed=0), workers=2, read_timeout=0.3)
    children = set(multiprocessing.active_children())
    with pytest.raises(UserError, match=r"No image was read for 0.3 s: process \d+ at patch 2 does not go on"):
        list(itertools.islice(loader, 3))
    assert not set(multiprocessing.active_children()) - children


def test_a_worker_that_was_stopped_in_the_midst_of_a_batch():
    """A batch that is larger than the pipe: half of it lies there, and a read of the other half has no end."""
    loader = make_loader(pairs_of(Patches(64), image_size=64), StepSampler(64, 4, seed=0), workers=1, read_timeout=0.5)
    batches = iter(loader)
    next(batches)
    (worker,) = [child for child in multiprocessing.active_children() if child.pid == loader.marks[0]]
    read, written = loader.marks[1], -1
    while read != written:  # until the pipe is full
        written = read
        threading.Event().wait(0.2)
        read = loader.marks[1]
    os.kill(worker.pid, signal.SIGSTOP)
    with pytest.raises(UserError, match=r"No image was read for 0.5 s"):
        list(batches)
    assert not worker.is_alive()


def test_a_slow_worker_is_waited_for(monkeypatch):
    """A batch takes longer than the limit, an image does not."""
    source = Patches(8)
    read = source.read
    monkeypatch.setattr(source, "read", lambda index: threading.Event().wait(0.1) or read(index))
    loader = make_loader(pairs_of(source), StepSampler(8, 8, seed=0, stop_step=1), workers=1, read_timeout=0.4)
    (batch,) = loader
    assert len(batch.pairs.index) == 8
