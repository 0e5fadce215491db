"""Images per second of `densecl pretrain --data FOLDER` with its defaults, beside the peer and the bare encoders.

    python benchmarks/auto.py --data FOLDER [--batch-size 32] [--peer PYTHON] [--rounds 3]

Four settings are not the defaults:
- the method: the peer's, moco;
- the batch size: small enough for the peer to fit into a small machine's memory;
- the length of the run: a few steps;
- the queue: as long as in a run of the usual length.

The peer gets the same backbone, image size, batch size and queue. The bare encoders get the precision that densecl
chose. Appends to docs/benchmarks/throughput.csv, as the work "default settings".
"""

from __future__ import annotations

import argparse
import math
import os
from pathlib import Path

from throughput import HERE, Work, measure

from densecl.images.sources import open_source
from densecl.recipe import make_recipe
from densecl.training import automatic


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="a folder of JPEG files")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--peer", type=Path, default=HERE / "peer" / ".venv" / "bin" / "python")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=min(2, os.cpu_count() or 1), help="of the peer")
    options = parser.parse_args()

    recipe = make_recipe(data=options.data)
    images = len(open_source(options.data))
    assert recipe.epochs is not None
    momentum = automatic.key_momentum(math.ceil(recipe.epochs * images / options.batch_size))
    queue_length = automatic.queue_length(images, options.batch_size, momentum)
    options.precision = "auto"
    work = Work(recipe.backbone, recipe.image_size, options.batch_size, queue_length, warm_up=2, steps=4)
    measure("default settings", work, ["peer", "auto", "bare"], options)


if __name__ == "__main__":
    main()
