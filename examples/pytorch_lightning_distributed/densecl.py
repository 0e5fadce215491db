"""DenseCL on several devices: from unlabelled images to a backbone for detection and segmentation.

python examples/pytorch_lightning_distributed/densecl.py --data FOLDER

One process a GPU, which talk through NCCL; without a GPU two processes on the CPU, which talk through gloo.
Lightning starts the others by running this script again. Under torchrun or SLURM it takes part in theirs.
"""

from __future__ import annotations

import argparse
import functools
import sys
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.loggers import CSVLogger
from torch.utils.data import DataLoader

# Python looks for modules beside the script first, where `import densecl` would find this very file.
if sys.path[0] == str(Path(__file__).resolve().parent):
    sys.path.pop(0)

from densecl import DenseCL, create_backbone
from densecl.augment import PhotometricSettings, augment, draw_photometrics
from densecl.errors import UserError
from densecl.images.loader import Batch, CropPairDataset, Quarantine, StepSampler, make_loader
from densecl.images.scenes import Scenes
from densecl.images.sources import open_source
from densecl.model import Normalisation, save_backbone
from densecl.model.distributed import mean_over_processes
from densecl.training import automatic
from densecl.training.schedules import cosine, ramp
from densecl.views import Views

IMAGENET = Normalisation(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))


class Pretraining(pl.LightningModule):
    """The training step around `DenseCL`, and each process's part of the data."""

    def __init__(self, model: DenseCL, pairs: CropPairDataset, options: argparse.Namespace) -> None:
        super().__init__()
        self.model = model
        self.pairs = pairs
        self.options = options
        self.quarantine = Quarantine(options.out / "quarantine.csv", len(pairs))
        self.losses: list[torch.Tensor] = []

    def train_dataloader(self) -> DataLoader:
        sampler = StepSampler(
            len(self.pairs),
            self.options.batch_size,
            seed=self.options.seed,
            stop_step=self.options.steps,
            rank=self.trainer.global_rank,
            world_size=self.trainer.world_size,
        )
        return make_loader(self.pairs, sampler, workers=self.options.workers, pin_memory=self.on_gpu)

    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> tuple[Views, Views]:
        self.quarantine.record(batch.bad)  # what could not be read, and was replaced by other images
        return augment(batch.pairs.first, *IMAGENET), augment(batch.pairs.second, *IMAGENET)

    def training_step(self, views: tuple[Views, Views], batch_idx: int) -> torch.Tensor:
        output = self.model(*views)  # moves the key encoder and fills the queues with the keys of all, too
        self.log("loss", output.loss, prog_bar=True, sync_dist=True)
        self.log_dict({"global_loss": output.global_loss, "dense_loss": output.dense_loss}, sync_dist=True)
        self.losses.append(mean_over_processes(output.loss.detach()))
        return output.loss

    def configure_optimizers(self) -> Any:
        # The key encoder has no gradient: it is a moving average of the query encoder.
        trained = [parameter for parameter in self.parameters() if parameter.requires_grad]
        weights = {"params": [parameter for parameter in trained if parameter.ndim > 1], "weight_decay": 0.02}
        biases_and_norms = {"params": [parameter for parameter in trained if parameter.ndim <= 1], "weight_decay": 0.0}
        optimizer = torch.optim.AdamW([weights, biases_and_norms], lr=1.0, fused=True)  # lr: times the schedule
        peak, steps = self.options.learning_rate, self.options.steps
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: cosine(peak, 0.0, step / steps) * ramp(step, steps / 10)
        )
        return [optimizer], [{"scheduler": schedule, "interval": "step"}]


def train(options: argparse.Namespace) -> list[float]:
    """Trains, leaves OUT/backbone.safetensors, and returns the loss of every step, averaged over the processes."""
    gpus = torch.cuda.device_count()
    devices = options.devices or gpus or 2
    if options.sync_batch_norm and not gpus:
        raise UserError("--sync-batch-norm needs GPUs: torch has no synchronised batch norm on the CPU.")
    if options.batch_size % devices:
        raise UserError(f"--batch-size {options.batch_size} cannot be shared evenly by {devices} devices.")
    options.out.mkdir(parents=True, exist_ok=True)

    # Two random crops of every image. The workers cut them and draw what is to happen to their colours;
    # `augment` then does that on the device, for a whole batch at once.
    source = open_source(options.data or Scenes())
    photometrics = PhotometricSettings.for_image_size(options.image_size)
    pairs = CropPairDataset(
        source,
        image_size=options.image_size,
        crop_scale=(0.2, 1.0),
        flip_probability=0.5,
        draw_photometrics=functools.partial(draw_photometrics, settings=photometrics),
        seed=options.seed,
    )

    # The query and the key encoder around the backbone, the queues, and the loss. On a short run the key
    # encoder follows faster than the paper's 0.999, and the queue is shorter, so that its keys are not too old.
    torch.manual_seed(options.seed)
    key_momentum = automatic.key_momentum(options.steps)
    model = DenseCL(
        create_backbone(options.backbone, output_stride=options.output_stride),
        dense_weight=options.dense_weight,
        matching=options.matching,
        dense_negatives=options.dense_negatives,
        key_momentum=key_momentum,
        queue_length=automatic.queue_length(len(source), options.batch_size, key_momentum),
        seed=options.seed,
    )

    module = Pretraining(model, pairs, options)
    trainer = pl.Trainer(
        accelerator="gpu" if gpus else "cpu",
        devices=devices,
        num_nodes=options.nodes,
        strategy="ddp",
        sync_batchnorm=options.sync_batch_norm,
        precision="bf16-mixed" if options.precision == "bf16" else "32-true",
        max_epochs=1,  # as Lightning counts: the sampler goes through all epochs in one
        use_distributed_sampler=False,  # ours knows its part
        logger=CSVLogger(options.out, name="logs", version=""),
        log_every_n_steps=1,
        enable_checkpointing=False,
    )
    trainer.fit(module)

    if trainer.is_global_zero:
        save_backbone(model.backbone, options.out / "backbone.safetensors", IMAGENET)
        print(f'To load the result: backbone, normalisation = densecl.load_backbone("{options.out}")')
    return [loss.item() for loss in module.losses]


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--data", help="folder, text file of paths, or quoted glob; None: drawn scenes")
    parser.add_argument("--out", type=Path, default="runs/pytorch_lightning_distributed", help="folder for the result")
    parser.add_argument("--backbone", default="resnet18", help="any timm model that gives a feature map")
    parser.add_argument("--output-stride", type=int, default=16, help="pixels per cell of the feature map")
    parser.add_argument("--image-size", type=int, default=96, help="side of a view in pixels")
    parser.add_argument("--batch-size", type=int, default=64, help="images per step, over all devices together")
    parser.add_argument("--steps", type=int, default=600, help="length of the training")
    parser.add_argument("--learning-rate", type=float, default=1.5e-3, help="at its peak; a third without batch norm")
    parser.add_argument("--dense-weight", type=float, default=0.5, help="share of the dense loss")
    parser.add_argument("--matching", choices=["geometry", "features", "mutual"], default="geometry", help="of cells")
    parser.add_argument("--dense-negatives", choices=["batch", "cells", "pooled"], default="batch", help="of a cell")
    parser.add_argument("--devices", type=int, help="of each machine; None: all GPUs, or two processes on the CPU")
    parser.add_argument("--nodes", type=int, default=1, help="machines")
    parser.add_argument("--sync-batch-norm", action="store_true", help="batch statistics over all GPUs")
    parser.add_argument("--precision", choices=["32", "bf16"], default="32", help="of the network's arithmetic")
    parser.add_argument("--workers", type=int, default=2, help="processes that read images, for each device")
    parser.add_argument("--seed", type=int, default=0, help="fixes weights, order, crops and colours")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    try:
        train(parse())
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
