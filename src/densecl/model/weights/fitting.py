"""Finds the tensors of a backbone in a file: by name under a prefix, by timm's translation, or by order."""

from __future__ import annotations

import math
import re
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import timm
from jaxtyping import Float
from torch import Tensor, nn

from densecl.model.backbone import Backbone
from densecl.model.weights.pickles import Stored
from densecl.model.weights.tensor_files import TensorFile, is_counter

#: Parts of a tensor's name that come from a wrapper around the module.
WRAPPERS = frozenset(("module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"))

#: If several networks of a file fit equally well, these words speak for one. People use the moving average of the
#: weights (DINO's teacher, timm's EMA) ...
FAVORED = frozenset(("ema", "teacher", "averaged", "average", "avg", "shadow", "swa", "polyak"))

#: ... but not the network that only gives targets (MoCo's keys, BYOL's target), nor the student beside a teacher.
PASSED_OVER = frozenset(("k", "key", "momentum", "target", "student"))

#: An optimizer keeps tensors under the weights' own names. They are never weights.
OF_AN_OPTIMIZER = frozenset(("opt", "optim", "optimizer", "optimiser", "exp", "buffer", "grad", "grads", "gradients"))

#: Tensors of a classifier that may follow those of a backbone taken in order.
MOST_BEHIND = 4

#: Parts of a file that timm's translation is tried on.
MOST_TRANSLATED = 6

#: Parts of a path that are tried as a prefix.
MOST_PARTS = 12

_KINDS = frozenset(("weight", "bias", "running_mean", "running_var", "num_batches_tracked"))


class Fit(NamedTuple):
    """The tensors of a file for those of a backbone.

    Attributes:
        place: the prefix under which they stand.
        how: how they were found, if not by their names.
        tensors: by the names of the backbone's state dict; some may have another shape.
        unused: names, without the prefix, of the tensors that were left over there.
        rivals: other prefixes that fit as well.
    """

    place: str
    how: str
    tensors: dict[str, Stored]
    unused: tuple[str, ...] = ()
    rivals: tuple[str, ...] = ()

    def matched(self, own: Mapping[str, Stored]) -> int:
        """How many tensors have the right shape."""
        return sum(name in own and own[name].resembles(stored) for name, stored in self.tensors.items())


def best_fit(file: TensorFile, backbone: Backbone) -> Fit:
    """The tensors of a file that fit a backbone best.

    Names come first, under any prefix. If they leave something open, two more ways are tried: the same tensors in the
    same order under other names, and `timm`'s own translation of other projects' names and shapes.
    """
    own = {name: Stored.of(tensor) for name, tensor in backbone.model.state_dict().items()}
    needed = {name: stored for name, stored in own.items() if not is_counter(name)}
    fit = _by_name(file.tensors, own)
    if fit.matched(needed) == len(needed):
        return fit
    fits = [
        fit,
        *_in_order(file, own),
        *_in_order(file.without_counters(), needed),
        *_translated(file, fit, backbone, needed),
    ]
    return max(fits, key=lambda one: one.matched(own))


def _by_name(found: Mapping[str, Stored], own: Mapping[str, Stored]) -> Fit:
    """The prefix under which most of our tensors stand."""
    bare = {_relative(name, ""): name for name in own}  # ours may be wrapped too
    deepest = max((name.count(".") + 1 for name in bare if name), default=1)
    matches: dict[str, dict[str, Stored]] = {}
    for path, stored in found.items():
        for place, relative in _cuts(path, deepest):
            name = bare.get(relative)
            if name is not None and own[name].dtype.is_floating_point == stored.dtype.is_floating_point:
                matches.setdefault(place, {}).setdefault(name, stored)
    if not matches:
        return Fit("", "", {})
    scores = {place: (Fit(place, "", tensors).matched(own), len(tensors)) for place, tensors in matches.items()}
    best = max(matches, key=lambda place: (*scores[place], _favor(place)))
    rivals = tuple(place for place, score in scores.items() if score == scores[best] and place != best)
    unused = tuple(left for path in found if (left := _relative(path, best)) is not None and left not in bare)
    return Fit(best, "", matches[best], unused, rivals)


def _cuts(path: str, deepest: int) -> Iterator[tuple[str, str]]:
    """All ways to cut a path into a prefix and a name of at most `deepest` parts. Names leave out wrappers."""
    parts = path.split(".")
    name: list[str] = []
    for index in range(len(parts) - 1, -1, -1):
        if parts[index] in WRAPPERS:
            continue
        name.insert(0, parts[index])
        if len(name) > deepest:
            return
        yield ".".join((*parts[:index], "")), ".".join(name)


def _relative(path: str, place: str) -> str | None:
    """A path without the prefix and without wrappers; None if it does not start with the prefix."""
    if not path.startswith(place):
        return None
    return ".".join(part for part in path.removeprefix(place).split(".") if part not in WRAPPERS)


def _favor(place: str) -> int:
    words = set(re.split(r"[._]", place.lower()))
    if words & OF_AN_OPTIMIZER:
        return -2
    if "target_encoder" in place or words & FAVORED:  # the former: I-JEPA
        return 1
    return -1 if words & PASSED_OVER else 0


def _places(found: Mapping[str, Stored], least: int) -> dict[str, list[str]]:
    """The prefixes of at least `least` tensors, with their paths. Of prefixes with the same tensors, the longest."""
    places: dict[str, list[str]] = {}
    for path in found:
        parts = path.split(".")[:MOST_PARTS]
        for count in range(len(parts)):
            places.setdefault(".".join((*parts[:count], "")), []).append(path)
    longest = {tuple(paths): place for place, paths in places.items() if len(paths) >= least}
    return {place: list(paths) for paths, place in longest.items()}


def _in_order(file: TensorFile, own: Mapping[str, Stored]) -> Iterator[Fit]:
    """Places with the same shapes in the same order, where weights stand for weights and biases for biases."""
    if not file.ordered:
        return
    fits = []
    places = _places(file.tensors, len(own))
    for place in sorted(places, key=_favor, reverse=True):
        paths = places[place]
        pairs = list(zip(own.items(), paths, strict=False))
        if len(paths) <= len(own) + MOST_BEHIND and all(
            file.tensors[path].resembles(stored) and _kind(path) == _kind(name) for (name, stored), path in pairs
        ):
            fits.append((place, {name: file.tensors[path] for (name, _), path in pairs}))
    if fits:
        (place, tensors), *others = fits
        how = "their names are others, their shapes agree one by one in order"
        yield Fit(place, how, tensors, rivals=tuple(place for place, _ in others))


def _kind(name: str) -> str:
    last = re.split(r"[./]", name)[-1]  # the latter in .npz files
    return last if last in _KINDS else "other"


def _translated(file: TensorFile, named: Fit, backbone: Backbone, needed: Mapping[str, Stored]) -> Iterator[Fit]:
    """What timm makes of the file for this model. It knows names of other projects and resamples embeddings."""
    translate = _translation(backbone.name)
    if translate is None:
        return
    places = _places(file.tensors, len(needed) // 2)
    # Longest prefix first, because a translation expects names from their start.
    order = sorted(places, key=lambda place: (place == named.place, _favor(place), len(place)), reverse=True)
    for place in order[:MOST_TRANSLATED]:
        state = {_relative(path, place) or path: file.tensors[path].read() for path in places[place]}
        try:
            with warnings.catch_warnings(action="ignore"):  # torch's, of how timm resamples
                state = translate(state, backbone.model)
        except Exception:  # it was not written for every file, and may fail in any way
            continue
        tensors = {
            name: Stored.of(tensor)
            for name, tensor in state.items()
            if name in needed and isinstance(tensor, Tensor) and tensor.is_floating_point()
        }
        counters, unused, rivals = {}, (), ()
        if place == named.place:
            counters = {name: stored for name, stored in named.tensors.items() if is_counter(name)}
            unused, rivals = named.unused, named.rivals
        yield Fit(place, "names and shapes translated by timm", tensors | counters, unused, rivals)


def _translation(architecture: str) -> Callable[[dict[str, Tensor], nn.Module], dict[str, Any]] | None:
    """timm's own function for the files of this architecture, where it has one."""
    name = architecture.split(".")[0]
    if not timm.is_model(name):
        return None
    home = sys.modules[timm.model_entrypoint(name).__module__]
    return getattr(home, "checkpoint_filter_fn", None) or getattr(home, "_filter_fn", None)


def adapted_to_channels(
    weight: Float[Tensor, "out channels rows cols"], channels: int
) -> Float[Tensor, "out {channels} rows cols"]:
    """Adapts a first convolution to another number of channels, as timm does it.

    For one channel: the sum over the channels. Else they are repeated, cut off, and scaled by the ratio of the numbers.
    """
    had = weight.shape[1]
    if channels == 1:
        return weight.sum(1, keepdim=True)
    repeated = weight.repeat(1, math.ceil(channels / had), 1, 1)[:, :channels]
    return repeated * (had / channels)
