"""Named sets of defaults. `auto` is the default of each setting; the others stand here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

#: The authors' values for COCO train2017, from their configuration files: also the rate, no warm-up, a schedule that
#: moves once an epoch.
PAPER: Mapping[str, Any] = {
    "recipe": "paper",
    "image_size": 224,
    "crop_scale": (0.2, 1.0),
    "jitter": (0.4, 0.4, 0.4, 0.1),
    "jitter_probability": 0.8,
    "grayscale_probability": 0.2,
    "blur_probability": 0.5,
    "blur_sigma": (0.1, 2.0),
    "flip_probability": 0.5,
    "backbone": "resnet50",
    "output_stride": None,
    "method": "moco",
    "dense_weight": 0.5,
    "dense_warmup_steps": 0,
    "dim": 128,
    "hidden_dim": None,
    "grid": None,
    "temperature": 0.2,
    "temperature_max": None,
    "queue_length": 65536,
    "key_momentum": 0.999,
    "key_momentum_end": None,
    "key_norm": "auto",  # shuffle, the authors'; on one device, where that mixes nothing, split into their 32 images
    "key_split": 32,
    "matching": "features",
    "dense_negatives": "pooled",
    "symmetric": False,
    "local_crops": 0,
    "match_top_k": 1.0,
    "batch_size": 256,
    "optimizer": "sgd",
    "base_learning_rate": 0.3,
    "momentum": 0.9,
    "weight_decay": 1e-4,
    "warmup_epochs": 0.0,
    "schedule_per": "epoch",
    "clip_gradient": None,
    "epochs": 800,
    "precision": "32",
}

#: By the name that --recipe takes.
PRESETS: Mapping[str, Mapping[str, Any]] = {"auto": {}, "paper": PAPER}
