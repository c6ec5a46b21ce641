"""Learned uncertainty: how large the loss is expected to be at each noise level, so that none outweighs the others."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


class LearnedUncertainty(nn.Module):
    """L / exp(u) + u with u(t) learned beside the network and thrown away after (Karras et al. 2024).

    u is one linear layer over `features` random Fourier features of log(sigma / alpha) / 4, and starts at 0. At its
    optimum exp(u) is the mean loss at t, so every noise level contributes gradients of equal size.
    """

    frequencies: Tensor
    phases: Tensor

    def __init__(self, features: int = 128):
        super().__init__()
        generator = torch.Generator().manual_seed(0)  # fixed features; the run's own random numbers stay as they are
        frequencies = 2 * math.pi * torch.randn(features, generator=generator)
        self.register_buffer("frequencies", frequencies)
        self.register_buffer("phases", 2 * math.pi * torch.rand(features, generator=generator))
        # a vector, not a matrix: optimisers treat those in ways of their own
        self.weights, self.bias = nn.Parameter(torch.zeros(features)), nn.Parameter(torch.zeros(()))

    def log_scale(self, alpha: Tensor, sigma: Tensor) -> Tensor:
        """u (B,) at coefficients (B,)."""
        # as finite as the range of EDM's noise levels: at either end of some paths the logarithm is infinite
        level = (sigma.log() - alpha.log()).clamp(-8, 8) / 4
        features = math.sqrt(2) * torch.cos(level.float()[:, None] * self.frequencies + self.phases)
        # no matrix product, which mixed precision would round
        return (features * self.weights).sum(1) / math.sqrt(len(self.weights)) + self.bias

    def forward(self, losses: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        """Losses (B,) at coefficients (B,), scaled and with the price for scaling added."""
        u = self.log_scale(alpha, sigma)
        return losses / u.exp() + u
