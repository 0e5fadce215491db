"""What is kept of a run for its report."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors
import safetensors.torch
import torch
import torch.nn.functional as F

from densecl.augment import augment
from densecl.model.correspondence import correspondence
from densecl.normalization import Normalization
from densecl.training.fixed_pairs import FirstPairs
from densecl.training.moments import DIMS, PAIRS, PICTURE, SIDE, Moments, shortened
from densecl.training.recorder import Recorder
from densecl.training.run import pretrain
from tests.reporting.runs import GRAY, first_pairs


def test_a_run_keeps_its_moments_and_a_resumed_one_the_same(
    tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = tiny(steps=4, checkpoint_every=2)
    whole = pretrain(recipe, tmp_path / "whole").out / "moments"
    files = {path.name: path.read_bytes() for path in whole.iterdir()}
    assert sorted(files) == [*(f"{step:09}.safetensors" for step in range(5)), "views.safetensors"]

    def killed(self: Recorder, trainer: Any, module: Any, *others: Any) -> None:
        if module.step == 4:  # the last checkpoint is that of step 2
            raise RuntimeError("killed")
        after_batch(self, trainer, module, *others)

    after_batch = Recorder.on_train_batch_end
    with monkeypatch.context() as patch:
        patch.setattr(Recorder, "on_train_batch_end", killed)
        with pytest.raises(RuntimeError, match="killed"):
            pretrain(recipe, tmp_path / "parts")
    parts = tmp_path / "parts" / "moments"
    (parts / "000000003.safetensors").write_bytes(b"of steps that no checkpoint knows")
    (parts / "000000004.safetensors").write_bytes(b"the same")
    pretrain(recipe, tmp_path / "parts", resume=True)
    assert {path.name: path.read_bytes() for path in parts.iterdir()} == files

    with safetensors.safe_open(whole / "views.safetensors", framework="pt") as views:
        assert len(json.loads(views.metadata()["names"])) == PAIRS
        assert json.loads(views.metadata()["names"])[0].endswith(".png")
        assert views.get_tensor("after").shape == (2 * PAIRS, 3, 32, 32)
        assert not torch.equal(views.get_tensor("after"), views.get_tensor("before"))  # the colors have changed
        for pair in range(PAIRS):  # the image that the views were cut out of
            height, width = views.get_tensor(f"sides_{pair}").tolist()
            box = views.get_tensor("box")[[pair, PAIRS + pair]]
            assert box[:, 2].max() <= width and box[:, 3].max() <= height
            assert views.get_tensor(f"whole_{pair}").shape[1:] == (height, width)  # these are small
    first, last = (safetensors.torch.load(files[f"{step:09}.safetensors"])["vectors"] for step in (0, 4))
    assert first.shape == last.shape == (2 * PAIRS, DIMS, 4, 4)
    assert not torch.equal(first, last)


def test_short_vectors_have_the_same_similarities() -> None:
    for channels in (24, 300):
        directions = torch.randn(20, channels, generator=torch.Generator().manual_seed(1))
        features = (torch.randn(4, 5, 6, 20, generator=torch.Generator().manual_seed(2)) @ directions).movedim(-1, 1)
        before = torch.random.get_rng_state()
        short = shortened(features)
        assert torch.equal(torch.random.get_rng_state(), before)
        assert short.shape == (4, min(channels, DIMS), 5, 6)
        exact, kept = (F.normalize(each, dim=1).movedim(1, -1).flatten(0, 2) for each in (features, short))
        torch.testing.assert_close(kept @ kept.mT, exact @ exact.mT, atol=1e-4, rtol=0)
        assert torch.equal(shortened(features), short)


def test_large_views_are_bounded_and_match_by_the_features(tmp_path: Path) -> None:
    seen = first_pairs(8, cells=40, channels=200)
    moments = Moments(tmp_path / "moments", GRAY, str)
    moments.keep(7, seen)
    path = tmp_path / "moments" / "000000007.safetensors"
    assert path.stat().st_size < 2_000_000
    kept = safetensors.torch.load_file(path)
    assert kept["vectors"].shape == (2 * PAIRS, DIMS, SIDE, SIDE)
    views = [type(each)(*(some[:PAIRS] for some in each)) for each in (seen.first, seen.second)]
    pooled = [F.adaptive_avg_pool2d(each[:PAIRS], SIDE) for each in (seen.query_features, seen.key_features)]
    assert torch.equal(kept["match"].long(), correspondence(*pooled, *views).match)


def test_what_cannot_be_drawn_or_written_ends_no_run(tmp_path: Path) -> None:
    moments = Moments(tmp_path / "moments", GRAY, str)
    moments.keep(0, None)
    seen = first_pairs()
    moments.keep(0, seen._replace(key_features=seen.key_features.log()))  # nan
    assert not (tmp_path / "moments").exists()
    (tmp_path / "moments").write_text("a file stands in the way")
    moments.keep(0, seen)
    assert (tmp_path / "moments").read_text() == "a file stands in the way"


def test_pictures_of_sixteen_bits_and_many_channels(tmp_path: Path) -> None:
    seen = first_pairs(2)
    dark = torch.from_numpy(np.linspace(1000, 1600, 2 * 5 * 300 * 300).astype(np.uint16).reshape(2, 5, 300, 300))
    crop = seen.pair.first._replace(pixels=dark)
    normalization = Normalization((0.02,) * 5, (0.01,) * 5)
    views = augment(crop, normalization)
    pair = seen.pair._replace(first=crop, second=crop)
    pairs = FirstPairs(pair, views, views, seen.query_features, seen.key_features)
    Moments(tmp_path, normalization, str).keep(0, pairs)
    kept = safetensors.torch.load_file(tmp_path / "views.safetensors")
    for name in ("before", "after"):
        assert kept[name].shape == (4, 3, PICTURE, PICTURE) and kept[name].dtype == torch.uint8
        assert kept[name].max() - kept[name].min() > 200  # a narrow band would be black
