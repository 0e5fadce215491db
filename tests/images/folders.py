"""Folders of empty files and data sets of given items, for tests."""

import os

import numpy as np
import torch

from densecl.images.sources import open_source

PIXELS = np.random.default_rng(0).integers(0, 256, (10, 14, 3), dtype=np.uint8)


def names(source):
    return [source.name(i) for i in range(len(source))]


def touch(root, *paths):
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).touch()


def listed(root):
    return [os.path.relpath(name, root) for name in names(open_source(root))]


class Items(torch.utils.data.Dataset):
    def __init__(self, items):
        self.items = items

    def __len__(self):
        return len(self.items)

    def __getitem__(self, index):
        item = self.items[index]
        if isinstance(item, Exception):
            raise item
        return item
