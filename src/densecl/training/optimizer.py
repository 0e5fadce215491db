"""The optimizer of a run: which parameters decay, and how a resumed run gets its state back."""

from __future__ import annotations

from typing import Any

import timm.optim
import torch
from torch import nn

from densecl.errors import UserError


def make_optimizer(
    model: nn.Module, name: str, *, weight_decay: float, momentum: float = 0.9, fused: bool = True
) -> torch.optim.Optimizer:
    """SGD, LARS or AdamW over the parameters that are trained; the learning rate comes from the schedule.

    Weight decay is on every parameter with sgd [paper]. With lars and adamw it is on the weights of layers alone, as in
    their own papers: not on biases, norms, position embeddings, tokens and scales, nor on what a network of timm names.

    Args:
        model: whose parameters are trained where they require a gradient.
        name: "sgd", "lars" or "adamw".
        weight_decay: see above.
        momentum: of sgd and lars.
        fused: all of a step in one kernel, where there is one.
    """
    names = {parameter: each for each, parameter in model.named_parameters() if parameter.requires_grad}
    if name == "sgd":
        groups = [{"params": list(names), "weight_decay": weight_decay}]
    else:
        groups = timm.optim.param_groups_weight_decay(model, weight_decay, no_weight_decay_list=_not_decayed(model))
    for group in groups:  # with their names, by which a resumed run finds its parameters again
        group["params"] = [(names[parameter], parameter) for parameter in group["params"]]
    if name == "sgd":
        return torch.optim.SGD(groups, lr=0.0, momentum=momentum, fused=fused)
    if name == "lars":
        return timm.optim.Lars(groups, lr=0.0, momentum=momentum)  # pyright: ignore[reportArgumentType]
    return torch.optim.AdamW(groups, lr=0.0, fused=fused)


def _not_decayed(model: nn.Module) -> set[str]:
    """The parameters, beside biases and all of one dimension, that are not to be pulled towards 0.

    Networks name theirs in `no_weight_decay`, but not all of them name all: timm's Hiera leaves out an embedding of
    positions, FastViT its scales. What layers multiply with is called a weight everywhere, so all others are spared.
    """
    # The last two parts of a name: a normalized weight is "parametrizations.weight.original1".
    spared = {name for name, _ in model.named_parameters() if "weight" not in "".join(name.split(".")[-2:])}
    for path, module in model.named_modules():
        own: Any = getattr(module, "no_weight_decay", None)
        if callable(own):
            names: Any = own()
            spared |= {f"{path}.{name}".removeprefix(".") for name in names}
    return spared


def regrouped(state: dict[str, Any], optimizer: torch.optim.Optimizer, model: nn.Module) -> dict[str, Any]:
    """The state of an optimizer, with each parameter in the group where this one has it.

    Args:
        state: of a checkpoint. Those before densecl noted names hold all parameters in one group, or those of
            more than one dimension in the first of two.
        optimizer: made for this model.
        model: whose parameters are trained.

    Raises:
        UserError: if it is of other parameters.
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
