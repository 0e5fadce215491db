"""A training step for Lightning: augment, set the schedules, ask the method for its loss."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from jaxtyping import Float
from lightning_utilities.core.apply_func import apply_to_collection
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from densecl.augment import augment
from densecl.borrowed import frozen
from densecl.images.batch import Batch
from densecl.model import DenseCL, Distillation, Distilled, Output
from densecl.normalization import Normalization
from densecl.training.optimizer import make_optimizer, regrouped, set_learning_rates
from densecl.training.schedules import Schedules
from densecl.views import Views


class DenseCLModule(pl.LightningModule):
    """Trains a `DenseCL` on batches of crop pairs, or a backbone by distillation alone on their first views.

    Args:
        model: the method, or the distillation.
        normalization: mean and standard deviation of the images' channels.
        schedules: of the learning rate and of the method's settings.
        progress: gives the fraction (0-1) of the run before a step, by its number.
        optimizer: "sgd", "lars" or "adamw", see `make_optimizer`.
        momentum: of sgd and lars.
        weight_decay: of the optimizer.
        layer_decay: see `make_optimizer`.
        start_step: steps done before this trainer counts.
        optimizer_state: the optimizer's state after those steps. It may group the parameters differently.
        channels_last: keep images and weights in that memory format.
        seed: together with step and process it fixes dropout and drop path.
        shift_brightness: see `augment`.
        origin: what the result says of where it comes from, but for the steps.

    Attributes:
        step: number of the current or next step, counted over the whole run.
        settings: the scheduled settings of that step.
        last: output and views of the latest step, without gradient, until somebody takes them.
        first_bad_step: the first step with a NaN or infinite loss, kept on the device; a huge number if there is none.
    """

    first_bad_step: Tensor

    def __init__(
        self,
        model: DenseCL | Distillation,
        normalization: Normalization,
        schedules: Schedules,
        *,
        progress: Callable[[int], float],
        optimizer: str = "sgd",
        momentum: float = 0.9,
        weight_decay: float = 1e-4,
        layer_decay: float = 1.0,
        start_step: int = 0,
        optimizer_state: dict[str, Any] | None = None,
        channels_last: bool = False,
        seed: int = 0,
        shift_brightness: bool = False,
        origin: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        super().__init__()
        self.model = model
        self.normalization = normalization
        self.schedules = schedules
        self.progress = progress
        self.optimizer_settings = {"name": optimizer, "momentum": momentum, "weight_decay": weight_decay}
        self.layer_decay = layer_decay
        self.start_step = start_step
        self._optimizer_state = optimizer_state
        self._copies: torch.cuda.Stream | None = None
        self.memory_format = torch.channels_last if channels_last else torch.contiguous_format
        self.model.to(memory_format=self.memory_format)
        self.seed = seed
        self.shift_brightness = shift_brightness
        self.origin = origin
        self.last: tuple[Output | Distilled, list[Views]] | None = None
        self.register_buffer("first_bad_step", torch.tensor(torch.iinfo(torch.int64).max), persistent=False)
        # DDP copies the first process's buffers to all others before each step. Batch-norm statistics need that.
        # Queues and centers are the same everywhere anyway, and queues are large.
        same = ("queue", "center")
        own = [
            name for name, _ in self.named_buffers() if any(word in name for word in same) or name == "first_bad_step"
        ]
        DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(self, own)

    @property
    def step(self) -> int:
        return self.start_step + self.trainer.global_step

    def configure_optimizers(self) -> torch.optim.Optimizer:
        fused = self.trainer.gradient_clip_val is None  # Lightning refuses to clip with a fused one
        # Without need no groups of its own for the backbone: fewer groups are quicker.
        apart = self.layer_decay < 1 or self.schedules.freeze_backbone_steps > 0
        optimizer = make_optimizer(
            self.model,
            **self.optimizer_settings,
            fused=fused,
            backbone=self.model.backbone if apart else None,
            layer_decay=self.layer_decay,
        )
        if self._optimizer_state is not None:
            optimizer.load_state_dict(regrouped(self._optimizer_state, optimizer, self.model))
            self._optimizer_state = None
        return optimizer

    def transfer_batch_to_device(self, batch: Batch, device: torch.device, dataloader_idx: int) -> Batch:
        """Copies on a stream of its own, so that a GPU fetches the next batch while it works on this one."""
        if device.type != "cuda":
            return super().transfer_batch_to_device(batch, device, dataloader_idx)
        if self._copies is None:
            self._copies = torch.cuda.Stream(device)
        with torch.cuda.stream(self._copies):
            batch = super().transfer_batch_to_device(batch, device, dataloader_idx)
        work = torch.cuda.current_stream(device)
        work.wait_stream(self._copies)
        # Otherwise the next copy could get the memory of these tensors while the GPU still works on them.
        apply_to_collection(batch, Tensor, lambda tensor: tensor.record_stream(work))
        return batch

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        self.settings = settings = self.schedules.at(self.step, self.progress(self.step))
        groups = self.optimizers().param_groups  # pyright: ignore[reportAttributeAccessIssue]
        set_learning_rates(groups, settings.learning_rate, settings.backbone_factor)
        if isinstance(self.model, DenseCL):
            self.model.set_schedule(settings.method, micro_batches=self.trainer.accumulate_grad_batches)

    def training_step(self, batch: Batch, batch_idx: int) -> Float[Tensor, ""]:
        micro_batches = self.trainer.accumulate_grad_batches
        number = self.step * micro_batches + batch_idx % micro_batches
        torch.manual_seed(step_seed(self.seed, number, self.global_rank))
        with torch.autocast(self.device.type, enabled=False):
            pairs = batch.pairs
            alone = isinstance(self.model, Distillation)
            crops = (pairs.first,) if alone else (pairs.first, pairs.second, *pairs.local)
            views = [augment(crop, self.normalization, shift_brightness=self.shift_brightness) for crop in crops]
        views = [view._replace(pixels=self._laid_out(view.pixels)) for view in views]
        with frozen(self.model.backbone) if self._heads_alone else contextlib.nullcontext():
            output = self._output(views, pairs.taught[0] if pairs.taught else None)
        # Kept on the device: to ask for the value in each step would stall a GPU.
        bad_step = self.first_bad_step.clamp(max=self.step)
        self.first_bad_step = torch.where(output.loss.detach().isfinite(), self.first_bad_step, bad_step)
        self.last = apply_to_collection(output, Tensor, Tensor.detach), views[:2]
        if self._heads_alone and self.trainer.world_size > 1:  # DDP waits for a gradient of every parameter
            nothing = [0 * one.sum() for one in self.model.backbone.parameters() if one.requires_grad]
            return output.loss + torch.stack(nothing).sum()
        return output.loss

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        if self._heads_alone:  # a gradient of 0 is not the same as none: weights would decay
            for parameter in self.model.backbone.parameters():
                parameter.grad = None

    @property
    def _heads_alone(self) -> bool:
        """Whether only the heads learn in this step."""
        return self.settings.backbone_factor == 0

    def _output(self, views: list[Views], taught: Tensor | None) -> Output | Distilled:
        if isinstance(self.model, Distillation):
            return self.model(views[0].pixels, taught)
        first, second, *local = views
        return self.model(first, second, local, taught)

    def _laid_out(self, pixels: Tensor) -> Tensor:
        return pixels.contiguous(memory_format=self.memory_format)


def step_seed(seed: int, step: int, rank: int) -> int:
    """The seed for one step on one process."""
    return int(np.random.SeedSequence(seed, spawn_key=(step, rank)).generate_state(1)[0])
