"""Data whose optimal denoiser is known in closed form: what solvers are measured on, without a network's own errors."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ldmlab.diffusion.predictions import Prediction
from ldmlab.diffusion.samplers.base import Denoise, Sampler
from ldmlab.diffusion.samplers.unipc import UniPC
from ldmlab.diffusion.schedules import Schedule


@dataclass(frozen=True)
class GaussianMixture:
    """Equally wide normal distributions in the plane, with weights that sum to 1."""

    means: tuple[tuple[float, float], ...] = ((1.2, 0.4), (-0.8, 1.0), (-0.3, -1.3))
    weights: tuple[float, ...] = (0.5, 0.3, 0.2)
    std: float = 0.35

    def mean(self) -> Tensor:
        """The mean of the data, (2,) float64."""
        return torch.tensor(self.weights).double() @ torch.tensor(self.means).double()

    def covariance(self) -> Tensor:
        """The covariance of the data, (2, 2) float64."""
        centred = torch.tensor(self.means).double() - self.mean()
        between = (torch.tensor(self.weights).double()[:, None] * centred).T @ centred
        return self.std**2 * torch.eye(2, dtype=torch.float64) + between

    def denoiser(self, schedule: Schedule) -> Denoise:
        """E[x0 | xt] and the noise to match, for xt (B, 2) and t (B,)."""

        def denoise(xt: Tensor, t: Tensor) -> Prediction:
            means, weights = torch.tensor(self.means).to(xt), torch.tensor(self.weights).to(xt)
            alpha, sigma = schedule.coefficients(t.to(xt))
            variance = alpha**2 * self.std**2 + sigma**2
            distances = (xt[:, None] - alpha[:, None, None] * means).square().sum(-1)
            share = torch.softmax(weights.log() - distances / (2 * variance[:, None]), dim=1)
            gain = (alpha * self.std**2 / variance)[:, None, None]
            x0_of_each = means + gain * (xt[:, None] - alpha[:, None, None] * means)
            return Prediction.from_x0((share[..., None] * x0_of_each).sum(1), xt, alpha, sigma)

        return denoise


@dataclass(frozen=True)
class Inside:
    """A grid from t = 0.97 to t = 0.1, where no path is singular: three very short steps, then even ones.

    Multistep methods start with steps of lower order, whose errors would be all that is seen of a third-order method
    if those steps were as long as the others.
    """

    def __call__(self, steps: int, schedule: Schedule) -> Tensor:
        """steps + 1 falling times, float64."""
        short = (0.87 / steps) ** 3
        start = 0.97 - short * torch.arange(3, dtype=torch.float64)
        return torch.cat([start, torch.linspace(0.97 - 3 * short, 0.1, steps - 2, dtype=torch.float64)])


def measured_order(make: Callable[..., Sampler], schedule: Schedule, steps: tuple[int, int] = (80, 160)) -> float:
    """The order at which a deterministic sampler's error falls between two numbers of steps, on the mixture.

    The error is the root mean square distance, over 64 starting points, from where a far more exact solution leads.
    """
    noise = torch.randn(64, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))

    def reached(sampler: Sampler) -> Tensor:
        return sampler(GaussianMixture().denoiser(schedule), noise, schedule, torch.randn_like)

    exact = reached(UniPC(3000, Inside(), 3))
    few, many = ((reached(make(n, Inside())) - exact).square().mean().sqrt().item() for n in steps)
    return math.log(few / many) / math.log(steps[1] / steps[0])
