"""DenseCL on several devices: from unlabeled images to a backbone for detection and segmentation.

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
from densecl.config import automatic
from densecl.errors import UserError
from densecl.images.batch import Batch
from densecl.images.loader import make_loader
from densecl.images.pairs import CropPairDataset
from densecl.images.quarantine import Quarantine
from densecl.images.sampler import StepSampler
from densecl.images.scenes import Scenes
from densecl.images.sources import open_source
from densecl.model import METHODS, save_backbone
from densecl.model.distributed import mean_over_processes
from densecl.normalization import IMAGENET
from densecl.training.explanations import lightning_quiet
from densecl.training.optimizer import make_optimizer
from densecl.training.schedules import Schedules
from densecl.views import Views


class Pretraining(pl.LightningModule):
    """The training step around `DenseCL`, and each process's part of the data."""

    def __init__(
        self, model: DenseCL, schedules: Schedules, pairs: CropPairDataset, options: argparse.Namespace
    ) -> None:
        super().__init__()
        self.model = model
        self.schedules = schedules
        self.pairs = pairs
        self.options = options
        self.quarantine = Quarantine(options.out / "quarantine.csv", len(pairs))
        self.losses: list[torch.Tensor] = []

    def on_train_start(self) -> None:
        self.print(f"{self.trainer.world_size} processes, joined by {torch.distributed.get_backend()}")

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

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        settings = self.schedules.at(self.global_step, self.global_step / self.options.steps)
        for group in self.trainer.optimizers[0].param_groups:
            group["lr"] = settings.learning_rate
        self.model.set_schedule(settings.method)

    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> tuple[Views, Views]:
        self.quarantine.record(batch.bad)  # what could not be read, and was replaced by other images
        return augment(batch.pairs.first, IMAGENET), augment(batch.pairs.second, IMAGENET)

    def training_step(self, views: tuple[Views, Views], batch_idx: int) -> torch.Tensor:
        output = self.model(*views)  # also updates the momentum encoder, and the queue with all processes' keys
        self.losses.append(output.loss.detach())
        done = self.global_step + 1
        # Not oftener: to tell a number, all GPUs have to halt.
        if done % self.options.log_every == 0 or done == self.options.steps:
            loss, global_loss, dense_loss = mean_over_processes(torch.stack(output[:3])).tolist()
            self.log_dict({"loss": loss, "global_loss": global_loss, "dense_loss": dense_loss})
            self.print(f"step {done}: loss {loss:.3f} (global {global_loss:.3f}, dense {dense_loss:.3f})")
        return output.loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        # AdamW, with weight decay on the weights of layers alone. The learning rate is set before each step.
        return make_optimizer(self, "adamw", weight_decay=0.02)


def train(options: argparse.Namespace) -> list[float]:
    """Trains, leaves OUT/backbone.safetensors, and returns the loss of every step, averaged over the processes."""
    gpus = torch.cuda.device_count()
    devices = options.devices or gpus or 2
    if options.sync_batch_norm and not gpus:
        raise UserError("--sync-batch-norm needs GPUs: torch has no synchronized batch norm on the CPU.")
    if options.batch_size % devices:
        raise UserError(f"--batch-size {options.batch_size} cannot be shared evenly by {devices} devices.")
    options.out.mkdir(parents=True, exist_ok=True)

    # Two random crops of every image. The workers cut them and draw what is to happen to their colors;
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

    # On a short run the momentum encoder follows faster than in the papers, and moco's queue is shorter, so that its
    # keys are not too old. The other methods have no queue, some no momentum encoder: what a method lacks is None.
    method = METHODS[options.method]
    key_momentum = queue_length = None
    if method.key_momentum is not None:
        key_momentum = automatic.key_momentum(options.steps, method.key_momentum)
        if method.queue:
            queue_length = automatic.queue_length(len(source), options.batch_size, key_momentum)

    # The encoders around the backbone, what the method keeps, and its loss.
    torch.manual_seed(options.seed)
    model = DenseCL(
        create_backbone(options.backbone, output_stride=options.output_stride),
        method=method,
        dense_weight=options.dense_weight,
        matching=options.matching,
        match_top_k=options.match_top_k,
        dense_negatives=options.dense_negatives or ("batch" if method.dense_negatives else None),
        symmetric=options.symmetric,
        key_momentum=key_momentum,
        queue_length=queue_length,
        seed=options.seed,
    )

    # A warm-up of a tenth of the run, but of 10 epochs at most, then a cosine to 0. The key momentum of byol and dino
    # follows a cosine too, and the temperature of dino's teacher a warm-up.
    epochs = options.steps * options.batch_size / len(source)
    schedules = Schedules(
        start=model.scheduled,
        learning_rate=options.learning_rate,
        warmup_steps=automatic.warmup_epochs(epochs) * (len(source) / options.batch_size),
        key_momentum_end=method.key_momentum_end,
        teacher_temperature_end=method.teacher_temperature_end,
    )

    module = Pretraining(model, schedules, pairs, options)
    with lightning_quiet():  # its remarks are about other trainings than this one
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
            log_every_n_steps=options.log_every,
            enable_checkpointing=False,
            enable_progress_bar=False,  # it would count one epoch, and ask for the loss at every step
            enable_model_summary=False,
        )
        trainer.fit(module)

    if trainer.is_global_zero:
        save_backbone(model.backbone, options.out / "backbone.safetensors", IMAGENET)
        print(f'To load the result: backbone, normalization = densecl.load_backbone("{options.out}")')
    return mean_over_processes(torch.stack(module.losses)).tolist()


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
    parser.add_argument("--method", choices=METHODS, default="moco", help="docs/methods.md compares them")
    parser.add_argument("--dense-weight", type=float, default=0.5, help="weight of the dense loss; 0: the plain method")
    matchings = ["geometry", "features", "mutual", "both"]
    parser.add_argument("--matching", choices=matchings, default="geometry", help="how cells find their positives")
    parser.add_argument("--match-top-k", type=float, default=1.0, help="fraction of cells to keep, best matches first")
    negatives = ["batch", "cells", "pooled"]
    parser.add_argument("--dense-negatives", choices=negatives, help="of a cell, for moco and simclr; None: batch")
    parser.add_argument(
        "--symmetric", action=argparse.BooleanOptionalAction, help="both views are queries; None: as in the paper"
    )
    parser.add_argument("--devices", type=int, help="of each machine; None: all GPUs, or two processes on the CPU")
    parser.add_argument("--nodes", type=int, default=1, help="machines")
    parser.add_argument("--sync-batch-norm", action="store_true", help="batch statistics over all GPUs")
    parser.add_argument("--precision", choices=["32", "bf16"], default="32", help="of the network's arithmetic")
    parser.add_argument("--workers", type=int, default=2, help="processes that read images, for each device")
    parser.add_argument("--log-every", type=int, default=10, help="steps between reports")
    parser.add_argument("--seed", type=int, default=0, help="fixes weights, order, crops and colors")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    try:
        train(parse())
    except UserError as error:
        print(f"error: {error.args[0]}", file=sys.stderr)
        sys.exit(2)
