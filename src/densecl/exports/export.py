"""`densecl export`: weights into another library's own form. It knows no target by name."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import NamedTuple

import torch

from densecl.errors import UserError
from densecl.evaluation.weights import Weights, open_weights
from densecl.exports import targets
from densecl.exports.delivery import Delivery
from densecl.exports.load_page import PAGE, load_page
from densecl.exports.place import check_free
from densecl.exports.target import Target
from densecl.exports.verify import Finding, verify
from densecl.files import new_folder
from densecl.model.backbone import Backbone
from densecl.names import shown


class Exported(NamedTuple):
    """An export that has passed its check.

    Attributes:
        path: the folder.
        findings: what the check has shown, an entry for each way of loading.
        notes: what the user should know besides.
    """

    path: Path
    findings: list[Finding]
    notes: tuple[str, ...]


@torch.random.fork_rng(devices=[])  # networks are drawn on the way; the caller's random numbers stay
def export(weights: str | Path, to: str, out: str | Path, *, backbone: str | None = None) -> Exported:
    """Write weights in the form that another library loads, and check that it does.

    Args:
        weights: a run folder, a file of weights, "imagenet", "random", or a name of timm's such as "resnet50.a1_in1k".
        to: a name of the table in `densecl.exports.targets`, such as "timm".
        out: the folder to make. It will also hold LOAD.md, which says how to load it.
        backbone: timm's name, for weights that do not say it.

    Returns:
        What was written, and what the check has shown.

    Raises:
        UserError: whatever the caller can put right, a target that cannot take the backbone, or a failed check.
            Nothing is then left at `out`.
    """
    target = targets.load(to)
    _check_installed(target)
    out = Path(out).expanduser()
    _check_free(out, target)
    (opened,) = open_weights([weights], backbone)
    delivery = _delivery(target, opened)
    with new_folder(out) as folder:
        target.write(delivery, folder)
        # It may take a minute, and so may what came before.
        print("Checking it against the backbone ...", file=sys.stderr, flush=True)
        findings = verify(target, delivery, folder)
        page = load_page(target, delivery, [str(finding) for finding in findings])
        (folder / PAGE).write_text(page, encoding="utf-8")
    return Exported(out, findings, delivery.notes)


def _check_installed(target: Target) -> None:
    missing = [module for module in target.needs if importlib.util.find_spec(module) is None]
    if missing:
        raise UserError(f"--to {target.name} needs {missing[0]}. Install it: {target.needs[missing[0]]}")


def _check_free(out: Path, target: Target) -> None:
    check_free(out)
    if out.is_dir():
        return
    if out.suffix and out.suffix == Path(target.weights).suffix:
        raise UserError(
            f"--out {shown(out)}: an export is a folder, with {target.weights} and {PAGE} in it. Give"
            f" --out {shown(out.with_suffix(''))}."
        )


def _delivery(target: Target, weights: Weights) -> Delivery:
    """The backbone as the target can have it."""
    network = _network(weights, weights.output_stride)
    refusal = target.refusal(network)
    if refusal is not None:
        raise UserError(f"--to {target.name} cannot take {network.name}: {refusal}")
    notes = tuple(weights.warnings)
    if weights.output_stride is not None and not target.keeps_output_stride(network):
        trained = network.stride
        network = _network(weights, None)
        notes += (
            f"note: trained with --output-stride {trained}, but {target.name} runs this network at {network.stride}."
            " Its deep features are then not quite those that were trained; fine-tune all layers.",
        )
    return Delivery(network, weights.normalization, weights.provenance, notes)


def _network(weights: Weights, output_stride: int | None) -> Backbone:
    network = weights.backbone(output_stride, usual=None).cpu()
    # Out of channels_last, in which some exporters would write the tensors.
    return network.to(memory_format=torch.contiguous_format).eval()  # pyright: ignore[reportCallIssue]
