"""From resolved settings to what a run is made of: data, model and timeline."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import Dataset

from densecl.config.outlook import outlook
from densecl.config.recipe import Resolved
from densecl.config.resolve import resolve
from densecl.config.setting import seconds_in
from densecl.config.settings import Settings
from densecl.config.teacher import distills_alone
from densecl.errors import UserError
from densecl.images.sources import ImageSource
from densecl.model import Backbone, DenseCL, Distillation
from densecl.normalization import Normalization
from densecl.training.environment import settle_devices
from densecl.training.guidance import Guides, described, make_guidance
from densecl.training.inspect import inspect
from densecl.training.probe import Probe, open_probe_labels
from densecl.training.provenance import provenance
from densecl.training.timeline import Timeline


@dataclass(frozen=True)
class Parts:
    """What a run is made of. The same recipe gives the same parts in every process."""

    recipe: Resolved
    source: ImageSource
    model: DenseCL | Distillation
    normalization: Normalization
    outlook: tuple[str, ...]  # lines for the user: what the network sees
    timeline: Timeline  # how long it is, and where it goes on
    optimizer_state: dict[str, Any] | None = None
    loss_scale: dict[str, Any] | None = None  # with --precision fp16
    start_cells: torch.Tensor | None = None  # what the run began with, see `watching`
    probe: Probe | None = None  # labeled images to watch it by
    origin: Mapping[str, str] = field(default_factory=dict)  # what the result says of where it comes from
    follows: tuple[str, ...] = ()  # lines for the user: the frozen networks


def build(
    asked: Settings[Any], resume_from: Path | None, dataset: Dataset[Any] | None, module: nn.Module | None
) -> tuple[Parts, list[str]]:
    """Inspects, resolves, makes the model, and loads the checkpoint if there is one.

    Args:
        asked: the settings; those of each process of a run are resolved already.
        resume_from: folder of the run to go on with, if it has a checkpoint.
        dataset: instead of ``asked.data``.
        module: instead of ``asked.backbone``.

    Returns:
        The parts, and lines for the user: notes, a reason for each choice, warnings.

    Raises:
        UserError: for wrong data, an unknown backbone, settings that do not go together, a damaged checkpoint.
    """
    asked = settle_devices(asked)
    torch.manual_seed(asked.seed)
    labels = open_probe_labels(asked)
    source, backbone, guides, checkpoint, facts, notes = inspect(asked, resume_from, dataset, module)
    resolved, reasons, warnings = resolve(asked, facts)
    normalization = Normalization(resolved.mean, resolved.std)
    probe = None if labels is None else labels.probe(backbone, normalization)
    model = make_model(resolved, backbone, guides)
    timeline = Timeline.plan(
        facts.images,
        resolved.batch_size,
        epochs=resolved.epochs,
        steps=resolved.steps,
        time_limit=None if resolved.time_limit is None else seconds_in(resolved.time_limit),
    )
    if checkpoint is not None:
        try:
            model.load_state_dict(checkpoint["model"])
        except (RuntimeError, TypeError) as error:
            problem = " ".join(str(error).split())[:160]
            raise UserError(f"The checkpoint in {resume_from} does not fit the recipe: {problem}") from error
        timeline = timeline.going_on(checkpoint["step"], checkpoint["seconds"])
    parts = Parts(
        resolved,
        source,
        model,
        normalization,
        tuple(outlook(resolved, facts)),
        timeline,
        optimizer_state=None if checkpoint is None else checkpoint["optimizer"],
        loss_scale=None if checkpoint is None else checkpoint.get("loss_scale"),
        start_cells=None if checkpoint is None else checkpoint.get("start_cells"),
        probe=probe,
        origin=provenance(resolved, source, guides),
        follows=tuple(described(resolved, guides)),
    )
    probed = [] if probe is None else [probe.describe()]
    return parts, [*notes, *probed, *reasons, *(f"warning: {warning}" for warning in warnings)]


def make_model(resolved: Resolved, backbone: Backbone, guides: Guides) -> DenseCL | Distillation:
    """The method around a backbone, which is prepared in place, and the frozen networks that it follows."""
    if resolved.freeze_norm_statistics and not backbone.norm_statistics_frozen:
        backbone.freeze_norm_statistics()
    if resolved.checkpoint_activations:
        backbone.checkpoint_activations()
    guidance = make_guidance(resolved, backbone, guides)
    if distills_alone(resolved) and guidance is not None:
        return Distillation(backbone, guidance)
    teacher = resolved.teacher_temperature
    return DenseCL(
        backbone,
        method=resolved.method,
        dim=resolved.dim,
        hidden_dim=resolved.hidden_dim,
        dense_stages=resolved.dense_stage or (-1,),
        grid=resolved.grid,
        queue_length=resolved.queue_length,
        temperature=resolved.temperature,
        teacher_temperature=None if teacher is None else teacher[0],
        key_momentum=resolved.key_momentum,
        dense_weight=resolved.dense_weight,
        key_norm=resolved.key_norm,
        key_split=resolved.key_split,
        matching=resolved.matching,
        match_radius=resolved.match_radius,
        match_top_k=resolved.match_top_k,
        dense_negatives=resolved.dense_negatives,
        dense_softening=resolved.dense_softening,
        dense_statistics=resolved.dense_statistics,
        symmetric=resolved.symmetric,
        seed=resolved.seed,
        guidance=guidance,
    )
