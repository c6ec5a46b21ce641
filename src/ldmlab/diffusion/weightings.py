"""How much the loss counts at each time, as a factor on the squared error of the network's output."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from ldmlab.diffusion.predictions import PredictionType


class Weighting(Protocol):
    """A loss weight per sample."""

    def __call__(self, alpha: Tensor, sigma: Tensor, prediction: PredictionType) -> Tensor:
        """Weights (B,) of the output's squared error at coefficients (B,)."""
        ...


@dataclass(frozen=True)
class Uniform:
    """Every time counts the same; with epsilon this is the simplified loss of Ho et al. 2020 (eq. 14)."""

    def __call__(self, alpha: Tensor, sigma: Tensor, prediction: PredictionType) -> Tensor:
        """Weights (B,) of the output's squared error at coefficients (B,)."""
        return torch.ones_like(alpha)


@dataclass(frozen=True)
class MinSNR:
    """min(SNR, gamma) on the squared error of x0, carried over to the network's output (Hang et al. 2023, eq. 5)."""

    gamma: float = 5.0

    def __call__(self, alpha: Tensor, sigma: Tensor, prediction: PredictionType) -> Tensor:
        """Weights (B,) of the output's squared error at coefficients (B,)."""
        snr = (alpha / sigma) ** 2
        return snr.clamp(max=self.gamma) * prediction.x0_gain(alpha, sigma) ** 2
