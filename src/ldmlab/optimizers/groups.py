"""How a network's parameters are grouped for an optimiser."""

from __future__ import annotations

from typing import Any

from torch import nn


def parameter_groups(*modules: nn.Module) -> list[dict[str, Any]]:
    """Two parameter groups: the `matrices`, weights of linear and convolution layers, and all other parameters.

    Biases, norms and embedding tables are the others: a table is a list of vectors, of which a batch uses a few.
    Optimisers that treat all parameters alike ignore the key.
    """
    layers = (layer for module in modules for layer in module.modules() if isinstance(layer, nn.Linear | nn.Conv2d))
    matrices = [layer.weight for layer in layers]
    taken = {id(weight) for weight in matrices}
    others = [parameter for module in modules for parameter in module.parameters() if id(parameter) not in taken]
    groups = [{"params": matrices, "matrices": True}, {"params": others, "matrices": False}]
    return [group for group in groups if group["params"]]
