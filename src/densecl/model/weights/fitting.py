"""Finds the tensors of a backbone in a file: by name under a prefix, by a translation of names, or by order."""

from __future__ import annotations

import math
import re
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import timm
import torch
from jaxtyping import Float
from torch import Tensor, nn

from densecl.model.backbone import Backbone
from densecl.model.weights.layouts import in_other_names
from densecl.model.weights.pickles import Stored
from densecl.model.weights.tensor_files import TensorFile, is_counter, shown

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
        naming: in whose names they were found (`layouts.NAMINGS`); empty for timm's.
    """

    place: str
    how: str
    tensors: dict[str, Stored]
    unused: tuple[str, ...] = ()
    rivals: tuple[str, ...] = ()
    naming: str = ""

    def matched(self, own: Mapping[str, Stored]) -> int:
        """How many tensors have the right shape."""
        return sum(name in own and own[name].resembles(stored) for name, stored in self.tensors.items())


def best_fit(file: TensorFile, backbone: Backbone) -> Fit:
    """The tensors of a file that fit a backbone best.

    Names come first, under any prefix: timm's, then those of other projects (`layouts`). If they leave something open,
    two more ways are tried: `timm`'s own translation of names and shapes, and the same tensors in the same order under
    unknown names.
    """
    own = {name: Stored.of(tensor) for name, tensor in backbone.model.state_dict().items()}
    needed = {name: stored for name, stored in own.items() if not is_counter(name)}
    fits = []
    for naming, tensors in (("", file.tensors), *in_other_names(file.tensors)):
        named = _by_name(tensors, own)._replace(naming=naming)
        if named.matched(needed) == len(needed):
            return named
        fits += [named, *_translated(tensors, named, backbone, needed)]
    fits += [*_in_order(file, own), *_in_order(file.without_counters(), needed)]
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
    rivals = tuple(
        place
        for place, score in scores.items()
        if score == scores[best] and place != best and not _same_numbers(matches[place], matches[best])
    )
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


def _same_numbers(some: Mapping[str, Stored], others: Mapping[str, Stored]) -> bool:
    """Whether a network stands twice in a file, so that it does not matter which is taken. Ends at a difference."""
    return all(name in others and torch.equal(one.read(), others[name].read()) for name, one in some.items())


def why_not(place: str, rival: str) -> str:
    """Why the network under `place` is taken, and not that under `rival`, which fits as well. A part of a sentence."""
    shown_rival = f"'{shown(rival.removesuffix('.'))}'"
    if _favor(place) == _favor(rival):
        return f"{shown_rival} would fit as well; the first one is taken. To have the other, save it alone"
    if _favor(rival) == -2:
        return f"not {shown_rival}, which an optimizer keeps"
    if "student" in re.split(r"[._]", rival.lower()):
        return f"not {shown_rival}, because a teacher is the moving average of its student, and better"
    if _favor(rival) == -1:
        return f"not {shown_rival}, which only gives the targets of the training"
    return f"not {shown_rival}, because a moving average of the weights is better"


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


def _translated(
    found: Mapping[str, Stored], named: Fit, backbone: Backbone, needed: Mapping[str, Stored]
) -> Iterator[Fit]:
    """What timm makes of the tensors for this model. It knows names of other projects and resamples embeddings."""
    translate = _translation(backbone.name)
    if translate is None:
        return
    places = _places(found, len(needed) // 2)
    # Longest prefix first, because a translation expects names from their start.
    order = sorted(places, key=lambda place: (place == named.place, _favor(place), len(place)), reverse=True)
    for place in order[:MOST_TRANSLATED]:
        state = {_relative(path, place) or path: found[path].read() for path in places[place]}
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
        yield Fit(place, "names and shapes translated by timm", tensors | counters, unused, rivals, named.naming)


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
