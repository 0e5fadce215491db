"""What a target is: a library that others train in, and the way of our weights into it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import ClassVar, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from densecl.exports.delivery import Delivery
from densecl.model.backbone import Backbone
from densecl.model.weights.tensor_files import read_tensors

#: From normalized pixels to feature maps.
Maps = Callable[[Float[Tensor, "batch channels height width"]], Sequence[Float[Tensor, "batch _ rows cols"]]]


class Loaded(NamedTuple):
    """What a library made of an output, loaded as its users load it.

    Attributes:
        way: of loading, as the user will know it, such as "features_only".
        tensors: the state dict of the library's backbone afterwards, under its own names. All of them must be those
            that `Target.tensors` gives. None: the library does not tell them, and only feature maps are compared.
        maps: feature maps of the library's backbone.
        ours: the same maps, of the network that was delivered.
        complete: each tensor of ours must be there. False: this way leaves some out, such as a last norm.
        rounded: the type that the library keeps weights in.
        tolerance: largest difference of the maps that is only rounding, as a fraction of their largest value.
        size: (height, width) of the image to compare on, if no other is taken.
    """

    way: str
    tensors: Mapping[str, Tensor] | None
    maps: Maps
    ours: Maps
    complete: bool = True
    rounded: torch.dtype = torch.float32
    tolerance: float = 1e-4
    size: tuple[int, int] | None = None


class Target(ABC):
    """A library to export to. `name` is the word of the table."""

    library: ClassVar[str]  #: what is imported to check the output, such as "timm"
    package: ClassVar[str]  #: what pip calls it
    tried: ClassVar[str]  #: the version that this was tried with
    needs: ClassVar[Mapping[str, str]] = {}  #: modules without which nothing can be written -> what to install
    weights: ClassVar[str] = "model.safetensors"  #: the file with the tensors, in the folder that is written
    others: ClassVar[Sequence[str]] = ()  #: the files beside it, but for LOAD.md

    def __init__(self, name: str) -> None:
        self.name = name

    # --- which backbones ----------------------------------------------------------------------------

    def refusal(self, network: Backbone) -> str | None:
        """Why this backbone cannot go there and what to take instead, in a line. None if it can."""
        return None

    def keeps_output_stride(self, network: Backbone) -> bool:
        """Whether the library can make the network with the output stride that it was trained at.

        If not, it is delivered with the architecture's own stride, and the user is told.
        """
        return True

    # --- what is written ----------------------------------------------------------------------------

    def tensors(self, delivery: Delivery) -> dict[str, Tensor]:
        """The tensors under the names that the library's backbone has for them."""
        return delivery.state

    @abstractmethod
    def write(self, delivery: Delivery, folder: Path) -> None:
        """Writes all files into an empty folder, which is moved to its place once the check has passed."""

    @abstractmethod
    def instructions(self, delivery: Delivery) -> str:
        """How to load it: a few lines of Markdown with the code, for LOAD.md."""

    def mistakes(self, delivery: Delivery) -> list[str]:
        """What goes wrong in this library, a sentence or two each, the worst first. What holds anywhere is added."""
        return []

    # --- the check ----------------------------------------------------------------------------------

    @abstractmethod
    def load(self, delivery: Delivery, folder: Path) -> Iterator[Loaded]:
        """Rebuilds the backbone in the library and loads the output, in each of the ways that users do.

        Only called where the library is installed. Import it here, not at the top of the file.
        """

    def stored(self, delivery: Delivery, folder: Path) -> dict[str, Tensor] | None:
        """The tensors in the file that was written, under the library's names. None if it has them not by name.

        Nothing is unpickled.
        """
        found = read_tensors(folder / self.weights).tensors
        return {name: one.read() for name, one in found.items()}
