"""LOAD.md, the page beside every output: how to load it right."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from densecl.exports.delivery import Delivery
from densecl.exports.provenance import told
from densecl.exports.target import Target
from densecl.model.backbone import unwrapped

#: The name of the page.
PAGE = "LOAD.md"


def load_page(target: Target, delivery: Delivery, checks: Sequence[str]) -> str:
    """The page as Markdown.

    Args:
        target: what it is for.
        delivery: the backbone.
        checks: what the check has shown, in lines.
    """
    network, pixels = delivery.network, delivery.normalization
    lines = [
        f"# {network.name} for {target.name}",
        "",
        "FOLDER is the folder of this page.",
        "",
        target.instructions(delivery).strip(),
        "",
        "## What it expects",
        "",
        f"- Pixels: {'RGB, ' if delivery.channels == 3 else ''}from 0 to 1, minus the mean {numbers(pixels.mean)},"
        f" divided by the deviation {numbers(pixels.std)}.",
        *(f"- {line}" for line in _structure(delivery)),
        "",
        "## Mistakes that cost most",
        "",
        *(f"- {line}" for line in (*target.mistakes(delivery), *_usual_mistakes(delivery))),
        "",
        "## Where it comes from",
        "",
        *(f"- {line}" for line in told(delivery.provenance)),
        *(f"- {note}" for note in delivery.notes),
        *(f"- {check[0].upper()}{check[1:]}." for check in checks),
    ]
    return "\n".join(lines) + "\n"


def numbers(values: Sequence[float]) -> str:
    """Means or deviations, as they are typed in Python."""
    return "[" + ", ".join(f"{value:.6g}" for value in values) + "]"


def _structure(delivery: Delivery) -> Iterator[str]:
    model = unwrapped(delivery.network.model)
    convolutions = [(name, one) for name, one in model.named_modules() if isinstance(one, nn.Conv2d)]
    if convolutions:
        name, first = convolutions[0]
        yield f"Stem: `{name}`, {first.kernel_size[0]}x{first.kernel_size[1]} with stride {first.stride[0]}."
    if any(name == "layer2.0.conv2" and one.stride[0] == 2 for name, one in convolutions if one.kernel_size[0] == 3):
        yield "Blocks: the stride is in the 3x3 convolution (v1.5, as in torchvision), not in the 1x1 before it."
    yield f"The last map has a cell for {delivery.network.stride} pixels."
    if has_batch_norm(delivery):
        yield "Batch norm: to be trained, with its weights and its statistics, in all layers."


def _usual_mistakes(delivery: Delivery) -> Iterator[str]:
    yield "`strict=False`: names that do not fit are skipped without a word, and nothing is loaded."
    if delivery.channels == 3:
        yield "BGR instead of RGB (OpenCV reads BGR), or pixels from 0 to 255."
    if has_batch_norm(delivery):
        yield "Frozen batch norm, the default of many detection recipes. It costs about 2 AP."


def has_batch_norm(delivery: Delivery) -> bool:
    return any(isinstance(module, _BatchNorm) for module in delivery.network.modules())
