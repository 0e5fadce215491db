"""The optimizer of a run: which parameters decay, and how a resumed run gets the optimizer's state back."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import timm.optim
import torch
from timm.models import group_parameters
from torch import nn

from densecl.errors import UserError
from densecl.model.backbone import Backbone, unwrapped


def make_optimizer(
    model: nn.Module,
    name: str,
    *,
    weight_decay: float,
    momentum: float = 0.9,
    fused: bool = True,
    backbone: Backbone | None = None,
    layer_decay: float = 1.0,
) -> torch.optim.Optimizer:
    """SGD, LARS or AdamW over the trained parameters. The learning rate comes from the schedule: `set_learning_rates`.

    With sgd all parameters decay [paper]. With lars and adamw only the weights of layers do, as in their papers: not
    biases, norms, position embeddings, tokens, scales, or what a network of timm excludes.

    Args:
        model: parameters that require a gradient are trained.
        name: "sgd", "lars" or "adamw".
        weight_decay: see above.
        momentum: of sgd and lars.
        fused: do a step in one kernel, if there is one.
        backbone: the part of the model that has learning rates of its own; None: all have the same.
        layer_decay: a layer of the backbone learns at this to the power of `layers_from_the_end` [BEiT: Bao et al.
            2021].
    """
    names = {parameter: each for each, parameter in model.named_parameters() if parameter.requires_grad}
    if name == "sgd":
        groups = [{"params": list(names), "weight_decay": weight_decay}]
    else:
        groups = timm.optim.param_groups_weight_decay(model, weight_decay, no_weight_decay_list=_not_decayed(model))
    if backbone is not None:
        groups = [part for group in groups for part in _by_rate(group, backbone, layer_decay)]
    for group in groups:  # a resumed run finds its parameters by name
        group["params"] = [(names[parameter], parameter) for parameter in group["params"]]
    if name == "sgd":
        return torch.optim.SGD(groups, lr=0.0, momentum=momentum, fused=fused)
    if name == "lars":
        return timm.optim.Lars(groups, lr=0.0, momentum=momentum)  # pyright: ignore[reportArgumentType]
    return torch.optim.AdamW(groups, lr=0.0, fused=fused)


def set_learning_rates(groups: Iterable[dict[str, Any]], rate: float, backbone_factor: float = 1.0) -> None:
    """Sets the rate of each group of parameters; in the backbone's groups times `backbone_factor`."""
    for group in groups:
        of_backbone = backbone_factor if group.get("in_backbone", False) else 1.0
        group["lr"] = rate * group.get("lr_scale", 1.0) * of_backbone


def layers_from_the_end(backbone: Backbone) -> dict[nn.Parameter, int]:
    """For each trained parameter of a network of timm's, how many layers come after its own.

    A layer is what timm takes for one (`group_matcher`): mostly a block; the stem is the first. Empty if the network
    does not say.
    """
    model = unwrapped(backbone.model)
    matcher: Any = getattr(model, "group_matcher", None)
    if matcher is None:
        return {}
    layers = group_parameters(model, matcher(coarse=False), reverse=True)
    found = {parameter: layers[name] for name, parameter in model.named_parameters() if parameter.requires_grad}
    numbers = {layer: number for number, layer in enumerate(sorted(set(found.values()), reverse=True))}
    return {parameter: numbers[layer] for parameter, layer in found.items()}


def _by_rate(group: dict[str, Any], backbone: Backbone, layer_decay: float) -> list[dict[str, Any]]:
    """A group divided into those of one learning rate each, the heads' first."""
    inside = set(backbone.parameters())
    after = layers_from_the_end(backbone) if layer_decay < 1 else {}
    parts: dict[tuple[bool, int], list[nn.Parameter]] = {}
    for parameter in group["params"]:
        parts.setdefault((parameter in inside, after.get(parameter, 0)), []).append(parameter)
    return [
        {**group, "params": parts[part], "in_backbone": part[0], "lr_scale": layer_decay ** part[1]}
        for part in sorted(parts)
    ]


def _not_decayed(model: nn.Module) -> set[str]:
    """What must not decay besides biases and vectors, which timm's `param_groups_weight_decay` leaves out by itself.

    Networks name these parameters in `no_weight_decay`, but not all of them: timm's Hiera forgets a position embedding,
    FastViT its scales. What a layer multiplies with is always called a weight, so everything else is spared.
    """
    # The last two parts of a name, because a normalized weight is called "parametrizations.weight.original1".
    spared = {name for name, _ in model.named_parameters() if "weight" not in "".join(name.split(".")[-2:])}
    for path, module in model.named_modules():
        own: Any = getattr(module, "no_weight_decay", None)
        if callable(own):
            names: Any = own()
            spared |= {f"{path}.{name}".removeprefix(".") for name in names}
    return spared


def regrouped(state: dict[str, Any], optimizer: torch.optim.Optimizer, model: nn.Module) -> dict[str, Any]:
    """An optimizer's state from a checkpoint, regrouped as this optimizer groups its parameters.

    Args:
        state: from a checkpoint. Old ones have no names: they hold all parameters in one group, or those of more than
            one dimension in the first of two groups.
        optimizer: made for this model.
        model: whose parameters are trained.

    Raises:
        UserError: if the state is of other parameters.
    """
    own = optimizer.state_dict()
    names = [name for group in own["param_groups"] for name in group["param_names"]]
    stored = [name for group in state["param_groups"] for name in group.get("param_names", ())]
    if not stored:
        stored = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
        if len(state["param_groups"]) == 2:
            matrices = {name for name, parameter in model.named_parameters() if parameter.ndim > 1}
            stored.sort(key=lambda name: name not in matrices)
    if sorted(stored) != sorted(names) or len(names) != sum(len(group["params"]) for group in state["param_groups"]):
        raise UserError(
            "The checkpoint's optimizer is of other parameters than those that this model trains. Give the same"
            " backbone, with the same of them frozen, or start a new run with --init."
        )
    place = {name: number for number, name in enumerate(stored)}
    of_parameters = {
        number: state["state"][place[name]] for number, name in enumerate(names) if place[name] in state["state"]
    }
    return {"state": of_parameters, "param_groups": own["param_groups"]}
