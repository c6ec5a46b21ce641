"""The moving average of weights that samples are drawn with."""

from __future__ import annotations

import copy
from typing import Generic, TypeVar

import torch
from torch import Tensor, nn

from ldmlab.modules.sharding import own_part

Model = TypeVar("Model", bound=nn.Module)


class PowerEMA(nn.Module, Generic[Model]):
    """Power-function moving average (Karras et al. 2024, eq. 123 to 125): a fixed share of the run, however short.

    beta(step) = (1 - 1/step)^(gamma + 1), so the average spans about the last 1/(gamma + 2) of training at every
    moment; after step 1 nothing is left of the initial weights. A fixed decay of 0.9999 would still hold 82 % of them
    after 2,000 steps.
    """

    average: Model
    step: Tensor

    def __init__(self, model: Model, gamma: float):
        super().__init__()
        self.gamma = gamma
        self.average = copy.deepcopy(model).requires_grad_(False).eval()
        self.register_buffer("step", torch.zeros((), dtype=torch.long))

    @torch.no_grad()
    def update(self, model: Model) -> None:
        """Takes the weights of `model` after an optimiser step into the average."""
        self.step += 1
        weight = 1 - (1 - 1 / self.step.item()) ** (self.gamma + 1)
        # of weights that are spread over devices, each averages its own
        averages, current = (
            [own_part(p.detach()) for p in network.parameters() if p.is_floating_point()]
            for network in (self.average, model)
        )
        torch._foreach_lerp_(averages, current, weight)
        for average, buffer in zip(self.average.buffers(), model.buffers(), strict=True):
            average.copy_(buffer)

    def train(self, mode: bool = True) -> PowerEMA[Model]:
        """Stays in evaluation mode: the average is only ever sampled from."""
        return super().train(False)
