"""Statistics against the images they were made from."""

import numpy as np
import pytest
import torch

from densecl.errors import UserError
from densecl.images.sources import open_source
from densecl.images.statistics import measure_mean_std, measure_offset


def test_channels_are_measured_on_the_scale_of_their_type(tmp_path):
    rng = np.random.default_rng(0)
    images = [rng.normal(30000, 4000, (5, 40, 30)).clip(0, 65535).astype(np.uint16) for _ in range(20)]
    for image in images:
        image[1] //= 2
        image[4] = 77  # a dead channel
    for number, image in enumerate(images):
        np.save(tmp_path / f"{number}.npy", image)
    (tmp_path / "broken.npy").write_bytes(b"broken")
    mean, std = measure_mean_std(open_source(tmp_path, channels=5), seed=0)
    pixels = np.stack(images).astype(np.float64).transpose(1, 0, 2, 3).reshape(5, -1) / 65535
    assert mean == pytest.approx(pixels.mean(axis=1))
    assert std == pytest.approx([*pixels[:4].std(axis=1), 1.0])


def test_a_sample_of_many_and_of_large_images(tmp_path):
    class Halves(torch.utils.data.Dataset):
        seen = 0

        def __len__(self):
            return 100

        def __getitem__(self, index):
            self.seen += 1
            image = torch.zeros(3, 600, 500, dtype=torch.uint8)
            image[:, :300] = 200
            return image

    dataset = Halves()
    mean, std = measure_mean_std(open_source(dataset), seed=0, images=7)
    assert dataset.seen == 7
    assert mean == pytest.approx([100 / 255] * 3, abs=0.01)
    assert std == pytest.approx([100 / 255] * 3, abs=0.01)


def test_nothing_to_measure(tmp_path):
    (tmp_path / "a.jpg").write_bytes(b"")
    with pytest.raises(UserError, match=r"none of 1 images can be used[\s\S]*a.jpg: empty file"):
        measure_mean_std(open_source(tmp_path), seed=0)


def test_how_far_from_zero_the_values_of_an_image_lie(tmp_path):
    rng = np.random.default_rng(0)
    for number in range(6):
        picture = rng.normal(0, 1, (40, 30))
        np.save(tmp_path / f"{number}.npy", (7500 + 100 * picture).astype(np.uint16))
    (tmp_path / "6.npy").write_bytes(b"broken")
    np.save(tmp_path / "7.npy", np.full((40, 30), 9, np.uint16))  # of a single color
    offset, deep = measure_offset(open_source(tmp_path, channels=1))
    assert deep and offset == pytest.approx(75, rel=0.05)
    values = torch.from_numpy(rng.integers(0, 256, (3, 3, 20, 20), dtype=np.uint8))
    offset, deep = measure_offset(open_source(torch.utils.data.TensorDataset(values)))
    assert not deep and offset == pytest.approx(1.7, rel=0.1)
