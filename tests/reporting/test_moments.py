"""Moments, as the page gets them."""

from __future__ import annotations

import base64
import struct
from pathlib import Path

import numpy as np
import safetensors.numpy
import torch

from densecl.reporting.moments import MOST_DIMS, MOST_MOMENTS, colors, read_moments
from densecl.training.moments import PICTURE, Moments
from tests.reporting.runs import GRAY, first_pairs, scene


def test_what_the_page_gets_is_what_was_kept(tmp_path: Path) -> None:
    moments = Moments(tmp_path, GRAY, lambda index: f"image {index}")
    for step in range(20):
        moments.keep(step, first_pairs(noise=2.0 if step == 0 else 0.01))
    found = read_moments(tmp_path)
    assert found is not None
    assert found["names"] == ["image 0", "image 1", "image 2"]
    assert found["grid"] == [6, 6]
    assert len(found["views"]) == 6
    steps = [moment["step"] for moment in found["moments"]]
    assert len(steps) == MOST_MOMENTS and steps[0] == 0 and steps[-1] == 19
    first, last = found["moments"][0], found["moments"][-1]
    assert first["accuracy"] < last["accuracy"] == 1.0
    # The views show the same region. A cell is wider than high, so that those above and below are near enough, too.
    assert np.isclose(last["chance"], (2 * 2 + 4 * 3) / 6 / 36)

    # The second views are mirrored: each cell's match lies in the same row, in the opposite column.
    match = np.frombuffer(base64.b64decode(last["match"]), "<u2").reshape(3, 6, 6)
    assert (match == np.arange(36).reshape(6, 6)[:, ::-1]).all()
    assert set(base64.b64decode(last["hit"])) == {1}
    vectors = np.frombuffer(base64.b64decode(last["vectors"]), np.int8).reshape(6, 36, found["dims"]).astype(float)
    vectors /= np.linalg.norm(vectors, axis=2, keepdims=True)
    mirrored = np.arange(36).reshape(6, 6)[:, ::-1].ravel()
    assert ((vectors[0] * vectors[3][mirrored]).sum(axis=1) > 0.99).all()
    assert found["dims"] == min(16, MOST_DIMS)


def test_the_image_of_a_pair_is_kept_small_and_a_strangers_is_left_out(tmp_path: Path) -> None:
    images = [scene(0), torch.zeros(3, 1000, 3000, dtype=torch.uint8), torch.zeros(1, 100, 160, dtype=torch.uint8)]
    Moments(tmp_path, GRAY, str, images.__getitem__).keep(0, first_pairs())
    found = read_moments(tmp_path)
    assert found is not None
    assert [(one["width"], one["height"]) for one in found["wholes"]] == [(160, 100), (3000, 1000), (160, 100)]
    kept = safetensors.numpy.load_file(tmp_path / "views.safetensors")
    assert kept["whole_1"].shape == (3, PICTURE // 3, PICTURE) and kept["whole_2"].shape == (1, 100, 160)
    assert kept["whole_0"][0, 0, -1] > kept["whole_0"][0, 0, 0]

    wrong = {
        "sides_0": np.array([50, 60], np.float32),  # the views lie outside
        "sides_1": np.array([np.inf, 1], np.float32),
        "whole_2": np.zeros((3, 9000, 2), np.uint8),
    }
    safetensors.numpy.save_file({**kept, **wrong}, tmp_path / "views.safetensors")
    found = read_moments(tmp_path)
    assert found is not None and found["wholes"] == [None, None, None]


def test_colors_do_not_jump_where_only_the_directions_do() -> None:
    rng = np.random.default_rng(0)
    before = rng.normal(size=(4, 25, 8)) * np.array([5, 4, 3, 1, 0.5, 0.5, 0.2, 0.2])
    turn = np.linalg.qr(rng.normal(size=(8, 8)))[0]
    first, second = colors([before.astype(np.float32), (before @ turn).astype(np.float32)])
    assert np.abs(first.astype(int) - second.astype(int)).max() <= 1
    assert first.std(axis=(0, 1)).min() > 30  # and they are no gray

    (same,) = colors([np.ones((2, 9, 4), np.float32)])  # a network that has collapsed
    assert (same == same[0, 0]).all()


def test_files_of_strangers_are_left_out(tmp_path: Path) -> None:
    assert read_moments(tmp_path / "nowhere") is None
    moments = Moments(tmp_path, GRAY, str)
    moments.keep(0, first_pairs())
    whole = safetensors.numpy.load_file(tmp_path / "000000000.safetensors")
    wrong = {
        1: {**whole, "match": np.full_like(whole["match"], 36)},  # no such cell
        2: {**whole, "vectors": np.full_like(whole["vectors"], np.nan)},
        3: {**whole, "vectors": np.zeros((6, 4, 4000, 1), np.float16)},
        4: {"match": whole["match"]},
        5: {**whole, "vectors": whole["vectors"].astype(np.float32)},
        6: {**whole, "match": whole["match"][:1]},
    }
    for step, tensors in wrong.items():
        safetensors.numpy.save_file(tensors, tmp_path / f"{step:09}.safetensors")
    (tmp_path / "000000008.safetensors").write_bytes(struct.pack("<Q", 2**60) + b"{}")
    (tmp_path / "000000009.safetensors").write_bytes(b"")
    found = read_moments(tmp_path)
    assert found is not None
    assert [moment["step"] for moment in found["moments"]] == [0]

    views = safetensors.numpy.load_file(tmp_path / "views.safetensors")
    for name, value in {"box": views["box"] * np.nan, "after": np.zeros((6, 3, 9000, 2), np.uint8)}.items():
        safetensors.numpy.save_file({**views, name: value}, tmp_path / "views.safetensors")
        assert read_moments(tmp_path) is None
