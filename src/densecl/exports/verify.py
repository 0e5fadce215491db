"""The check of an export: the weights are loaded as the library's users do, and the feature maps compared."""

from __future__ import annotations

import contextlib
import importlib.metadata
import importlib.util
import logging
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from densecl.errors import UserError, one_line
from densecl.exports.committed import committed_shapes
from densecl.exports.delivery import Delivery
from densecl.exports.target import Loaded, Target
from densecl.model.backbone import Backbone
from densecl.model.weights.tensor_files import size

#: The image that networks are compared on: (height, width). Not square, so that axes in the wrong order are found.
IMAGE = (128, 192)


class Finding(NamedTuple):
    """What a check has shown.

    Attributes:
        how: the way of loading, with the library and its version.
        matched: tensors that arrived. None: the library does not tell them.
        total: tensors of the library's backbone.
        left_out: tensors of ours that this way of loading does not use.
        difference: the largest one of all feature maps. None: the library is not installed.
        largest: value of the maps.
    """

    how: str
    matched: int | None
    total: int
    left_out: tuple[str, ...] = ()
    difference: float | None = None
    largest: float = 0.0

    @property
    def checked(self) -> bool:
        """Whether anything could be compared."""
        return self.matched is not None or self.difference is not None

    def __str__(self) -> str:
        if not self.checked:
            return f"not checked: {self.how}"
        parts = [] if self.matched is None else [f"{self.matched} of {self.total} tensors"]
        if self.left_out:
            more = ", ..." if len(self.left_out) > 2 else ""
            parts.append(f"{len(self.left_out)} of ours not used ({', '.join(self.left_out[:2])}{more})")
        if self.difference is not None:
            difference = f"{self.difference:.0e}" if self.difference else "0"
            parts.append(f"largest difference {difference} in values up to {self.largest:.3g}")
        return f"checked: {self.how}: {', '.join(parts)}"


def verify(target: Target, delivery: Delivery, folder: Path) -> list[Finding]:
    """Checks an output that lies in `folder`.

    Where the library is installed, the backbone is rebuilt in it and loaded in each of the ways that its users have.
    All tensors are compared, and the feature maps of one image. Elsewhere the names and shapes are compared with the
    committed list of the version that was tried.

    Raises:
        UserError: the check failed.
    """
    _check_file(target, delivery, folder)
    reason = f"{target.package} is not installed here"
    if importlib.util.find_spec(target.library) is not None:
        try:
            with quiet():
                return list(_loaded(target, delivery, folder))
        except ImportError as error:
            reason = f"{target.package} cannot be imported here ({one_line(error, 80)})"
    return [_by_names(target, delivery, reason)]


def failed(target: Target, why: str) -> UserError:
    return UserError(f"The export to {target.name} failed its check, so nothing is left of it: {why}")


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without the warnings and log lines of other libraries, which say what we check ourselves."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(action="ignore"):
            yield
    finally:
        logging.disable(before)


# --- with the library -----------------------------------------------------------------------------


def _loaded(target: Target, delivery: Delivery, folder: Path) -> Iterator[Finding]:
    version = _version(target)
    tensors = target.tensors(delivery)
    try:
        for loaded in target.load(delivery, folder):
            how = f"{target.package} {version}, {loaded.way}"
            matched, total, left_out = _compare_tensors(target, how, loaded, tensors)
            difference, largest = _compare_maps(target, how, loaded, delivery.network)
            yield Finding(how, matched, total, left_out, difference, largest)
    except (UserError, ImportError, KeyboardInterrupt):
        raise
    except Exception as error:  # of another library, which raises what it likes
        raise failed(
            target,
            f"{target.package} {version} does not take it ({one_line(error)}). It was tried with {target.tried}.",
        ) from error


def _version(target: Target) -> str:
    try:
        return importlib.metadata.version(target.package)
    except importlib.metadata.PackageNotFoundError:  # a copy that was not installed by pip
        return "of unknown version"


def _compare_tensors(
    target: Target, how: str, loaded: Loaded, ours: Mapping[str, Tensor]
) -> tuple[int | None, int, tuple[str, ...]]:
    if loaded.tensors is None:
        return None, 0, ()
    theirs = loaded.tensors
    wrong = [name for name in theirs if not _arrived(theirs[name], ours.get(name), loaded.rounded)]
    left_out = tuple(name for name in ours if name not in theirs)
    if wrong:
        raise failed(target, f"{how}: {len(wrong)} of {len(theirs)} tensors did not arrive, such as {wrong[0]}.")
    if left_out and loaded.complete:
        raise failed(target, f"{how}: it has no place for {left_out[0]} ({len(left_out)} of {len(ours)} tensors).")
    return len(theirs), len(theirs), left_out


def _arrived(theirs: Tensor, ours: Tensor | None, rounded: torch.dtype) -> bool:
    if ours is None or theirs.shape != ours.shape:
        return False
    if ours.is_floating_point():
        ours = ours.to(rounded)
    return torch.equal(theirs.detach().cpu().double(), ours.double())


def _compare_maps(target: Target, how: str, loaded: Loaded, network: Backbone) -> tuple[float, float]:
    """The largest difference of the feature maps, and their largest value."""
    pixels = image_for(network, loaded.size)
    with torch.inference_mode():
        ours, theirs = loaded.ours(pixels), loaded.maps(pixels)
    shapes = [[size(one.shape) for one in maps] for maps in (ours, theirs)]
    if shapes[0] != shapes[1] or not ours:
        raise failed(target, f"{how}: its feature maps are {', '.join(shapes[1])} instead of {', '.join(shapes[0])}.")
    pairs = list(zip(ours, theirs, strict=True))
    difference = max(float((one.double() - other.double()).abs().max()) for one, other in pairs)
    largest = max(float(one.abs().max()) for one in ours)
    if not difference <= loaded.tolerance * largest:  # NaN is no smaller than anything
        raise failed(
            target, f"{how}: its feature maps differ from ours by up to {difference:.3g} (values up to {largest:.3g})."
        )
    return difference, largest


def image_for(network: Backbone, size: tuple[int, int] | None = None) -> Float[Tensor, "1 channels height width"]:
    """A drawn image of normalized pixels, always the same; of a size that the network takes, if none is given."""
    height, width = size or IMAGE
    if size is None:
        try:
            network.grid_at(height, width)
        except UserError:
            height, width = network.usual_size, network.usual_size
    drawn = torch.Generator().manual_seed(0)
    coarse = torch.randn(1, network.in_channels, 9, 9, generator=drawn)
    fine = torch.randn(1, network.in_channels, height, width, generator=drawn)
    return F.interpolate(coarse, (height, width), mode="bilinear") + 0.1 * fine


# --- without the library --------------------------------------------------------------------------


def _check_file(target: Target, delivery: Delivery, folder: Path) -> None:
    """The file must hold what was meant to be in it."""
    stored, meant = target.stored(delivery, folder), target.tensors(delivery)
    if stored is None:
        return
    wrong = sorted(
        {name for name in meant if not _arrived(stored.get(name, torch.empty(0)), meant[name], meant[name].dtype)}
        | (stored.keys() - meant.keys())
    )
    if wrong:
        raise failed(target, f"{target.weights} does not hold {wrong[0]} as it should ({len(wrong)} tensors).")


def _by_names(target: Target, delivery: Delivery, reason: str) -> Finding:
    """Names and shapes against the list of the version that was tried."""
    how = f"{reason}; names and shapes against the list of {target.package} {target.tried}"
    listed = committed_shapes(target.name, target.tried, delivery.architecture)
    if listed is None:
        return Finding(
            f"{reason}, and there is no list of its {delivery.architecture}. Install it, and export again", None, 0
        )
    shapes = {name: tuple(tensor.shape) for name, tensor in target.tensors(delivery).items()}
    wrong = sorted(name for name in listed.keys() | shapes.keys() if listed.get(name) != shapes.get(name))
    if wrong:
        name = wrong[0]
        have, want = (size(found[name]) if name in found else "missing" for found in (shapes, listed))
        raise failed(target, f"{how}: {name} is {have}, but should be {want} ({len(wrong)} such tensors).")
    return Finding(how, len(shapes), len(listed))
