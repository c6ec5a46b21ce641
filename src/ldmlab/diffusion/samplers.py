"""Samplers: from noise back to data, in exactly `steps` steps.

A sampler is a frozen set of options and a pure function of (denoise, noise, schedule, randn_like): it keeps no state,
and sees the network only as `denoise(xt, t) -> Prediction`, so that any sampler works with any prediction type and
schedule. `randn_like` supplies the fresh noise of stochastic samplers; see `PerSampleNoise`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from ldmlab.diffusion.predictions import Prediction
from ldmlab.diffusion.schedules import Schedule

Denoise = Callable[[Tensor, Tensor], Prediction]
"""(xt (B, ...), t (B,)) -> x0 and noise."""

RandnLike = Callable[[Tensor], Tensor]
"""A tensor (B, ...) -> fresh standard normal noise of its shape."""


class Sampler(Protocol):
    """A way back along the path."""

    steps: int

    def __call__(self, denoise: Denoise, noise: Tensor, schedule: Schedule, randn_like: RandnLike) -> Tensor:
        """Samples (B, ...) from initial standard normal `noise` (B, ...)."""
        ...


class PerSampleNoise:
    """Noise from one seed per sample, so that a picture depends on its own seed and never on the batch it is in."""

    def __init__(self, seeds: Sequence[int]):
        self.generators = [torch.Generator().manual_seed(seed) for seed in seeds]

    def __call__(self, like: Tensor) -> Tensor:
        """Fresh standard normal noise of `like`'s shape (B, ...), B being the number of seeds."""
        draws = [torch.randn(like.shape[1:], generator=generator) for generator in self.generators]
        return torch.stack(draws).to(like)


def check_steps(steps: int) -> None:
    """Raises ValueError unless there is at least one step."""
    if not isinstance(steps, int) or isinstance(steps, bool) or steps < 1:
        raise ValueError(f"sampler.steps: a whole number of 1 or more is needed, not {steps}")


def uniform_times(steps: int) -> Tensor:
    """steps + 1 times from 1 to 0, equally spaced, float64."""
    return torch.linspace(1, 0, steps + 1, dtype=torch.float64)


def initial_sample(noise: Tensor, schedule: Schedule) -> Tensor:
    """xt at t = 1 for data of unknown mean: noise times sigma(1), which is 1 but for rounding."""
    _, sigma = schedule.coefficients(torch.ones((), dtype=torch.float64))
    return noise * sigma.to(noise.dtype)


def _batch_time(t: Tensor, x: Tensor) -> Tensor:
    return t.to(device=x.device, dtype=torch.float32).expand(x.shape[0])


@dataclass(frozen=True)
class DDIM:
    """Denoising diffusion implicit models (Song et al. 2020, eq. 12 and 16).

    `eta` 0 is deterministic, 1 has the variance of DDPM's posterior.
    """

    steps: int = 50
    eta: float = 0.0

    def __post_init__(self) -> None:
        check_steps(self.steps)
        if not isinstance(self.eta, (int, float)) or self.eta < 0:
            raise ValueError(f"sampler.eta: a number of 0 or more is needed, not {self.eta}")

    def __call__(self, denoise: Denoise, noise: Tensor, schedule: Schedule, randn_like: RandnLike) -> Tensor:
        """Samples (B, ...) from initial standard normal `noise` (B, ...)."""
        times = uniform_times(self.steps)
        alphas, sigmas = schedule.coefficients(times)
        x = initial_sample(noise, schedule)
        for i in range(self.steps):
            prediction = denoise(x, _batch_time(times[i], x))
            fresh = self.eta * posterior_std(alphas[i], sigmas[i], alphas[i + 1], sigmas[i + 1])
            direction = (sigmas[i + 1] ** 2 - fresh**2).clamp(min=0).sqrt()
            x = alphas[i + 1].item() * prediction.x0 + direction.item() * prediction.noise
            if fresh > 0:
                x = x + fresh.item() * randn_like(x)
        return x


def posterior_std(alpha_t: Tensor, sigma_t: Tensor, alpha_s: Tensor, sigma_s: Tensor) -> Tensor:
    """Standard deviation of q(xs | xt, x0), s < t (Ho et al. 2020, eq. 7, for any Gaussian path and any stride)."""
    step_variance = (sigma_t**2 - (alpha_t / alpha_s) ** 2 * sigma_s**2).clamp(min=0)
    return step_variance.sqrt() * sigma_s / sigma_t


@dataclass(frozen=True)
class DDPM:
    """Ancestral sampling (Ho et al. 2020, algorithm 2), with any stride.

    `variance` is "small", the posterior's (beta tilde, optimal for one known x0), or "large", the forward step's (beta,
    optimal for standard normal data); Ho et al. 2020, section 3.2. The last step adds no noise.
    """

    steps: int = 1000
    variance: str = "small"

    def __post_init__(self) -> None:
        check_steps(self.steps)
        if self.variance not in ("small", "large"):
            raise ValueError(f'sampler.variance is "small" or "large", not "{self.variance}"')

    def __call__(self, denoise: Denoise, noise: Tensor, schedule: Schedule, randn_like: RandnLike) -> Tensor:
        """Samples (B, ...) from initial standard normal `noise` (B, ...)."""
        times = uniform_times(self.steps)
        alphas, sigmas = schedule.coefficients(times)
        x = initial_sample(noise, schedule)
        for i in range(self.steps):
            alpha_t, sigma_t, alpha_s, sigma_s = alphas[i], sigmas[i], alphas[i + 1], sigmas[i + 1]
            ratio = alpha_t / alpha_s
            step_variance = (sigma_t**2 - ratio**2 * sigma_s**2).clamp(min=0)
            x0 = denoise(x, _batch_time(times[i], x)).x0
            # eq. 7, written for any Gaussian path
            x0_weight = alpha_s * step_variance / sigma_t**2
            xt_weight = ratio * sigma_s**2 / sigma_t**2
            x = x0_weight.item() * x0 + xt_weight.item() * x
            if i + 1 < self.steps:
                small = self.variance == "small"
                std = posterior_std(alpha_t, sigma_t, alpha_s, sigma_s) if small else step_variance.sqrt()
                x = x + std.item() * randn_like(x)
        return x


def _straight_line(schedule: Schedule, times: Tensor) -> tuple[Tensor, Tensor]:
    """(scale, tau) that turn the path into the straight one: y = x / scale = (1 - tau) x0 + tau noise.

    Every schedule becomes the rectified flow in these variables, whose velocity dy/dtau = noise - x0 needs no
    derivative of the schedule and stays finite at both ends.
    """
    alpha, sigma = schedule.coefficients(times)
    return alpha + sigma, sigma / (alpha + sigma)


@dataclass(frozen=True)
class Euler:
    """Euler's method on the probability-flow ODE in straight-line variables; there it equals DDIM with eta 0."""

    steps: int = 50

    def __post_init__(self) -> None:
        check_steps(self.steps)

    def __call__(self, denoise: Denoise, noise: Tensor, schedule: Schedule, randn_like: RandnLike) -> Tensor:
        """Samples (B, ...) from initial standard normal `noise` (B, ...)."""
        times = uniform_times(self.steps)
        scale, tau = _straight_line(schedule, times)
        y = initial_sample(noise, schedule) / scale[0].item()
        for i in range(self.steps):
            prediction = denoise(y * scale[i].item(), _batch_time(times[i], y))
            y = y + (tau[i + 1] - tau[i]).item() * (prediction.noise - prediction.x0)
        return y * scale[-1].item()


@dataclass(frozen=True)
class Heun:
    """Heun's second-order method (Karras et al. 2022, algorithm 1, without churn) in straight-line variables.

    Two evaluations a step but for the last, which is Euler's: 2 · steps - 1 in all.
    """

    steps: int = 25

    def __post_init__(self) -> None:
        check_steps(self.steps)

    def __call__(self, denoise: Denoise, noise: Tensor, schedule: Schedule, randn_like: RandnLike) -> Tensor:
        """Samples (B, ...) from initial standard normal `noise` (B, ...)."""
        times = uniform_times(self.steps)
        scale, tau = _straight_line(schedule, times)
        y = initial_sample(noise, schedule) / scale[0].item()
        for i in range(self.steps):
            first = denoise(y * scale[i].item(), _batch_time(times[i], y))
            slope = first.noise - first.x0
            step = (tau[i + 1] - tau[i]).item()
            if i + 1 < self.steps:
                second = denoise((y + step * slope) * scale[i + 1].item(), _batch_time(times[i + 1], y))
                slope = 0.5 * (slope + second.noise - second.x0)
            y = y + step * slope
        return y * scale[-1].item()
