"""The optimizer of a run: which parameters decay, and how a resumed run gets the optimizer's state back."""

from __future__ import annotations

from typing import Any

import timm.optim
import torch
from torch import nn

from densecl.errors import UserError


def make_optimizer(
    model: nn.Module, name: str, *, weight_decay: float, momentum: float = 0.9, fused: bool = True
) -> torch.optim.Optimizer:
    """SGD, LARS or AdamW over the trained parameters. The learning rate comes from the schedule.

    With sgd all parameters decay [paper]. With lars and adamw only the weights of layers do, as in their papers: not
    biases, norms, position embeddings, tokens, scales, or what a network of timm excludes.

    Args:
        model: parameters that require a gradient are trained.
        name: "sgd", "lars" or "adamw".
        weight_decay: see above.
        momentum: of sgd and lars.
        fused: do a step in one kernel, if there is one.
    """
    names = {parameter: each for each, parameter in model.named_parameters() if parameter.requires_grad}
    if name == "sgd":
        groups = [{"params": list(names), "weight_decay": weight_decay}]
    else:
        groups = timm.optim.param_groups_weight_decay(model, weight_decay, no_weight_decay_list=_not_decayed(model))
    for group in groups:  # a resumed run finds its parameters by name
        group["params"] = [(names[parameter], parameter) for parameter in group["params"]]
    if name == "sgd":
        return torch.optim.SGD(groups, lr=0.0, momentum=momentum, fused=fused)
    if name == "lars":
        return timm.optim.Lars(groups, lr=0.0, momentum=momentum)  # pyright: ignore[reportArgumentType]
    return torch.optim.AdamW(groups, lr=0.0, fused=fused)


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
