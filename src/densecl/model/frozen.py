"""Networks that do not learn, and are followed: a teacher, or the network that a run started from."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from densecl.model.backbone import Backbone
from densecl.normalization import Normalization


class Frozen:
    """A network that sees a student's views as it was trained to see images.

    It is no module. So it is neither in checkpoints nor among what several processes exchange, and it moves to the
    device of its views by itself.

    Args:
        network: is put into evaluation mode for good.
        normalization: that the network was trained with.
        views: the normalization of the views.
        channels: of the views, those that the network sees; None: all.
        size: side in pixels at which it sees a view; None: that of the view.
    """

    def __init__(
        self,
        network: Backbone,
        *,
        normalization: Normalization,
        views: Normalization,
        channels: Sequence[int] | None = None,
        size: int | None = None,
    ) -> None:
        self.network = network.eval().requires_grad_(False)
        self.normalization = normalization
        self.channels = None if channels is None else list(channels)
        self.size = size
        picked = range(len(views.mean)) if channels is None else channels
        mean, std = (torch.tensor([values[channel] for channel in picked]) for values in views)
        own_mean, own_std = (torch.tensor(values) for values in normalization)
        self.scale, self.shift = std / own_std, (mean - own_mean) / own_std
        self.as_they_are = bool((self.scale == 1).all() and (self.shift == 0).all())

    @torch.no_grad()
    def __call__(
        self, pixels: Float[Tensor, "batch channels height width"]
    ) -> Float[Tensor, "batch features rows cols"]:
        """The feature map of views that are normalized for the student."""
        if self.scale.device != pixels.device:
            self.network.to(pixels.device)
            self.scale, self.shift = self.scale.to(pixels.device), self.shift.to(pixels.device)
        return self.network(self.seen(pixels))

    def seen(self, pixels: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch own_channels _ _"]:
        """The views as the network sees them."""
        if self.channels is not None:
            pixels = pixels[:, self.channels]
        if self.size is not None and pixels.shape[2:] != (self.size, self.size):
            pixels = F.interpolate(pixels, size=(self.size, self.size), mode="bilinear", antialias=True)
        if self.as_they_are:
            return pixels
        return pixels * self.scale[:, None, None] + self.shift[:, None, None]

    @functools.cached_property
    def digest(self) -> str:
        """A short text that differs for other weights."""
        found = hashlib.blake2b(digest_size=16)
        for name, tensor in sorted(self.network.state_dict().items()):
            found.update(name.encode())
            found.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
        return found.hexdigest()
