"""The data path of LightlySSL's DenseCL example: its data set and its transform. Runs in the environment of densecl.py.

python data.py FOLDER IMAGE_SIZE WORKERS BATCH_SIZE SECONDS prints one line of JSON.
"""

from __future__ import annotations

import json
import sys
import time

import torch
from lightly.data import LightlyDataset
from lightly.transforms import DenseCLTransform
from torch.utils.data import DataLoader, RandomSampler


def main() -> None:
    folder, *numbers, seconds = sys.argv[1:]
    image_size, workers, batch_size = map(int, numbers)
    torch.set_num_threads(1)
    dataset = LightlyDataset(folder, transform=DenseCLTransform(input_size=image_size))
    sampler = RandomSampler(dataset, replacement=True, num_samples=10**7)
    batches = iter(DataLoader(dataset, batch_size, sampler=sampler, num_workers=workers))
    for _ in range(2 + 2 * workers):
        next(batches)
    start, computing, images = time.perf_counter(), time.process_time(), 0
    while time.perf_counter() - start < float(seconds):
        next(batches)
        images += batch_size
    found = {"images_per_second": images / (time.perf_counter() - start)}
    if workers == 0:
        found["cpu_ms"] = (time.process_time() - computing) / images * 1000
    print(json.dumps(found))


if __name__ == "__main__":
    main()
