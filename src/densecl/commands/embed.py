"""`densecl embed` on the command line. What a flag does not say is the default of `densecl.embed`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from densecl.commands.values import size
from densecl.images.early import check_data
from densecl.training.early import check_weights
from densecl.training.vacant import check_makeable


def add_embed(commands: Any) -> None:
    """Add the command to argparse's subparsers."""
    parser = commands.add_parser(
        "embed",
        help="write a vector for each image, or for each cell",
        description="Write the vectors that a backbone gives for images, in order, and find near-duplicates by them.",
        epilog="How to read the files, and what counts as a near-duplicate: docs/embed.md.",
        usage="densecl embed WEIGHTS --data SOURCE --out FILE [--dense] [--resume] [...]",
        argument_default=argparse.SUPPRESS,
    )
    parser.set_defaults(run=_embed)
    what = parser.add_argument_group("what is written")
    what.add_argument(
        "weights",
        metavar="WEIGHTS",
        help="Run folder, backbone.safetensors, 'random', 'imagenet', a name of timm's such as resnet50.a1_in1k, or"
        " another file of weights with --backbone.",
    )
    what.add_argument(
        "--data", metavar="SOURCE", required=True, help="Folder of images, text file of paths, or quoted glob."
    )
    what.add_argument("--out", metavar="FILE", required=True, help="Its name ends with .safetensors, .npy or .parquet.")
    what.add_argument("--resume", action="store_true", help="Go on with what an earlier call has left.")
    what.add_argument("--dense", action="store_true", help="A vector for each cell, instead of their mean.")
    what.add_argument("--dtype", metavar="float32|float16", help="Type of the numbers (default: float32).")
    what.add_argument("--backbone", metavar="NAME", help="Of weights that do not say it.")
    seen = parser.add_argument_group("what the backbone sees")
    seen.add_argument(
        "--image-size",
        metavar="SIZE",
        type=size,
        help="Images are resized to WIDTHxHEIGHT, or to a square of N (default: 224).",
    )
    seen.add_argument(
        "--output-stride", metavar="N", type=int, help="Pixels per cell, where it can be changed (default: its own)."
    )
    seen.add_argument(
        "--tile", metavar="N", type=int, help="Cut images into square tiles of N pixels, each a row of its own."
    )
    seen.add_argument(
        "--max-image-pixels", metavar="N", type=int, help="Skip larger images (default: 178956970, Pillow's limit)."
    )
    duplicates = parser.add_argument_group("near-duplicates")
    duplicates.add_argument(
        "--duplicates",
        metavar="LIST",
        help="Group images that are nearly the same, such as the frames of a video, and write a text file with one of"
        " each group, for pretrain --data.",
    )
    duplicates.add_argument(
        "--threshold",
        metavar="X",
        type=float,
        help="Cosine from which images belong together (default: 0.9). Vectors have the mean over all images"
        " subtracted.",
    )
    machine = parser.add_argument_group("the machine")
    machine.add_argument("--device", metavar="NAME", help="auto, cpu, cuda or cuda:1 (default: auto).")
    machine.add_argument("--batch-size", metavar="N", type=int, help="Images at a time (default: 32; on a GPU 128).")
    machine.add_argument("--workers", metavar="N", type=int, help="Data-loading workers (default: by the cores).")
    machine.add_argument(
        "--read-timeout",
        metavar="SECONDS",
        type=float,
        help="Give up when no image was read for so long (default: 300).",
    )


def _embed(weights: str, data: str, out: str, **settings: Any) -> None:
    check_weights(weights)
    check_data(data)
    check_makeable(Path(out).expanduser().parent, "--out: its folder")
    from densecl.embedding.embed import embed

    embed(weights, data, out, **settings)
