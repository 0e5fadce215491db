"""Groups against the same rule written as one loop over float64, and the list that `pretrain` takes."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console

import densecl
from densecl.embedding import duplicates
from densecl.embedding.duplicates import Duplicates, find_duplicates, tell_duplicates, write_kept
from densecl.embedding.formats import Stored
from densecl.embedding.plan import Plan
from densecl.images.paths import Strings
from densecl.images.sources import open_source
from tests.embedding.photos import SETTINGS, draw

CPU = torch.device("cpu")


def stored(vectors: torch.Tensor, names: list[str] | None = None) -> Stored:
    plan = Plan(
        content="images",
        dtype="float32",
        dim=vectors.shape[1],
        grid=(1, 1),
        image_size=(8, 8),
        stride=8,
        backbone="b",
        weights="w",
        mean=(0.0,),
        std=(1.0,),
        digest="",
        data="",
        tile=None,
        images=len(vectors),
        fingerprint="",
    )
    packed = Strings.pack(os.fsencode(name) for name in names or map(str, range(len(vectors))))
    return Stored(plan, packed, lambda: iter(vectors.split(7)))


def by_loop(vectors: torch.Tensor, threshold: float) -> list[int]:
    """Each image in order: the most similar kept one if it is near enough, or else itself."""
    values = vectors.double().numpy()
    values = values - values.mean(axis=0)
    units = values / np.linalg.norm(values, axis=1, keepdims=True)
    kept: list[int] = []
    leaders = []
    for image, unit in enumerate(units):
        cosines = [float(unit @ units[other]) for other in kept]
        if cosines and max(cosines) >= threshold:
            leaders.append(kept[int(np.argmax(cosines))])
        else:
            kept.append(image)
            leaders.append(image)
    return leaders


@pytest.mark.parametrize("block", [3, 5, 100])
def test_groups_are_those_of_a_plain_loop(block: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(duplicates, "BLOCK", block)
    generator = torch.Generator().manual_seed(0)
    scenes = torch.randn(9, 16, generator=generator)
    vectors = 5 + scenes[torch.randint(9, (40,), generator=generator)] + 0.3 * torch.randn(40, 16, generator=generator)
    found = find_duplicates(stored(vectors), 0.9, CPU, tmp_path)
    assert found.leader.tolist() == by_loop(vectors, 0.9)
    assert 9 <= found.kept < 40
    centered = (vectors - vectors.mean(dim=0)).double()
    cosine = torch.cosine_similarity(centered, centered[torch.from_numpy(found.leader)])
    np.testing.assert_allclose(found.cosine, cosine, atol=1e-4)
    assert not list(tmp_path.iterdir())


def test_a_slow_video_is_thinned_out_not_cut_to_its_first_frame(tmp_path: Path) -> None:
    turn = torch.linspace(0, 2 * torch.pi, 101)[:-1]
    found = find_duplicates(stored(torch.stack([turn.cos(), turn.sin()], dim=1)), 0.95, CPU, tmp_path)
    # A cosine of 0.95 is 18 degrees, and a frame turns by 3.6: six frames a group. The last ones are like the first.
    assert np.flatnonzero(found.leader == np.arange(100)).tolist() == list(range(0, 96, 6))


@pytest.mark.parametrize("count", [1, 2, 30])
def test_images_that_are_all_the_same(count: int, tmp_path: Path) -> None:
    found = find_duplicates(stored(torch.full((count, 4), 3.0)), 0.95, CPU, tmp_path)
    assert (found.kept, found.groups) == (1, int(count > 1))
    assert find_duplicates(stored(torch.zeros(count, 4)), 0.95, CPU, tmp_path).kept == 1


def test_what_is_kept_is_a_source_of_images(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    for number, name in enumerate((b"a.jpg", b"b \xff.jpg", b"#c.jpg", b"line\nbreak.jpg")):
        draw(photos / os.fsdecode(name), number)
    shutil.copy(photos / "a.jpg", photos / "z = 1.jpg")
    out, kept = tmp_path / "v.safetensors", tmp_path / "kept.txt"
    result = densecl.embed("random", photos, out, backbone="resnet10t", duplicates=kept, **SETTINGS)
    assert (result.groups, result.kept) == (1, 4)
    source = open_source(kept)
    assert {os.path.basename(source.name(index)) for index in range(len(source))} == {"a.jpg", "b \udcff.jpg", "#c.jpg"}
    assert "#   like the one above, 1.000: " in kept.read_text(errors="surrogateescape")
    told = capsys.readouterr().out
    assert "1 group of near-duplicates (cosine from 0.9): 4 of 5 images stay" in told
    assert "warning: 1 names cannot stand in a list" in told
    # Anew from the file that is there, with another threshold.
    other = tmp_path / "other.txt"
    again = densecl.embed(
        "random", photos, out, backbone="resnet10t", duplicates=other, threshold=1e-9, resume=True, **SETTINGS
    )
    assert again.images == 5 and again.kept is not None and again.kept <= 4


def test_hostile_names_are_shown_as_text(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = Duplicates(np.array([0, 0]), np.array([1, 0.99], np.float32))
    data = stored(torch.ones(2, 2), ["/photos/\x1b[31m.jpg", "/photos/\n/etc/passwd"])
    left_out = write_kept(tmp_path / "k.txt", data, found)
    tell_duplicates(data, found, left_out, 0.9, tmp_path / "k.txt", Console())
    assert "\x1b" not in capsys.readouterr().out
    assert (tmp_path / "k.txt").read_text().splitlines()[2] == "#   like the one above, 0.990: /photos/\\n/etc/passwd"
