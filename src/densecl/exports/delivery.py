"""What a target is given: a backbone with its weights, and what is known of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from densecl.model.backbone import Backbone
from densecl.normalization import Normalization


@dataclass(frozen=True)
class Delivery:
    """A backbone on its way into another library.

    Attributes:
        network: on the CPU, in evaluation mode, in float32.
        normalization: what the pixels are normalized by, in RGB from 0 to 1.
        provenance: where the weights come from (`densecl.model.weights.result.PROVENANCE`): "method", "steps" and so
            on. They may come from a stranger's file.
        notes: lines for the user that belong to this output, too.
    """

    network: Backbone
    normalization: Normalization
    provenance: Mapping[str, str]
    notes: tuple[str, ...] = ()

    @property
    def architecture(self) -> str:
        """timm's name without the tag, which says whose weights it once had."""
        return self.network.name.split(".")[0]

    @property
    def state(self) -> dict[str, Tensor]:
        """The state dict, under timm's names."""
        return self.network.model.state_dict()

    @property
    def channels(self) -> int:
        """Of the images."""
        return self.network.in_channels
