"""`densecl.embed`: the rows are the backbone's own vectors, in order, whatever is broken, stopped or resumed."""

from __future__ import annotations

import importlib.util
import inspect
import multiprocessing
import os
import shutil
import signal
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open

import densecl
from densecl.cli import main
from densecl.embedding import embed as verb
from densecl.embedding import work
from densecl.embedding.formats import format_of
from densecl.embedding.parts import Chunk
from densecl.errors import UserError
from densecl.model.weights import load_backbone, save_backbone
from densecl.normalization import Normalization
from tests.embedding.photos import SETTINGS, draw

PARAMETERS = inspect.signature(densecl.embed).parameters
BAD = ("02.jpg", "05.jpg")
parquet = pytest.mark.skipif(importlib.util.find_spec("pyarrow") is None, reason="needs pyarrow")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    torch.manual_seed(0)
    backbone = densecl.create_backbone("resnet10t")
    save_backbone(backbone, folder / "backbone.safetensors", Normalization((0.1, 0.2, 0.3), (0.4, 0.5, 0.6)))
    return folder


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eleven photographs, two of them broken, one with a name that is not UTF-8."""
    folder = tmp_path_factory.mktemp("photos")
    for number in range(10):
        draw(folder / f"{number:02d}.jpg", number)
    (folder / "02.jpg").write_bytes((folder / "02.jpg").read_bytes()[:400])
    (folder / "05.jpg").write_text("no image")
    draw(folder / "10.png", 10)
    shutil.copy(folder / "10.png", folder / os.fsdecode(b"11\xff;=.png"))
    return folder


def good(photos: Path) -> list[str]:
    return [str(photos / name) for name in sorted(os.listdir(photos)) if name not in BAD]


@pytest.fixture(scope="module")
def expected(run: Path, photos: Path) -> torch.Tensor:
    """The maps by the plainest code: an image at a time, Pillow's decoder, the paper's normalization."""
    backbone, (mean, std) = load_backbone(run)
    maps = []
    for path in good(photos):
        pixels = torch.from_numpy(np.array(Image.open(path).convert("RGB"))).permute(2, 0, 1)
        small = torch.nn.functional.interpolate(pixels[None], (32, 48), mode="bilinear", antialias=True).float() / 255
        values = (small - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]
        with torch.no_grad():
            maps.append(backbone.eval()(values)[0])
    return torch.stack(maps)


def read(path: Path) -> tuple[list[str], torch.Tensor]:
    stored = format_of(path).read(path)
    assert stored is not None
    names = [os.fsdecode(stored.names.get(index)) for index in range(len(stored.names.ends))]
    return names, torch.cat(list(stored.vectors()))


@pytest.mark.parametrize("suffix", ["safetensors", "npy", pytest.param("parquet", marks=parquet)])
@pytest.mark.parametrize("dense", [False, True])
def test_rows_are_the_backbones_own_vectors(
    suffix: str, dense: bool, run: Path, photos: Path, expected: torch.Tensor, tmp_path: Path
) -> None:
    out = tmp_path / f"vectors.{suffix}"
    result = densecl.embed(run, photos, out, dense=dense, **SETTINGS)
    assert (result.images, result.skipped) == (len(expected), 2)
    names, vectors = read(out)
    assert names == good(photos)
    want = expected.permute(0, 2, 3, 1) if dense else expected.mean(dim=(2, 3))
    torch.testing.assert_close(vectors, want, rtol=1e-3, atol=1e-3)
    skipped = (tmp_path / f"vectors.{suffix}.skipped.csv").read_text().splitlines()
    assert [line.split(",")[0] for line in skipped[1:]] == [str(photos / name) for name in BAD]
    assert not (tmp_path / f"vectors.{suffix}.parts").exists()


def test_each_format_as_its_own_library_reads_it(run: Path, photos: Path, tmp_path: Path) -> None:
    """What docs/embed.md says."""
    for suffix in ("safetensors", "npy"):
        densecl.embed(run, photos, tmp_path / f"v.{suffix}", dense=True, dtype="float16", **SETTINGS)
    with safe_open(tmp_path / "v.safetensors", framework="np") as file:
        vectors, sizes = file.get_tensor("vectors"), file.get_tensor("sizes")
        names = [os.fsdecode(name) for name in file.get_tensor("names").tobytes().split(b"\0")]
        assert file.metadata()["grid"] == "[1, 2]"
    assert vectors.shape == (10, 1, 2, 512) and vectors.dtype == np.float16
    assert names == good(photos)
    assert sizes.tolist() == [[60, 80 + int(os.path.basename(path)[:2])] for path in names[:-1]] + [[60, 90]]
    assert np.array_equal(np.load(tmp_path / "v.npy"), vectors)
    first = (tmp_path / "v.csv").read_text().splitlines()[1]
    assert first == f"0,{photos / '00.jpg'},80,60"


@parquet
def test_parquet_as_arrow_reads_it(run: Path, photos: Path, tmp_path: Path) -> None:
    import pyarrow.parquet  # pyright: ignore[reportMissingImports]

    densecl.embed(run, photos, tmp_path / "v.parquet", dtype="float16", **SETTINGS)
    table = pyarrow.parquet.read_table(tmp_path / "v.parquet")
    assert table.column_names == ["path", "width", "height", "vector"]
    assert table["width"][0].as_py() == 80 and len(table["vector"][0]) == 512
    assert table.schema.metadata[b"image_size"] == b"[48, 32]"


def test_parquet_without_pyarrow(run: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="pip install pyarrow"):
        densecl.embed(run, photos, tmp_path / "v.parquet")


def test_killed_and_resumed_it_is_the_same_file(run: Path, photos: Path, tmp_path: Path) -> None:
    """Killed with SIGKILL in the midst of the second part, in a process of its own."""
    whole, out = tmp_path / "whole.npy", tmp_path / "v.npy"
    densecl.embed(run, photos, whole, **SETTINGS)
    add = work.Parts.add

    def die(self: work.Parts, start: int, stop: int, chunks: Sequence[Chunk]) -> None:
        add(self, start, stop, chunks)
        if len(self.parts) == 2:
            os.kill(os.getpid(), signal.SIGKILL)

    def embed() -> None:
        work.PART_BYTES, work.Parts.add = 1, die
        densecl.embed(run, photos, out, **SETTINGS)

    process = multiprocessing.get_context("fork").Process(target=embed)
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert not out.exists() and len(list((tmp_path / "v.npy.parts").glob("*-*.safetensors"))) == 2
    with pytest.raises(UserError, match="holds 8 of 12 images of an earlier call. Go on with resume=True"):
        densecl.embed(run, photos, out, **SETTINGS)
    with pytest.raises(UserError, match="was begun with vectors of images and not of cells"):
        densecl.embed(run, photos, out, resume=True, dense=True, **SETTINGS)
    densecl.embed(run, photos, out, resume=True, **SETTINGS)
    assert out.read_bytes() == whole.read_bytes()
    assert (tmp_path / "v.csv").read_bytes() == (tmp_path / "whole.csv").read_bytes()


def test_ctrl_c_saves_what_is_done(
    run: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    report = work.Display.step

    def interrupt(display: work.Display, done: int, fraction: float, left: float | None) -> None:
        report(display, done, fraction, left)
        os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(work.Display, "step", interrupt)
    with pytest.raises(KeyboardInterrupt):
        densecl.embed(run, photos, tmp_path / "v.npy", **SETTINGS)
    assert "Stopped by SIGINT after 4 images. What is done is saved." in capsys.readouterr().out
    monkeypatch.setattr(work.Display, "step", report)
    assert densecl.embed(run, photos, tmp_path / "v.npy", resume=True, **SETTINGS).images == 10
    assert "going on after 4 images" in capsys.readouterr().out
    densecl.embed(run, photos, tmp_path / "v.npy", resume=True, **SETTINGS)
    assert "v.npy is complete" in capsys.readouterr().out
    with pytest.raises(UserError, match="exists already and holds vectors of images and not of cells"):
        densecl.embed(run, photos, tmp_path / "v.npy", resume=True, dense=True, **SETTINGS)


def test_a_damaged_part_is_told(run: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(work, "PART_BYTES", 1)
    monkeypatch.setattr(work.Parts, "remove", lambda parts: None)
    out = tmp_path / "v.npy"
    densecl.embed(run, photos, out, **SETTINGS)
    out.unlink()
    part = sorted((tmp_path / "v.npy.parts").glob("*-*.safetensors"))[1]
    part.write_bytes(part.read_bytes()[:-100])
    with pytest.raises(UserError, match=r"000000000004-000000000008.safetensors is damaged. Remove it"):
        densecl.embed(run, photos, out, resume=True, **SETTINGS)
    part.unlink()  # those behind the gap are made anew
    assert densecl.embed(run, photos, out, resume=True, **SETTINGS).images == 10


def test_workers_and_the_size_of_batches_change_nothing(run: Path, photos: Path, tmp_path: Path) -> None:
    densecl.embed(run, photos, tmp_path / "a.npy", **SETTINGS)
    densecl.embed(run, photos, tmp_path / "b.npy", **{**SETTINGS, "workers": 1, "batch_size": 3})
    np.testing.assert_allclose(np.load(tmp_path / "a.npy"), np.load(tmp_path / "b.npy"), rtol=1e-4, atol=1e-4)


def test_images_of_a_data_set_in_python(run: Path, tmp_path: Path) -> None:
    images = [np.full((40, 40, 3), number, np.uint8) for number in (0, 100, 200)]
    assert densecl.embed(run, images, tmp_path / "v.npy", **SETTINGS).images == 3
    assert read(tmp_path / "v.npy")[0] == ["item 0", "item 1", "item 2"]
    with pytest.raises(UserError, match="cannot be used with a data set in Python"):
        densecl.embed(run, images, tmp_path / "w.npy", duplicates=tmp_path / "k.txt", **SETTINGS)


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"out": "v.pkl"}, "must end with .safetensors, .npy or .parquet"),
        ({"out": "there.npy"}, "there.npy exists already. Go on from it with resume=True, choose another"),
        ({"out": "there2.npy"}, "there2.csv exists already"),
        ({"dtype": "float61"}, "takes float32 or float16, not 'float61'. Did you mean"),
        ({"image_size": 0}, "sides must be 1 to 8192"),
        ({"batch_size": 0}, "batch_size must be at least 1"),
        ({"threshold": 2.0}, "threshold must lie above 0"),
        ({"device": "cuda:99"}, "torch sees no such GPU"),
        ({"device": "gpu"}, "device takes auto, cpu, cuda or cuda:1, not 'gpu'"),
        ({"duplicates": "k.csv"}, "a name that ends with .txt"),
        ({"duplicates": "k.txt", "dense": True}, "compares whole images"),
        ({"weights": "nowhere"}, "no such run folder or file of weights"),
        ({"data": "nowhere"}, "no such folder or file"),
    ],
)
def test_mistakes_are_told_before_any_work(
    settings: dict, complaint: str, run: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("there.npy", "there2.csv"):
        Path(name).touch()
    before = sorted(tmp_path.iterdir())
    given = {"weights": run, "data": photos, "out": "v.npy", **SETTINGS, **settings}
    with pytest.raises(UserError, match=complaint):
        densecl.embed(**given)
    assert sorted(tmp_path.iterdir()) == before


def test_no_image_can_be_used(run: Path, tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.jpg").write_text("no image")
    with pytest.raises(UserError, match=r"None of the 1 images can be used. The first: .*a.jpg: not a JPEG"):
        densecl.embed(run, tmp_path / "photos", tmp_path / "v.npy", **SETTINGS)
    assert [path.name for path in tmp_path.iterdir()] == ["photos"]


def test_numbers_too_large_for_half_precision(run: Path, photos: Path, tmp_path: Path) -> None:
    backbone, normalization = load_backbone(run)
    for norm in [module for module in backbone.modules() if isinstance(module, torch.nn.BatchNorm2d)][-3:]:
        norm.bias.data.fill_(1e6)
    save_backbone(backbone, tmp_path / "large.safetensors", normalization)
    with pytest.raises(UserError, match="Give dtype float32"):
        densecl.embed(tmp_path / "large.safetensors", photos, tmp_path / "v.npy", dtype="float16", **SETTINGS)


def test_every_flag_is_a_parameter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    monkeypatch.chdir(tmp_path)
    for folder in ("run", "d"):
        Path(folder).mkdir()
    Path("d/1.png").touch()
    monkeypatch.setattr(verb, "embed", lambda *positional, **named: calls.append((positional, named)))
    line = "embed run --data d --out v.npy --dense --dtype float16 --image-size 64x32 --output-stride 16 --tile 9"
    line += " --backbone b --batch-size 3 --device cpu --workers 1 --max-image-pixels 7 --read-timeout 2 --resume"
    line += " --duplicates k.txt --threshold 0.9"
    assert main(line.split()) == 0
    ((positional, named),) = calls
    assert positional == ("run", "d", "v.npy") and named["image_size"] == (64, 32)
    assert set(named) == {name for name, one in PARAMETERS.items() if one.kind == one.KEYWORD_ONLY}


def test_random_weights_are_the_same_every_time(photos: Path, tmp_path: Path) -> None:
    for name in ("a.npy", "b.npy"):
        densecl.embed("random", photos, tmp_path / name, backbone="resnet10t", **SETTINGS)
    assert (tmp_path / "a.npy").read_bytes() == (tmp_path / "b.npy").read_bytes()
